r"""Files a second and memory of each sense beside the official structure; the huge model's memory; search.

    python benchmarks/bind_speed.py --data DATA --size tiny --output bind_speed
    python benchmarks/bind_speed.py --data DATA --size huge --rounds 3 --output bind_speed_huge
    python benchmarks/bind_speed.py --parts memory --data DATA --output bind_memory
    python benchmarks/bind_speed.py --parts index --threads 2 --output bind_index

DATA holds `clips` (videos), `esc10` (folders of sounds), `roadscene` (`visible`, `thermal`), `rgbd-7scenes`
(`*.depth.png`) and `utd-mhad` (`inertial.npz`). The peer is `bind_peers.py`, with the same random weights; how far its
vectors are from ours stands beside the times. It needs torchaudio.

speed: files go through reading (decoding), preparing (decoded files to inputs) and network, each timed; the two take
turns, and times are medians over rounds. Memory is the peak of a fresh process that embeds one file with one encoder.

memory: a file with random weights in the layout of `imagebind_huge.pth` (4.8 GB, in the folder of temporary files) is
loaded with matrices as float32, bfloat16, int8, and as int8 from a file of int8: each in a process of its own, which
embeds one picture. What is mapped from a file the system can take back whenever memory is short; the rest is own.

index: vectors around random centres; exact search, and the approximate one with the recall that it measured.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from codec_peers import Stopwatch
from torch import Tensor

from vitrail.bind.checkpoints.official import to_official
from vitrail.bind.model import ImageBind, ImageBindConfig, imagebind_huge, imagebind_tiny
from vitrail.bind.search.index import Embedded, Index, Source
from vitrail.bind.search.searcher import Searcher
from vitrail.tables import markdown_table, write_table

KINDS = ("image", "video", "text", "audio", "depth", "thermal", "imu")
PHASES = ("reading", "preparing", "network")
DECODERS = {  # what reads files, by where it is called from
    "image": ("vitrail.bind.modalities.image", "read_image"),
    "depth": ("vitrail.bind.modalities.depth", "grey_values"),
    "thermal": ("vitrail.bind.modalities.thermal", "grey_values"),
    "imu": ("vitrail.bind.modalities.imu", "read_recording"),
}
SPEED_HEADER = ("files", "whose", "files/s", "reading (ms)", "preparing", "network", "sum", "peak MB", "difference")


def find_files(kind: str, data: Path, folder: Path, count: int) -> list[Any]:
    """Real files of one kind, spread over what there is; motion is written into `folder`."""
    if kind == "text":
        names = sorted(path.name[6:] for path in (data / "esc10").iterdir() if path.is_dir())
        return [f"a recording of a {name.lower()}." for name in names][:count]
    if kind == "imu":
        with np.load(data / "utd-mhad" / "inertial.npz") as sequences:
            for number, name in enumerate(sequences.files[:count]):
                np.savez(folder / f"{number:03}.npz", values=sequences[name], rate=50.0)
        return sorted(folder.glob("*.npz"))
    patterns = {
        "image": "roadscene/visible/*",
        "video": "clips/*.mp4",
        "audio": "esc10/*/*.ogg",
        "depth": "rgbd-7scenes/*.depth.png",
        "thermal": "roadscene/thermal/*",
    }
    found = sorted(data.glob(patterns[kind]))
    return found[:: max(1, len(found) // count)][:count]


def build(kind: str, size: str) -> ImageBind:
    """The model of one sense with random weights."""
    name = "image" if kind == "video" else kind
    config = imagebind_huge() if size == "huge" else imagebind_tiny()
    modality = config.modalities[name]
    if name == "imu":
        modality = replace(modality, acceleration="g", rotation="deg/s", windows="centre")
    torch.manual_seed(0)
    return ImageBind(ImageBindConfig(config.dimension, {name: modality})).eval()


def watched(watch: Stopwatch, function: Callable) -> Callable:
    @wraps(function)
    def inside(*arguments: Any, **options: Any) -> Any:
        with watch("reading"):
            return function(*arguments, **options)

    return inside


def watched_iterator(watch: Stopwatch, function: Callable) -> Callable:
    @wraps(function)
    def inside(*arguments: Any) -> Iterator[Any]:
        rest = function(*arguments)
        while True:
            with watch("reading"):
                item = next(rest, None)
            if item is None:
                return
            yield item

    return inside


def our_reader(kind: str, modality: Any, watch: Stopwatch) -> Callable[[Any], Tensor]:
    """`modality.read`, what decodes files in it timed apart."""

    def read(source: Any) -> Tensor:
        with ExitStack() as stack:
            for place, name, wrap in decoders(kind):
                stack.enter_context(patch.object(place, name, wrap(watch, getattr(place, name))))
            with watch("preparing"):
                return modality.read(source)

    return read


def decoders(kind: str) -> list[tuple[Any, str, Callable]]:
    if kind == "video":
        image, video = import_module("vitrail.bind.modalities.image"), import_module("vitrail.data.video")
        return [(image, "open_video", watched), (video.Video, "clips", watched_iterator)]
    if kind == "audio":
        audio, sound = import_module("vitrail.bind.modalities.audio"), import_module("vitrail.data.audio")
        return [(audio, "open_sound", watched), (sound.Sound, "samples", watched)]
    if kind == "text":
        return []
    module, name = DECODERS[kind]
    return [(import_module(module), name, watched)]


def peer_reader(kind: str, watch: Stopwatch) -> Callable[[Any], Tensor]:
    from bind_peers import READERS

    reader = READERS[kind]

    def read(source: Any) -> Tensor:
        with watch("reading"):
            decoded = reader.read(source)
        with watch("preparing"):
            return reader.prepare(decoded)

    return read


@torch.inference_mode()
def take_turns(kind: str, files: list[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds of milliseconds a file: whose -> phase -> ms; and how far the vectors are apart."""
    from bind_peers import Peer

    torch.set_num_threads(arguments.threads)
    model = build(kind, arguments.size)
    ((name, modality),) = model.config.modalities.items()
    peer = Peer(model, name)
    watches = {whose: Stopwatch() for whose in ("ours", "official")}
    readers = {"ours": our_reader(kind, modality, watches["ours"]), "official": peer_reader(kind, watches["official"])}
    networks = {"ours": lambda inputs: model.encode({name: inputs})[name], "official": peer}
    few = [readers["ours"](file)[None] for file in files[: arguments.network_files]]
    results: dict[str, dict[str, list[float]]] = {whose: {phase: [] for phase in PHASES} for whose in readers}
    inputs: dict[str, list[Tensor]] = {}
    vectors: dict[str, Tensor] = {}
    for turn in range(arguments.rounds + 1):
        for whose in ("ours", "official") if turn % 2 else ("official", "ours"):
            watch = watches[whose]
            watch.seconds.clear()
            inputs[whose] = [readers[whose](file)[None] for file in files]
            begun = perf_counter()
            vectors[whose] = torch.cat([networks[whose](one) for one in few])
            taken = perf_counter() - begun
            if turn:  # the first does not count
                for phase in ("reading", "preparing"):
                    results[whose][phase].append(1000 * watch.seconds[phase] / len(files))
                results[whose]["network"].append(1000 * taken / len(few))
    medians = {
        whose: {phase: statistics.median(times) for phase, times in found.items()} for whose, found in results.items()
    }
    theirs = torch.cat([networks["official"](one) for one in inputs["official"][: len(few)]])
    difference = float((vectors["ours"] - vectors["official"]).abs().max())
    return {"ms": medians, "difference": difference, "cosine": float((vectors["ours"] * theirs).sum(dim=1).min())}


@torch.inference_mode()
def embed_one(kind: str, whose: str, file: Any, size: str, threads: int) -> float:
    """Peak MB of this process after one file."""
    torch.set_num_threads(threads)
    model = build(kind, size)
    ((name, modality),) = model.config.modalities.items()
    if whose == "ours":
        model.encode({name: modality.read(file)[None]})
    else:
        from bind_peers import Peer

        peer = Peer(model, name)
        del model
        peer(peer_reader(kind, Stopwatch())(file)[None])
    return memory()["VmHWM"]


def memory() -> dict[str, float]:
    """MB of 10^6 bytes of this process: VmHWM, the peak of all, and now, RssAnon, its own, not mapped from files."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.endswith("kB")]
    return {line[0][:-1]: int(line[1]) * 1024 / 1e6 for line in lines}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in a process forked from this one, which has imported everything and done nothing."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure_speed(arguments: argparse.Namespace) -> None:
    rows = []
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            files = find_files(kind, arguments.data, Path(folder), arguments.files)
            found = apart(take_turns, kind, files, arguments)
            for whose in ("ours", "official"):
                times = found["ms"][whose]
                most = apart(embed_one, kind, whose, files[0], arguments.size, arguments.threads)
                total = sum(times.values())
                row = [f"{len(files)} {kind}", whose, f"{1000 / total:.4g}"]
                row += [*(f"{times[phase]:.4g}" for phase in PHASES), f"{total:.4g}", f"{most:.0f}"]
                rows.append(
                    [*row, f"{found['difference']:.1e}" if whose == "ours" else f"cosine {found['cosine']:.4f}"]
                )
            pairs = [(found["ms"]["official"][phase], found["ms"]["ours"][phase]) for phase in PHASES]
            sums = [sum(values) for values in zip(*pairs, strict=True)]
            ratios = [f"{theirs / ours:.2f}x" if ours > 1e-3 else "" for theirs, ours in [*pairs, tuple(sums)]]
            rows.append([kind, "times faster", ratios[-1], *ratios, "", ""])
        print(markdown_table(SPEED_HEADER, rows[-3:]), flush=True)
        write_table(arguments.output / "speed", SPEED_HEADER, rows)


def write_huge(path: Path) -> None:
    """Random weights in the official layout, float32."""
    with torch.device("meta"):
        shapes = to_official(ImageBind(imagebind_huge()))
    generator = torch.Generator().manual_seed(0)
    torch.save({key: torch.randn(tensor.shape, generator=generator) * 0.02 for key, tensor in shapes.items()}, path)


class OwnMemory(threading.Thread):
    """The most memory of this process's own, which is not mapped from files, looked at every 10 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.most = max(self.most, memory()["RssAnon"])


def load_and_embed(path: Path, weights: str | None, senses: list[str] | None, picture: Path, threads: int) -> list[str]:
    torch.set_num_threads(threads)
    own = OwnMemory()
    own.start()
    begun = perf_counter()
    model = ImageBind.load(path, modalities=senses, weights=weights)
    loaded = perf_counter()
    model.embed({"image": [picture]})
    embedded = perf_counter()
    model.embed({"image": [picture]})
    again = perf_counter()
    own.ended.set()
    now = memory()
    times = [f"{seconds:.1f}" for seconds in (loaded - begun, embedded - loaded, again - embedded)]
    return [*times, *(f"{most:.0f}" for most in (own.most, now["RssAnon"], now["VmHWM"]))]


def save_int8(path: Path, output: Path) -> None:
    ImageBind.load(path, weights="int8").save(output)


def measure_memory(arguments: argparse.Namespace) -> None:
    header = (
        "matrices",
        "senses",
        "load (s)",
        "first picture (s)",
        "next (s)",
        "own MB, peak",
        "then",
        "with mapped MB, peak",
    )
    picture = find_files("image", arguments.data, Path(), 1)[0]
    folder = Path(tempfile.mkdtemp(prefix="bind_memory"))
    rows = []
    try:
        published, small = folder / "imagebind_huge.pth", folder / "int8.safetensors"
        apart(write_huge, published)
        apart(save_int8, published, small)
        cases = [("float32", published, None), ("bfloat16", published, "bfloat16"), ("int8", published, "int8")]
        cases.append((f"int8, from a file of {small.stat().st_size / 1e9:.2f} GB", small, None))
        for label, path, weights in cases:
            for senses in (None, ["image"]):
                found = apart(load_and_embed, path, weights, senses, picture, arguments.threads)
                rows.append([label, "image" if senses else "all", *found])
                print(*rows[-1], flush=True)
    finally:
        shutil.rmtree(folder)
    print(write_table(arguments.output / "memory", header, rows))


def measure_index(arguments: argparse.Namespace) -> None:
    import faiss

    faiss.omp_set_num_threads(arguments.threads)
    generator = np.random.default_rng(0)
    count, dimension = arguments.vectors, 1024

    def around_centres(number: int) -> np.ndarray:
        chosen = centres[generator.integers(len(centres), size=number)]
        vectors = chosen + generator.standard_normal((number, dimension), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    centres = generator.standard_normal((1000, dimension), dtype=np.float32)
    vectors, queries = around_centres(count), around_centres(arguments.queries)
    header = ("search", "vectors", "cells looked at", "recall@10", "ready (s)", "ms a query", "peak MB")
    rows, truth = [], (queries @ vectors.T).argsort(axis=1)[:, ::-1][:, :10]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.open_or_make(Path(folder) / "index", "random", dimension)
        sources = [Source(Path(folder) / str(n), f"{n:08}", ("image", "audio")[n % 2]) for n in range(count)]
        index.update(
            sources, lambda given: [Embedded([None], vectors[int(one.name)][None]) for one in given], every=8192
        )
        for label, options in (("exact", {"exact_below": count + 1}), ("approximate", {"exact_below": 0})):
            begun = perf_counter()
            searcher = Searcher(index, **options)
            ready = perf_counter() - begun
            times, right = [], 0
            for query, best in zip(queries, truth, strict=True):
                begun = perf_counter()
                hits = searcher.search(query, 10)
                times.append(perf_counter() - begun)
                right += len({int(hit.entry.name) for hit in hits} & set(best.tolist()))
            probes = "" if searcher.cells is None else f"{searcher.cells.probes} of {searcher.cells.count}"
            recall, milliseconds = right / (10 * len(queries)), 1000 * statistics.median(times)
            row = [label, str(count), probes, f"{recall:.3f}", f"{ready:.1f}", f"{milliseconds:.2f}"]
            rows.append([*row, f"{memory()['VmHWM']:.0f}"])
            print(*rows[-1], flush=True)
    print(write_table(arguments.output / "index", header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["speed"], choices=("speed", "memory", "index"))
    parser.add_argument("--data", type=Path, help="the folder of real files; not needed for index")
    parser.add_argument("--output", type=Path, default=Path("bind_speed"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--size", choices=("tiny", "huge"), default="tiny")
    parser.add_argument("--files", type=int, default=20, help="most files of a kind")
    parser.add_argument("--network-files", type=int, help="most files that go through the network (default: huge: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vectors", type=int, default=100_000, help="in the index")
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()
    arguments.network_files = arguments.network_files or (1 if arguments.size == "huge" else arguments.files)
    if arguments.data is None and arguments.parts != ["index"]:
        parser.error("--data is missing")
    for part in arguments.parts:
        if part == "index":
            apart(measure_index, arguments)
        else:
            {"speed": measure_speed, "memory": measure_memory}[part](arguments)


if __name__ == "__main__":
    main()
