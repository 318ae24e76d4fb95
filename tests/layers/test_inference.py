import signal
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals by the clock are POSIX's")
def test_signals_leave_products_and_the_heap_alone():
    """In a process of its own, by two threads: some of torch 2.11's oneDNN would let a signal overwrite the heap."""
    script = """
import signal, torch
from vitrail.layers.inference import linear, linear_gelu
torch.set_num_threads(2)
handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(None))
with torch.no_grad():
    for tokens, width in ((392, 384), (50, 128), (512, 128), (128, 384), (1, 384), (1024, 16)):
        x, weight, bias = torch.randn(tokens, width), torch.randn(128, width), torch.randn(128)
        for product in (linear, linear_gelu):
            expected = product(x, weight, bias)
            handled.clear()
            signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)
            while len(handled) < 500:
                assert torch.equal(product(x, weight, bias), expected)
                pieces = [bytearray(37 * length) for length in range(20)]
            signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
