"""Many files of several senses: which is which, and their vectors, whatever is wrong with some of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from vitrail.bind.index import Embedded, Source
from vitrail.bind.modalities import MODALITIES
from vitrail.bind.model import ImageBind
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import VitrailError


def sort_files(folder: Path, patterns: Mapping[str, str] | None = None) -> tuple[list[Source], int]:
    """The files at any depth below a folder that are of some sense, in order of name.

    Args:
        folder: hidden files and folders in it are left aside.
        patterns: pattern of names relative to `folder` -> sense, for files that suffixes do not tell: depth and heat
            come as pictures. The first that fits counts.

    Returns:
        The files, and how many more there were that are of no known sense.
    """
    sources, unknown = [], 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts) or not path.is_file():
            continue
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


def embed_sources(model: ImageBind, sources: Sequence[Source], batch_size: int = 16) -> list[Embedded | VitrailError]:
    """Files to their vectors, or to what is wrong with them.

    Args:
        model: in evaluation mode.
        sources: of senses that it has.
        batch_size: clips that are encoded at a time.

    Raises:
        VitrailError: a sense that the model does not have.
    """
    results: list[Embedded | VitrailError | None] = [None] * len(sources)
    for name in dict.fromkeys(source.modality for source in sources):
        modality = model.modality(name)
        chosen = [(number, source) for number, source in enumerate(sources) if source.modality == name]

        def readable(chosen: Iterable[tuple[int, Source]] = chosen) -> Iterator[tuple[int, Tensor]]:
            for number, source in chosen:
                try:
                    yield number, modality.read(source.path)  # noqa: B023, used before the next one
                except CorruptSample as error:
                    results[number] = VitrailError(
                        f"Cannot read {source.path}: {error.reason}; mend it or leave it out."
                    )
                except VitrailError as error:
                    results[number] = error

        vectors = model.embed_clips(name, readable(), len(sources), batch_size).numpy()
        for number, _ in chosen:
            if results[number] is None:
                results[number] = Embedded([None], vectors[number][None])
    return [result for result in results if result is not None]
