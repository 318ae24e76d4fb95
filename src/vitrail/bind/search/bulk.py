"""Many files of several senses: which is which, and their vectors, whatever is wrong with some of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.bind.modalities import MODALITIES
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBind
from vitrail.bind.search.index import Embedded, Source
from vitrail.bind.spans import Span
from vitrail.data.corrupt import TOO_LARGE, CorruptSample
from vitrail.data.images import walk
from vitrail.data.video import SUFFIXES, read_tracks
from vitrail.errors import VitrailError


def sort_files(
    folder: Path, patterns: Mapping[str, str] | None = None, aside: Path | None = None
) -> tuple[list[Source], int]:
    """The files at any depth below a folder that are of some sense, in order of name.

    Args:
        folder: hidden files and folders in it are left aside, and links are followed: see `vitrail.data.images.walk`.
        patterns: pattern of names relative to `folder` -> sense, for files that suffixes do not tell: depth and heat
            come as pictures. The first that fits counts.
        aside: a folder whose files are left aside too.

    Returns:
        The files, and how many more there were that are of no known sense.

    Raises:
        FileError: a folder cannot be read.
    """
    sources, unknown = [], 0
    aside = aside and aside.resolve()
    for path in sorted(folder / name for name in walk(folder)):
        if not path.is_file() or (aside is not None and aside in path.resolve().parents):
            continue
        name = path.relative_to(folder).as_posix()
        modality = modality_of(name, patterns)
        if modality is None:
            unknown += 1
        else:
            sources.append(Source(path, name, modality))
    return sources, unknown


def modality_of(name: str, patterns: Mapping[str, str] | None = None) -> str | None:
    """The sense of the file called `name`, by the first pattern that fits or by its suffix; None: of none."""
    for pattern, modality in (patterns or {}).items():
        if fnmatchcase(name, pattern):
            return modality
    suffix = Path(name).suffix.lower()
    return next((modality for modality, cls in MODALITIES.items() if suffix in cls.suffixes), None)


def with_sound(sources: Sequence[Source], beside: bool = True) -> list[Source]:
    """The same files, and after each video that has one, its sound track as a source of its own.

    A video file without pictures is its sound alone.

    Args:
        sources: as `sort_files` finds them.
        beside: whether sound counts that has pictures beside it.
    """
    found = []
    for source in sources:
        senses = [source.modality]
        if source.modality == "image" and source.path.suffix.lower() in SUFFIXES:
            with suppress(VitrailError):  # whoever reads the pictures will say what is wrong
                tracks = read_tracks(source.path)
                if tracks.sound and not tracks.pictures:
                    senses = ["audio"]
                elif tracks.sound and beside:
                    senses = ["image", "audio"]
        found += [replace(source, modality=sense) for sense in senses]
    return found


def embed_sources(
    model: ImageBind, sources: Sequence[Source], batch_size: int = 16, timed: bool = False
) -> list[Embedded | VitrailError]:
    """Files to their vectors, or to what is wrong with them.

    Args:
        model: in evaluation mode.
        sources: of senses that it has.
        batch_size: clips that are encoded at a time.
        timed: of what lasts, a vector for each clip, of as many clips as leave nothing out, with its time span;
            otherwise one for each file.

    Raises:
        VitrailError: a sense that the model does not have.
    """
    results: dict[int, Embedded | VitrailError] = {}
    for name in dict.fromkeys(source.modality for source in sources):
        modality: Any = model.modality(name)
        if timed and hasattr(modality, "clips"):
            modality = replace(modality, clips="cover")
        paths = {number: source.path for number, source in enumerate(sources) if source.modality == name}
        rows: list[tuple[int, Span | None]] = []
        failed: dict[int, VitrailError] = {}
        vectors = model.embed_clips(name, _parts(modality, paths, timed, rows, failed), batch_size=batch_size).numpy()
        own: dict[int, list[int]] = {number: [] for number in paths}
        for row, (owner, _) in enumerate(rows):
            own[owner].append(row)
        for number, its in own.items():
            if number not in failed and not np.isfinite(vectors[its]).all():
                failed[number] = VitrailError(f"Cannot embed {paths[number]}: {TOO_LARGE}; leave it out.")
            results[number] = failed.get(number) or Embedded([rows[row][1] for row in its], vectors[its])
    return [results[number] for number in range(len(sources))]


def _parts(
    modality: Modality,
    paths: Mapping[int, Path],
    timed: bool,
    rows: list[tuple[int, Span | None]],
    failed: dict[int, VitrailError],
) -> Iterator[tuple[int, Tensor]]:
    """Rows of vectors and clips of each; notes whose rows they are, and which files cannot be read."""
    for number, path in paths.items():
        try:
            for place, (span, clips) in enumerate(modality.parts(path)):
                if timed or not place:
                    rows.append((number, span if timed else None))
                yield len(rows) - 1, clips
        except CorruptSample as error:
            failed[number] = VitrailError(f"Cannot read {error.path}: {error.reason}; mend it or leave it out.")
        except VitrailError as error:
            failed[number] = error
