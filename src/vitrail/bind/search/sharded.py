"""Very many files in tars, embedded by many processes, of one machine or of a cluster: Ray Data does the spreading.

The vectors come back to the one process that writes the index, in order, so that an index of tars is as safe as one of
files: what was killed goes on with the first file that is not in it, and finished tars are not opened again.
"""

import json
import logging
import os
import pickle
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from vitrail.bind.model import ImageBind
from vitrail.bind.search.bulk import embed_sources, modality_of
from vitrail.bind.search.index import Changes, Embedded, Index, Source
from vitrail.data.images import walk
from vitrail.data.shards import read_members
from vitrail.errors import FileError, VitrailError


@dataclass(frozen=True)
class Work:
    """How files become vectors."""

    model: str
    """A published name, a file or a run that every process can read."""
    device: str = "cpu"
    """Where each process computes."""
    batch_size: int = 16
    """Clips that are encoded at a time."""
    timed: bool = False
    """Of what lasts, a vector for each clip."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the model's senses, as for `ImageBind.load`."""


def list_shards(folder: Path, patterns: Mapping[str, str] | None = None) -> list[Source]:
    """The files of known senses in the tars at any depth below a folder, tar by tar.

    Args:
        folder: with files ending in .tar, found as by `vitrail.data.images.walk`.
        patterns: as for `vitrail.bind.search.bulk.sort_files`, of names such as "part-00.tar/0001.jpg".

    Raises:
        FileError: there is no tar, or one is damaged.
    """
    sources = []
    tars = sorted(folder / name for name in walk(folder) if name.endswith(".tar"))
    for path in tars:
        shard = path.relative_to(folder).as_posix()
        names = [f"{shard}/{member.name}" for member in read_members(path)]
        for name in dict.fromkeys(names):
            modality = modality_of(name, patterns)
            if modality is not None:
                sources.append(Source(path, name, modality))
    if not tars:
        raise FileError(f"There is no .tar in {folder}; name a folder that holds some.")
    return sources


def index_shards(
    index: Index,
    sources: Sequence[Source],
    work: Work,
    workers: int,
    done: Callable[[int], None] = lambda files: None,
) -> Changes:
    """Brings an index up to date with files in tars.

    A file counts as changed when its tar did.

    Args:
        index: what `Index.update` is called on.
        sources: of `list_shards`.
        work: how to embed.
        workers: processes that have a copy of the model each; with `RAY_ADDRESS` set, of that cluster.
        done: called with the number of files that have been seen to.

    Raises:
        VitrailError: Ray is missing, or another process is at work on the index.
    """
    ray = _load_ray()
    stale = groupby(index.stale(sources), lambda source: source.path)
    shards = [(path, [(source.name, source.modality) for source in some]) for path, some in stale]
    if not shards:
        return index.update(sources, lambda given: [], done=done)
    ours = not ray.is_initialized()
    if ours:
        _start(ray, workers)
    try:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        items = [{"path": str(path.resolve()), "members": json.dumps(members)} for path, members in shards]
        rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Embedder,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=1,
            num_gpus=1 if work.device.startswith("cuda") else 0,
        )
        made: Iterator[Any] = (pickle.loads(row["made"]) for row in rows.iter_rows())  # by our own processes
        changes = index.update(sources, lambda given: [next(made) for _ in given], done=done)
        next(made, None)  # so that Ray sees its end before it is shut down
        return changes
    finally:
        if ours:
            ray.shutdown()


class _Embedder:
    """A process's copy of the model: tars to the vectors of some of their files."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.model = ImageBind.load(work.model, device=work.device, settings=work.settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results: list[bytes] = []
        for path, members in zip(batch["path"], batch["members"], strict=True):
            with tempfile.TemporaryDirectory() as folder:
                made = self._embed(Path(path), json.loads(members), Path(folder))
            results += map(pickle.dumps, made)
        return {"made": results}

    def _embed(self, shard: Path, members: list[tuple[str, str]], folder: Path) -> list[Embedded | VitrailError]:
        sources = []
        with tarfile.open(shard) as tar:
            for number, (name, modality) in enumerate(members):
                place = folder / f"{number}{Path(name).suffix}"
                file = tar.extractfile(name.split(f"{shard.name}/", 1)[1])
                assert file is not None  # only files are listed
                place.write_bytes(file.read())
                sources.append(Source(place, name, modality))
        made = embed_sources(self.model, sources, self.work.batch_size, self.work.timed)
        return [
            VitrailError(str(one).replace(str(source.path), source.name)) if isinstance(one, VitrailError) else one
            for source, one in zip(sources, made, strict=True)
        ]


def _start(ray: Any, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # what happens is told by our own progress and errors
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"num_cpus": max(os.cpu_count() or 1, workers + 1), "include_dashboard": False}
    ray.init(**options)


def _load_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise VitrailError("Many processes need Ray, which is missing; pip install 'vitrail[bulk]'.") from None
    return ray
