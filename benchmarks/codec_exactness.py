r"""Files made under one configuration, decoded under many others: whether the indices are the same, to the last one.

    python benchmarks/codec_exactness.py --output codec_exactness --photos PHOTOS --files 1000
    python benchmarks/codec_exactness.py --output codec_exactness --codec runs/codec --photos PHOTOS --compiled

Each configuration is a fresh process: threads, oneDNN, instruction sets, four grids at once, torch.compile, CUDA where
there is one. Pictures are random crops of the photos (of noise without them), some qualities and orders of positions.
Beside mismatches, of which there must be none: the largest difference between the float64 logits of two configurations,
the smallest distance of a logit from a rounding boundary that the encoder's offsets have left, what rounding costs in
rate, and what float64 costs in time. Writes codec_exactness.md and codec_exactness.csv; fails where a file differs.
"""

import argparse
import csv
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from codec_speed import machine, open_codec
from PIL import Image
from torch import Tensor

import vitrail.compress.coding.grid
from vitrail.compress import Codec, Scheme
from vitrail.compress.coding.frequencies import MARGIN, choose_offset, code_length, frequencies, levels, margin
from vitrail.compress.storage import DEFAULT_MODEL
from vitrail.files import atomic_path, write_text

SIDES = (40, 64, 75, 96)  # of the crops, pixels: few, since a compiled prior is compiled for each grid
PROBE = (24, 32)  # positions of the grids whose logits are compared


@dataclass(frozen=True)
class Configuration:
    """How a process computes."""

    threads: int = 1
    mkldnn: bool = True
    capability: str = ""
    batch: int = 1
    compiled: bool = False
    device: str = "cpu"

    def __str__(self) -> str:
        changes = {name: value for name, value in asdict(self).items() if value != getattr(Configuration, name)}
        return ", ".join(f"{name} {value}" for name, value in changes.items()) or "as encoded"


def configurations(compiled: bool) -> list[Configuration]:
    capabilities = ["default", "avx2", "avx512"]
    best = torch.backends.cpu.get_cpu_capability().lower()
    capabilities = capabilities[: capabilities.index(best) + 1 if best in capabilities else 1]
    found = [
        Configuration(),
        Configuration(threads=2),
        Configuration(mkldnn=False),
        Configuration(batch=4),
        Configuration(threads=2, mkldnn=False, batch=4),
        *(Configuration(capability=name) for name in capabilities),
    ]
    if compiled:
        found.append(Configuration(compiled=True))
    if torch.cuda.is_available():
        found.append(Configuration(device="cuda"))
    return found


def pictures(photos: Path | None, count: int) -> list[Image.Image]:
    """Crops of several sizes, the same every time."""
    generator = np.random.default_rng(0)
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".png")) if photos else []
    sources, crops = [], []
    for path in paths[:: max(1, len(paths) // 50)]:
        with Image.open(path) as image:
            image.draft("RGB", (1024, 1024))
            sources.append(image.convert("RGB"))
    if not sources:
        sources.append(Image.fromarray(generator.integers(0, 256, (200, 300, 3), dtype=np.uint8)).resize((600, 400)))
    for number in range(count):
        source = sources[number % len(sources)]
        side = SIDES[number % len(SIDES)]
        left, top = (int(generator.integers(0, max(1, length - side))) for length in source.size)
        crops.append(source.crop((left, top, left + side, top + side)))
    return crops


def probe(codec: Codec) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, *PROBE, codec.autoencoder.parts)
    indices = torch.randint(0, codec.autoencoder.centroids, shape, generator=generator)
    return indices, torch.rand((1, *PROBE), generator=generator) < 0.5


def in_batch(context: Callable[[Tensor, Tensor], Tensor], batch: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The prior asked about several grids at once, of which the last is the one in question."""

    def function(indices: Tensor, known: Tensor) -> Tensor:
        others = torch.roll(indices.repeat(batch - 1, 1, 1, 1), 1, dims=2)
        return context(torch.cat([others, indices]), known.repeat(batch, 1, 1))[-1:]

    return function


def encode(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes codec, files, the indices in them, and the smallest margins."""
    torch.set_num_threads(1)
    codec = open_codec(arguments.codec, arguments.small)
    margins: list[float] = []

    def observed(logits: np.ndarray) -> int:
        offset = choose_offset(logits)
        margins.append(margin(logits, offset))
        return offset

    orders = [Scheme(), Scheme(), Scheme(), Scheme("confidence_doubling", 5)]
    files = []
    with patch.object(vitrail.compress.coding.grid, "choose_offset", observed):
        for number, image in enumerate(pictures(arguments.photos, arguments.files)):
            quality = codec.qualities[-1 - number // 4 % len(codec.qualities)]
            files.append(codec.compress(image, quality, orders[number % len(orders)]))
    torch.save(codec, folder / "codec")
    (folder / "files").write_bytes(pickle.dumps(files))
    (folder / "indices").write_bytes(pickle.dumps([codec._read(data, None)[1].indices for data in files]))
    costs = cost(codec, pictures(arguments.photos, min(arguments.files, 40)))
    write_text(folder / "encoded.json", json.dumps({"margin": min(margins, default=None), **costs}))


@torch.inference_mode()
def cost(codec: Codec, images: Sequence[Image.Image]) -> dict[str, float]:
    """Bits by rounded logits and integer tables, and by the exact probabilities; seconds a pass in both precisions."""
    exact = rounded = 0.0
    prior, quality = codec.networks.prior, codec.autoencoder.parts
    for image in images:
        grid = codec._read(codec.compress(image), None)[1].indices
        stages = Scheme().partition(*grid.shape[:2])
        indices = torch.from_numpy(grid)[None]
        for stage in range(1, int(stages.max()) + 1):
            chosen = stages == stage
            logits = prior.logits(prior.context(indices, (stages < stage)[None])[0][chosen], quality)
            truth = indices[0][chosen]
            exact -= logits.log_softmax(-1).gather(-1, truth[..., None]).sum().item() / np.log(2)
            table = frequencies(levels(logits.numpy(), choose_offset(logits.numpy())))
            rounded += code_length(np.take_along_axis(table, truth.numpy()[..., None], axis=-1))
    indices, known = probe(codec)
    single = codec.prior.float().optimize_for_inference()
    codec.prior.double()
    seconds: dict[torch.dtype, list[float]] = {torch.float64: [], torch.float32: []}
    for _ in range(5):
        for network in (prior, single):
            begun = time.perf_counter()
            context = network.context(indices, known)
            network.logits(context, quality)
            seconds[context.dtype].append(time.perf_counter() - begun)
    double, half = (statistics.median(times) for times in seconds.values())
    return {"exact_bits": exact, "rounded_bits": rounded, "float64_seconds": double, "float32_seconds": half}


def decode(folder: Path, configuration: Configuration) -> None:
    """Decodes all files; writes how many differ, and the logits of the probe."""
    torch.set_num_threads(configuration.threads)
    codec: Codec = torch.load(folder / "codec", weights_only=False)  # our own, of a minute ago
    prior = codec.networks.prior.to(configuration.device)
    warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # whenever oneDNN is switched
    onednn = nullcontext() if configuration.mkldnn else torch.backends.mkldnn.flags(enabled=False)
    with torch.inference_mode(), onednn:
        if configuration.batch > 1:
            prior.context = in_batch(prior.context, configuration.batch)  # type: ignore[method-assign]
        if configuration.compiled:
            prior.trunk.compile(dynamic=False)
        mismatches = 0
        truths = pickle.loads((folder / "indices").read_bytes())
        for data, truth in zip(pickle.loads((folder / "files").read_bytes()), truths, strict=True):
            _, grid, report = codec._read(data, None)
            mismatches += report.damage is not None or not np.array_equal(grid.indices, truth)
        indices, known = (tensor.to(configuration.device) for tensor in probe(codec))
        logits = prior.logits(prior.context(indices, known), codec.autoencoder.parts)
    np.save(folder / "logits.npy", logits.cpu().numpy())
    write_text(folder / "decoded.json", json.dumps({"mismatches": mismatches}))


def process(arguments: Sequence[str], capability: str, threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if capability:
        environment["ATEN_CPU_CAPABILITY"] = capability
    subprocess.run([sys.executable, __file__, *arguments], check=True, env=environment)


def run(arguments: argparse.Namespace, folder: Path) -> tuple[list[dict[str, object]], dict[str, float]]:
    """A row for each configuration, and what the encoder found."""
    passed = [f"--{name}={value}" for name in ("codec", "photos", "files") if (value := getattr(arguments, name))]
    small = ["--small"] if arguments.small else []
    process(["--folder", str(folder), "--role", "encode", *passed, *small], "", 1)
    encoded = json.loads((folder / "encoded.json").read_text())
    print("encoded", flush=True)
    rows: list[dict[str, object]] = []
    first = None
    for configuration in configurations(arguments.compiled):
        role = ["--folder", str(folder), "--role", json.dumps(asdict(configuration))]
        begun = time.perf_counter()
        process(role, configuration.capability, configuration.threads)
        logits = np.load(folder / "logits.npy")
        first = logits if first is None else first
        rows.append(
            {
                "configuration": str(configuration),
                "files": arguments.files,
                "mismatches": json.loads((folder / "decoded.json").read_text())["mismatches"],
                "largest_deviation": float(abs(logits - first).max()),
                "seconds": round(time.perf_counter() - begun, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows, encoded


def report(rows: Sequence[dict[str, object]], encoded: dict[str, float]) -> str:
    lines = ["| decoded with | files | mismatches | largest deviation of a logit | s |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['configuration']} | {row['files']} | {row['mismatches']} | {row['largest_deviation']:.2g} "
            f"| {row['seconds']} |"
        )
    rate = encoded["rounded_bits"] / encoded["exact_bits"] - 1 if encoded["exact_bits"] else 0.0
    slower = encoded["float64_seconds"] / encoded["float32_seconds"]
    margins = "none was needed" if encoded["margin"] is None else f"{encoded['margin']:.2g}"
    lines += [
        "",
        f"- smallest distance of a logit from a boundary in all files: {margins} (the encoder asks for {MARGIN:g})",
        f"- rounding of logits and tables costs {100 * rate:+.4f} % in rate ({encoded['exact_bits']:.0f} bits exactly)",
        f"- float64 takes {slower:.2f} times as long as float32 (a pass over {PROBE[0]} x {PROBE[1]} positions: "
        f"{encoded['float64_seconds']:.3f} s)",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("codec_exactness"), help="folder for the tables")
    parser.add_argument("--codec", default=DEFAULT_MODEL, help="a trained codec, by name or path")
    parser.add_argument("--photos", type=Path, help="a folder of photos to crop; by default noise")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the prior too, which takes minutes")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see whether the script runs")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.role == "encode":
        encode(arguments.folder, arguments)
        return
    if arguments.role:
        decode(arguments.folder, Configuration(**json.loads(arguments.role)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows, encoded = run(arguments, Path(folder))
    text = f"{machine(1)}\n\n{report(rows, encoded)}"
    write_text(arguments.output / "codec_exactness.md", text)
    with atomic_path(arguments.output / "codec_exactness.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(text)
    if any(row["mismatches"] for row in rows):
        sys.exit("Files differ.")


if __name__ == "__main__":
    main()
