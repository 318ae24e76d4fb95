r"""Seconds and memory of encoding and decoding against the size of the picture, beside other codecs.

    python benchmarks/codec_speed.py --output codec_speed --photo photo.jpg --rounds 5

Ours: the codec that ships, or another by name or path. Beside it the scale
hyperprior and its autoregressive extension (`codec_peers.py`: published structures, random weights) and Pillow's
classical codecs, all on the same picture. Seconds are medians over rounds in which the codecs take turns; of ours and
the learned peers they are split into network (pixels to latents and back), prior (the probabilities) and coder (from
probabilities to bytes; of ours, the rounding of logits and the tables included). Memory is the peak of a fresh process,
the interpreter and all libraries included (Linux). Writes codec_speed.csv, codec_speed.md and codec_speed.png.
"""

import argparse
import csv
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import PIL
import torch
from codec_peers import Autoregressive, Hyperprior, Stopwatch
from PIL import Image

from vitrail.compress import Codec
from vitrail.compress.autoencoder import AutoencoderConfig
from vitrail.compress.coding import grid
from vitrail.compress.coding.coder import Decoder, Encoder
from vitrail.compress.evaluation.classical import CLASSICAL
from vitrail.compress.prior import PriorConfig
from vitrail.compress.storage import DEFAULT_MODEL
from vitrail.files import atomic_path, write_text
from vitrail.plots import new_figure, save_figure

OURS = "ours"
PEERS = {"hyperprior": Hyperprior, "autoregressive": Autoregressive}
PARTS = ("network", "prior", "coder")


@dataclass(frozen=True)
class Job:
    """One codec at one size, as a process of its own can be told."""

    entry: str
    size: tuple[int, int]
    codec: str
    photo: Path | None
    threads: int
    small: bool


@dataclass(frozen=True)
class Row:
    """A line of codec_speed.csv; times in seconds; None where a codec has no such part or was not run."""

    codec: str
    width: int
    height: int
    file_bytes: int
    encode: float
    encode_network: float | None
    encode_prior: float | None
    encode_coder: float | None
    decode: float
    decode_network: float | None
    decode_prior: float | None
    decode_coder: float | None
    times_ours_encode: float | None
    times_ours_decode: float | None
    peak_mb: float | None


@dataclass(frozen=True)
class Timed:
    """One turn of a codec."""

    encode: float
    decode: float
    parts: dict[str, float]
    size: int


def picture(job: Job) -> Image.Image:
    """The photo, or smooth noise, of the job's size."""
    if job.photo is not None:
        with Image.open(job.photo) as image:
            return image.convert("RGB").resize(job.size, Image.Resampling.LANCZOS)
    width, height = (max(1, side // 16) for side in job.size)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(job.size, Image.Resampling.BICUBIC)


def open_codec(source: str, small: bool) -> Codec:
    """A trained codec by name or path; `small`: a tiny one instead, its weights random but its logits well spread."""
    if not small:
        return Codec.load(source)
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(width=32, depth=1, heads=2, factor=16, parts=2, centroids=16, nested=True).build()
    prior = PriorConfig(width=32, depth=1, heads=2).build(autoencoder.parts, autoencoder.centroids)
    with torch.no_grad():
        prior.heads.weight *= 20
    counts = np.ones((autoencoder.parts, autoencoder.centroids), dtype=np.int64)
    return Codec(autoencoder, prior, counts, "random")


def timed(watch: Stopwatch, name: str, function: Callable) -> Callable:
    @wraps(function)
    def inside(*arguments: Any) -> Any:
        with watch(name):
            return function(*arguments)

    return inside


def ours(job: Job) -> tuple[Callable[[Image.Image], bytes], Callable[[bytes], Image.Image], Stopwatch]:
    """Compress, decompress, and where the time goes: the codec's own steps are timed from outside."""
    codec, watch = open_codec(job.codec, job.small), Stopwatch()
    steps = {"encode": "network", "decode": "network", "context": "prior", "logits": "prior"}
    for network in codec.networks:
        for name in steps:
            if hasattr(network, name):
                setattr(network, name, timed(watch, steps[name], getattr(network, name)))

    def with_watch(function: Callable) -> Callable:
        @wraps(function)
        def run(argument: Any) -> Any:
            with ExitStack() as stack:
                for name in ("choose_offset", "levels", "frequencies"):
                    original = getattr(grid, name)
                    stack.enter_context(patch.object(grid, name, timed(watch, "coder", original)))
                for stream in (Encoder, Decoder):
                    for name in ("symbols", "check"):
                        stack.enter_context(patch.object(stream, name, timed(watch, "coder", getattr(stream, name))))
                return function(argument)

        return run

    return with_watch(codec.compress), with_watch(codec.decompress), watch


def prepare(job: Job) -> Callable[[], Timed]:
    """What runs one turn."""
    image = picture(job)
    watch = None
    if job.entry == OURS:
        compress, decompress, watch = ours(job)
    elif job.entry in PEERS:
        torch.manual_seed(0)
        peer = PEERS[job.entry](*([8, 12] if job.small else [])).eval()
        watch = peer.watch
        compress = lambda image: peer.compress(image)  # noqa: E731
        decompress = lambda data: peer.decompress(*data)  # noqa: E731
    else:
        classical = CLASSICAL[job.entry]
        quality = classical.qualities[len(classical.qualities) // 2]
        compress = lambda image: classical.compress(image, quality)  # noqa: E731
        decompress = classical.decompress

    def turn() -> Timed:
        parts: dict[str, float] = {}
        taken = []
        argument: Any = image
        for name, step in (("encode", compress), ("decode", decompress)):
            if watch is not None:
                watch.seconds.clear()
            begun = perf_counter()
            made = step(argument)
            taken.append(perf_counter() - begun)
            if watch is not None:
                parts |= {f"{name}_{part}": watch.seconds[part] for part in PARTS}
            if name == "encode":
                argument = made
        assert made.size == image.size
        stream = argument[1] if isinstance(argument, tuple) else argument
        return Timed(taken[0], taken[1], parts, len(stream))

    return turn


def peak(job: Job) -> float:
    """MB of 10^6 bytes that this process has taken at most."""
    torch.set_num_threads(job.threads)
    prepare(job)()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def memory(job: Job) -> float | None:
    """`peak` of a process of its own; None where it cannot be known, or the kernel ended it."""
    if platform.system() != "Linux":
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(peak, job).result()
        except BrokenProcessPool:
            return None


def measure(jobs: Sequence[Job], rounds: int) -> list[Row]:
    """A row for each job; the jobs differ in their entry alone."""
    memories = {job.entry: memory(job) for job in jobs}
    turns = {job.entry: prepare(job) for job in jobs}
    for turn in turns.values():
        turn()
    results: dict[str, list[Timed]] = {entry: [] for entry in turns}
    for _ in range(rounds):
        for entry, turn in turns.items():
            results[entry].append(turn())
    own = results.get(OURS)
    rows = []
    for job in jobs:
        made = results[job.entry]
        parts = {name: statistics.median(one.parts[name] for one in made) for name in made[0].parts}
        rows.append(
            Row(
                codec=job.entry,
                width=job.size[0],
                height=job.size[1],
                file_bytes=made[0].size,
                encode=statistics.median(one.encode for one in made),
                decode=statistics.median(one.decode for one in made),
                times_ours_encode=own
                and statistics.median(a.encode / b.encode for a, b in zip(made, own, strict=True)),
                times_ours_decode=own
                and statistics.median(a.decode / b.decode for a, b in zip(made, own, strict=True)),
                peak_mb=memories[job.entry],
                **{f"{step}_{part}": parts.get(f"{step}_{part}") for step in ("encode", "decode") for part in PARTS},
            )
        )
    return rows


def machine(threads: int) -> str:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    instructions = torch.backends.cpu.get_cpu_capability()
    return (
        f"{names[0] if names else platform.processor()}, {instructions}, threads: {threads}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, Pillow {PIL.__version__}"
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: a block for each size, a line for each codec."""
    lines = []
    for width, height in dict.fromkeys((row.width, row.height) for row in rows):
        lines += ["", f"{width} x {height} pixels", ""]
        lines.append(
            "| codec | encode s (x ours) | network | prior | coder | decode s (x ours) | network | prior | coder "
            "| peak MB | bytes |"
        )
        lines.append("|---" + "|---:" * 10 + "|")
        for row in (row for row in rows if (row.width, row.height) == (width, height)):
            cells = [row.codec, cell(row.encode, row.times_ours_encode)]
            cells += [cell(row.encode_network), cell(row.encode_prior), cell(row.encode_coder)]
            cells += [cell(row.decode, row.times_ours_decode)]
            cells += [cell(row.decode_network), cell(row.decode_prior), cell(row.decode_coder)]
            cells += ["" if row.peak_mb is None else f"{row.peak_mb:.0f}", str(row.file_bytes)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Seconds grow with pixels to the power of (from the smallest to the largest picture):", ""]
    for codec in dict.fromkeys(row.codec for row in rows):
        ends = [row for row in rows if row.codec == codec]
        first, last = ends[0], ends[-1]
        if first.width < last.width:
            pixels = math.log(last.width * last.height / (first.width * first.height))
            powers = [math.log(getattr(last, step) / getattr(first, step)) / pixels for step in ("encode", "decode")]
            lines.append(f"- {codec}: encode {powers[0]:.2f}, decode {powers[1]:.2f}")
    return "\n".join(lines[1:]) + "\n"


def cell(value: float | None, ratio: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" + ("" if ratio is None else f" ({ratio:.2f}x)")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Encode, decode and memory against the pixels, a line for each codec."""
    figure = new_figure(15, 4.5)
    panels = figure.subplots(1, 3)
    for panel, column, label in zip(
        panels, ("encode", "decode", "peak_mb"), ("encode (s)", "decode (s)", "peak memory (MB)"), strict=True
    ):
        for codec in dict.fromkeys(row.codec for row in rows):
            chosen = [row for row in rows if row.codec == codec and getattr(row, column) is not None]
            pixels = [row.width * row.height / 1e6 for row in chosen]
            panel.plot(pixels, [getattr(row, column) for row in chosen], "o-", label=codec)
        panel.set(xscale="log", yscale="log", xlabel="picture (million pixels)", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    save_figure(figure, path)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("codec_speed"), help="folder for the table and the plot")
    parser.add_argument("--codec", default=DEFAULT_MODEL, help="a trained codec, by name or path")
    parser.add_argument("--photo", type=Path, help="a picture to resize; by default smooth noise")
    parser.add_argument("--sizes", nargs="+", default=["256x171", "512x341", "768x512", "1536x1024", "4096x2731"])
    parser.add_argument("--entries", nargs="+", default=[OURS, *PEERS, *CLASSICAL], choices=[OURS, *PEERS, *CLASSICAL])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=60, help="seconds; slower codecs sit out larger pictures")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see whether the script runs")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    entries, rows = list(arguments.entries), []
    description = f"{machine(arguments.threads)}; median of {arguments.rounds} rounds"
    print(description, flush=True)
    sizes = [tuple(int(side) for side in size.split("x")) for size in arguments.sizes]
    for size in sorted(sizes):
        common = (size, arguments.codec, arguments.photo, arguments.threads, arguments.small)
        made = measure([Job(entry, *common) for entry in entries], arguments.rounds)
        rows += made
        entries = [row.codec for row in made if row.encode + row.decode < arguments.patience]
        print(f"{size[0]} x {size[1]} pixels: done", flush=True)
        text = f"{description}\n\n{table(rows)}"
        write_text(arguments.output / "codec_speed.md", text)  # after each size: a run may take long
        write_csv(rows, arguments.output / "codec_speed.csv")
    plot(rows, arguments.output / "codec_speed.png")
    print(text)


if __name__ == "__main__":
    main()
