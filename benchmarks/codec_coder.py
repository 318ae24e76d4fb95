"""Seconds and bytes of the coder alone, from logits to bytes and back, beside torchac where it is installed.

    pip install torchac ninja
    python benchmarks/codec_coder.py --output codec_coder

Symbols are drawn from the distributions of random logits, as many as a picture of 768 x 512 pixels has at the highest
quality of a codec of eight sub-vectors; their spread makes a symbol cost about as much as there. Ours: logits rounded
with a safe offset, integer frequencies, range coder, running check. torchac: cumulative distributions in float32, which
its C++ turns into 16 bits; another machine's may differ. Medians over rounds in which they take turns, one thread.
"""

import argparse
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.compress.coding.coder import Decoder, Encoder
from vitrail.compress.coding.frequencies import choose_offset, frequencies, levels
from vitrail.tables import write_table

HEADER = ("coder", "symbols", "encode (ms)", "decode (ms)", "bytes", "bits a symbol above the entropy")
Codec = tuple[Callable[[Tensor, Tensor], Any], Callable[[Tensor, Any], Tensor]]


def ours_encode(logits: Tensor, symbols: Tensor) -> bytes:
    values = logits.double().numpy()
    coder = Encoder()
    offset = coder.offset(choose_offset(values))
    coder.symbols(symbols.numpy(), frequencies(levels(values, offset)))
    coder.check(4)
    return coder.finish()


def ours_decode(logits: Tensor, data: bytes) -> Tensor:
    coder = Decoder(data)
    table = frequencies(levels(logits.double().numpy(), coder.offset()))
    symbols = coder.symbols(np.zeros(len(logits), dtype=np.int64), table)
    coder.check(4)
    return torch.from_numpy(symbols)


def cumulative(logits: Tensor) -> Tensor:
    sums = torch.softmax(logits.float(), dim=1).cumsum(dim=1).clamp(max=1)
    return torch.cat([sums.new_zeros(len(sums), 1), sums], dim=1)


def torchac_codec() -> Codec:
    import torchac  # compiles itself, once

    return (
        lambda logits, symbols: torchac.encode_float_cdf(cumulative(logits), symbols.to(torch.int16)),
        lambda logits, data: torchac.decode_float_cdf(cumulative(logits), data).long(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("codec_coder"))
    parser.add_argument("--symbols", type=int, default=48 * 32 * 8)
    parser.add_argument("--centroids", type=int, default=256)
    parser.add_argument("--spread", type=float, default=1.5, help="standard deviation of the logits")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logits = arguments.spread * torch.randn(arguments.symbols, arguments.centroids, dtype=torch.float64)
    log_shares = torch.log_softmax(logits, dim=1)
    symbols = torch.multinomial(log_shares.exp(), 1)[:, 0]
    ideal = -log_shares.gather(1, symbols[:, None]).sum().item() / np.log(2)  # bits
    codecs: dict[str, Codec] = {"ours": (ours_encode, ours_decode)}
    if find_spec("torchac"):
        codecs["torchac"] = torchac_codec()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in codecs}
    sizes = {}
    for _ in range(arguments.rounds + 1):
        for name, (encode, decode) in codecs.items():
            begin = perf_counter()
            data = encode(logits, symbols)
            middle = perf_counter()
            found = decode(logits, data)
            seconds[name].append((middle - begin, perf_counter() - middle))
            sizes[name] = len(data)
            assert torch.equal(found, symbols)
    rows = []
    for name, taken in seconds.items():
        times = [1000 * statistics.median(column) for column in zip(*taken[1:], strict=True)]
        above = (8 * sizes[name] - ideal) / len(symbols)
        rows.append((name, str(len(symbols)), *(f"{time:.1f}" for time in times), str(sizes[name]), f"{above:+.4f}"))
    if len(rows) == 2:
        times_ours = [f"{float(rows[1][column]) / float(rows[0][column]):.2f}x" for column in (2, 3, 4)]
        rows.append(("torchac / ours", "", *times_ours, ""))
    text = write_table(arguments.output / "codec_coder", HEADER, rows)
    print(f"entropy {ideal / len(symbols):.3f} bits a symbol\n\n{text}")


if __name__ == "__main__":
    main()
