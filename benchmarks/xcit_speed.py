r"""Images per second and peak memory against resolution (Table 3.1, Figures 3.2 and 3.4), beside the peers.

    python benchmarks/xcit_speed.py --output speed
    python benchmarks/xcit_speed.py --output speed --device cuda --dtypes bfloat16 \
        --sizes 224 384 512 1024 2048 --pixels-per-batch 3211264 --compiled

Ours, plain and optimized for inference, and timm's XCiT have the same random weights; ratios are to timm's, eager. The
models take turns, and a ratio is the median of the ratios of the rounds, so that a machine that changes its pace in
between does less harm. Memory is the peak of one forward pass above the loaded model and its input: what PyTorch's
allocator counts on CUDA, in the same process, so that a model is compiled once; on Linux the resident memory of a
fresh process. A model that runs out of memory has no numbers, and the others go on. `--forms` adds XCiT with either
form of its attention at all sizes of more tokens than channels (below, there is one form): where they meet is where
the optimized one should change. Writes speed.csv, speed.md, and two plots.
"""

import argparse
import csv
import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass, fields, replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import matplotlib
import timm
import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

from vitrail.backbones.xcit_inference import optimize_for_inference
from vitrail.files import atomic_path, write_text
from vitrail.weights import create_model
from vitrail.weights.convert import to_timm

matplotlib.use("Agg")

import matplotlib.pyplot as plt

OURS, OPTIMIZED, TIMM = "ours", "ours, optimized", "timm"
# Tokens from which on attention takes its covariance form; None: the default.
FORMS = {OPTIMIZED: None, "ours, covariance form": 0, "ours, queries and keys": sys.maxsize}
COMPILED = ", compiled"
PEERS = {
    "DeiT-S": "deit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ResNet-50": "resnet50",
}


@dataclass(frozen=True)
class Job:
    """One model at one size, as a process of its own can be told."""

    xcit: str
    entry: str
    size: int
    batch: int
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class Row:
    """A line of speed.csv; None where the model ran out of memory or, for memory, where it cannot be measured."""

    device: str
    dtype: str
    threads: int
    size: int
    batch: int
    model: str
    images_per_second: float | None
    times_timm: float | None
    memory_mb: float | None
    times_timm_memory: float | None


class OutOfMemoryError(Exception):
    """The machine's memory does not hold what a model needs."""


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text


def build(job: Job) -> nn.Module:
    """The entry's model with random weights, the same for all that are XCiT."""
    torch.manual_seed(0)
    name = job.entry.removesuffix(COMPILED)
    model: nn.Module
    if name in PEERS:
        options = {} if name == "ResNet-50" else {"img_size": job.size}
        model = timm.create_model(PEERS[name], **options)
    else:
        model = create_model(job.xcit).eval()
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if key.endswith(("running_mean", "bias")):
                    tensor.normal_(std=0.1)
    if name in FORMS:
        model = optimize_for_inference(model, FORMS[name])
    elif name == TIMM:
        peer = timm.create_model(f"{job.xcit}_224")
        peer.load_state_dict(to_timm(model))
        model = peer
    model = model.eval().requires_grad_(False).to(job.device, getattr(torch, job.dtype))
    if job.entry.endswith(COMPILED):
        model.compile(dynamic=False, options={"freezing": job.device == "cpu"})
    return model


def images(job: Job) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(job.batch, 3, job.size, job.size, generator=generator).to(job.device, getattr(torch, job.dtype))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(model: nn.Module, inputs: Tensor) -> float:
    """One forward pass."""
    synchronize(inputs.device.type)
    start = time.perf_counter()
    model(inputs)
    synchronize(inputs.device.type)
    return time.perf_counter() - start


def allocated(model: nn.Module, inputs: Tensor) -> int:
    """Bytes on the GPU at the peak of one forward pass, above what lies there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def speeds(jobs: Sequence[Job], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a forward pass by entry and round, and on CUDA MB at its peak by entry.

    An entry that runs out of memory is not among them.
    """
    torch.compiler.reset()  # or what earlier sizes compiled counts too, and from the ninth on models run eagerly
    ready: dict[str, tuple[nn.Module, Tensor]] = {}
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}

    def attempt(entry: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            ready.pop(entry, None)
            times.pop(entry, None)
            peaks.pop(entry, None)

    def warm_up(job: Job) -> None:
        ready[job.entry] = build(job), images(job)
        times[job.entry] = []
        seconds(*ready[job.entry])
        if job.device == "cuda":
            peaks[job.entry] = allocated(*ready[job.entry]) / 1e6

    with torch.no_grad():
        for job in jobs:
            attempt(job.entry, lambda job=job: warm_up(job))
        for _ in range(rounds):
            for entry in list(ready):
                attempt(entry, lambda entry=entry: times[entry].append(seconds(*ready[entry])))
    return times, peaks


def resident(field: str) -> int:
    """A field of this process' status, in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def peak_memory(job: Job) -> float | None:
    """Bytes at the peak of one forward pass, above the model and its input."""
    torch.set_num_threads(job.threads)
    try:
        with torch.no_grad():
            model, inputs = build(job), images(job)
            model(inputs)
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what the first pass has left
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            before = resident("VmRSS")
            model(inputs)
            return resident("VmHWM") - before
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise OutOfMemoryError from None
        raise
    except OSError:
        return None


def memory(job: Job) -> float | None:
    """`peak_memory` in a process of its own, in MB of 10^6 bytes."""
    if platform.system() != "Linux":
        return None
    # A fork server imports once for all, and has run nothing: a process that has run threads must not be forked.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(["timm", "vitrail.backbones.xcit_inference", "vitrail.weights", "matplotlib.pyplot"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            peak = pool.submit(peak_memory, job).result()
        except (OutOfMemoryError, BrokenProcessPool):  # the latter when the kernel ended it
            return None
    return None if peak is None else peak / 1e6


def measure(jobs: Sequence[Job], rounds: int) -> list[Row]:
    """A row for each job; the jobs differ in their entry alone."""
    on_cpu = jobs[0].device == "cpu"
    memories = {job.entry: memory(job) for job in jobs} if on_cpu else {}
    times, peaks = speeds(jobs, rounds)
    memories |= peaks
    peer, peer_memory = times.get(TIMM), memories.get(TIMM)
    rows = []
    for job in jobs:
        taken, peak = times.get(job.entry), memories.get(job.entry)
        rows.append(
            Row(
                job.device,
                job.dtype,
                job.threads,
                job.size,
                job.batch,
                job.entry if job.entry in PEERS else f"{job.xcit} {job.entry}",
                job.batch / statistics.median(taken) if taken else None,
                statistics.median(a / b for a, b in zip(peer, taken, strict=True)) if peer and taken else None,
                peak,
                peak / peer_memory if peak is not None and peer_memory else None,
            )
        )
    return rows


def machine(device: str, threads: int) -> str:
    """What the numbers were measured on."""
    if device == "cuda":
        processor = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
        instructions = torch.backends.cpu.get_cpu_capability()
        processor = f"{names[0] if names else platform.processor()}, {instructions}, threads: {threads}"
    return f"{processor}; Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"


def table(rows: Sequence[Row]) -> str:
    """Markdown: a block for each type, a line for each model, a group of columns for each size."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        chosen = [row for row in rows if row.dtype == dtype]
        sizes = list(dict.fromkeys((row.size, row.batch) for row in chosen))
        lines += ["", f"{dtype}: images/s (times timm), peak memory in MB (times timm)", ""]
        lines.append("| model | " + " | ".join(f"{size}², batch {batch} | memory" for size, batch in sizes) + " |")
        lines.append("|---" + "|---:|---:" * len(sizes) + "|")
        for model in dict.fromkeys(row.model for row in chosen):
            cells = []
            for row in (row for row in chosen if row.model == model):
                cells += [cell(row.images_per_second, row.times_timm), cell(row.memory_mb, row.times_timm_memory)]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:]) + "\n"


def cell(value: float | None, ratio: float | None) -> str:
    if value is None:
        return "out of memory"
    return f"{value:.3g}" + ("" if ratio is None else f" ({ratio:.2f}x)")


def plot(rows: Sequence[Row], column: str, label: str, path: Path) -> None:
    """`column` against the resolution, a panel for each type."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    size = (2 + 6 * len(dtypes), 4.5)
    figure, panels = plt.subplots(1, len(dtypes), figsize=size, squeeze=False, layout="constrained")
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        for model in dict.fromkeys(row.model for row in rows):
            points = [row for row in rows if (row.dtype, row.model) == (dtype, model)]
            points = [row for row in points if getattr(row, column) is not None]
            panel.plot([row.size for row in points], [getattr(row, column) for row in points], "o-", label=model)
        panel.set(xscale="log", yscale="log", xlabel="resolution (pixels)", ylabel=label, title=dtype)
        panel.set_xticks(sorted({row.size for row in rows}), sorted({str(row.size) for row in rows}, key=int))
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("speed"), help="folder for the table and the plots")
    parser.add_argument("--model", default="xcit_small_12_p16", help="an XCiT")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 384, 512, 1024])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, help="images at once, the same at all sizes")
    parser.add_argument("--pixels-per-batch", type=int, default=8 * 224**2, help="without --batch: at least one image")
    parser.add_argument("--forms", action="store_true", help="either form of XCA for many tokens too")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of timm and ours too, frozen on the CPU")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    entries = [TIMM, OURS, *(FORMS if arguments.forms else [OPTIMIZED])]
    if arguments.compiled:
        entries += [entry + COMPILED for entry in entries if entry != OURS]
    description = f"{machine(arguments.device, arguments.threads)}; median of {arguments.rounds} rounds"
    print(description, flush=True)
    rows: list[Row] = []
    for dtype in arguments.dtypes:
        for size in arguments.sizes:
            batch = arguments.batch or max(1, arguments.pixels_per_batch // size**2)
            job = Job(arguments.model, TIMM, size, batch, arguments.device, dtype, arguments.threads)
            rows += measure([replace(job, entry=entry) for entry in entries + arguments.peers], arguments.rounds)
            print(f"{dtype}, {size} pixels: done", flush=True)
            text = f"{description}\n\n{table(rows)}"
            write_text(arguments.output / "speed.md", text)  # after each size: a run may take long
            write_csv(rows, arguments.output / "speed.csv")
    plot(rows, "images_per_second", "images / s", arguments.output / "speed.png")
    plot(rows, "memory_mb", "peak memory above the model (MB)", arguments.output / "memory.png")
    print(text)


if __name__ == "__main__":
    main()
