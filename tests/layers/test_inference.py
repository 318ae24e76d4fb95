import signal
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals by the clock are POSIX's")
def test_signals_leave_products_and_the_heap_alone():
    """In a process of its own: without precautions it dies of a corrupted heap at once, on processors with AVX-512."""
    script = """
import signal, torch
from vitrail.layers.inference import linear
x, weight = torch.randn(2, 196, 384), torch.randn(384, 384)
with torch.no_grad():
    expected = linear(x, weight)
    handled = []
    signal.signal(signal.SIGALRM, lambda *_: handled.append(None))
    signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)
    while len(handled) < 2000:
        assert torch.equal(linear(x, weight), expected)
        pieces = [bytearray(37 * length) for length in range(20)]
    signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
