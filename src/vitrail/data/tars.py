"""WebDataset shards, tar files of `key.jpg`, `key.cls`, `key.json`, read sample by sample in any order."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vitrail.data.augmentation import Transform
from vitrail.data.corrupt import CorruptSample
from vitrail.data.images import SUFFIXES, read_image
from vitrail.data.labels import NO_LABEL, LabelEncoder
from vitrail.data.paths import PathIndex
from vitrail.data.samples import LabelledImage, UnlabelledImage, as_sample
from vitrail.data.shards import Member, open_shard, read_members, read_span
from vitrail.errors import FileError
from vitrail.files import atomic_path, cache_folder

FORMAT = 1  # of the stored index


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the images of one shard lie.

    Attributes:
        names: of the images' members.
        offsets: [n] int64, bytes from the start of the shard.
        sizes: [n] int64, bytes.
        codes: [n] int32, the position of the label in `values`, NO_LABEL without one.
        values: the distinct labels as text.
    """

    names: PathIndex
    offsets: np.ndarray
    sizes: np.ndarray
    codes: np.ndarray
    values: tuple[str, ...]


class TarImages:
    """The images of tar shards.

    Members that share their path up to the first dot of the name, one after the other, are one sample; samples without
    an image are passed over. The headers of a shard are read once; where its images lie is then stored beside it, or
    in the cache folder where that is not allowed, and read from there until the shard's size or time changes.

    Args:
        shards: paths of tar files, not compressed.
        transform: of each picture.
        label: the suffix of the members that hold labels, a number or a name of a class, or else a field of the .json
            members; None for no labels. Shards in which no sample has one give images without labels.
        classes: names of the classes by number.
        at_least: as in `read_image`.

    Raises:
        FileError: a shard is missing, truncated, damaged or no plain tar file, none has an image, or some samples have
            a label and some none.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        transform: Transform,
        *,
        label: str | None = "cls",
        classes: Sequence[str] | None = None,
        at_least: int | None = None,
    ):
        self.shards = PathIndex.build(str(shard) for shard in shards)
        self.transform = transform
        self.at_least = at_least
        indices, encoder = [], LabelEncoder()
        for shard in shards:
            index = index_shard(Path(shard), label)
            indices.append(index)
            for code in index.codes:
                encoder.add(None if code == NO_LABEL else index.values[code])
        self._first = np.cumsum([0, *(len(index.names) for index in indices)])
        self._names = [index.names for index in indices]
        if not len(self):
            raise FileError(
                f"There is no image in {', '.join(map(str, shards)) or 'no shards'}; give tars with images."
            )
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self.labels, self.classes = None, None
        if encoder.values:
            if NO_LABEL in encoder.codes:
                name = self._place(encoder.codes.index(NO_LABEL))[1]
                raise FileError(f"{name} has no label {label!r}, but others have; add it, or read without labels.")
            self.labels, self.classes = encoder.encode(classes, shards[0])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, number: int) -> LabelledImage | UnlabelledImage:
        number = range(len(self))[number]
        shard, name = self._place(number)
        try:
            data = read_span(Path(shard), int(self._offsets[number]), int(self._sizes[number]))
        except OSError as error:
            raise CorruptSample(name, error.strerror or str(error)) from None
        image = read_image(io.BytesIO(data), name=name, at_least=self.at_least)
        return as_sample(self.transform(image), self.labels, number)

    def _place(self, number: int) -> tuple[str, str]:
        """The shard of a sample, and what errors call the sample."""
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        path = self.shards[shard]
        return path, f"{path}/{self._names[shard][number - int(self._first[shard])]}"


def index_shard(shard: Path, label: str | None) -> ShardIndex:
    """The index of a shard: as stored, or made from its headers and stored."""
    try:
        status = shard.stat()
    except OSError as error:
        raise FileError(f"Cannot read {shard}: {error.strerror}; check the path.") from None
    stamp = json.dumps([FORMAT, status.st_size, status.st_mtime_ns, label])
    hidden = cache_folder() / "tars" / f"{hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:32]}.npz"
    places = (shard.with_name(f".{shard.name}.index.npz"), hidden)
    for place in places:
        if (index := _load(place, stamp)) is not None:
            return index
    index = _scan(shard, label)
    for place in places:
        try:
            _store(place, stamp, index)
            break
        except (FileError, OSError):
            continue  # neither place can be written to: the next run reads the headers again
    return index


def _load(place: Path, stamp: str) -> ShardIndex | None:
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            values = tuple(json.loads(str(stored["values"])))
            names = PathIndex(stored["text"], stored["ends"])
            return ShardIndex(names, stored["offsets"], stored["sizes"], stored["codes"], values)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _store(place: Path, stamp: str, index: ShardIndex) -> None:
    with atomic_path(place) as temporary:
        np.savez(
            temporary,
            stamp=np.array(stamp),
            values=np.array(json.dumps(index.values)),
            text=index.names.text,
            ends=index.names.ends,
            offsets=index.offsets,
            sizes=index.sizes,
            codes=index.codes,
        )


def _scan(shard: Path, label: str | None) -> ShardIndex:
    images: list[Member] = []
    encoder = LabelEncoder()
    try:
        for image, text in _samples(shard, label):
            images.append(image)
            encoder.add(text)
    except OSError as error:
        raise FileError(f"Cannot read {shard}: {error.strerror}; check its rights.") from None
    return ShardIndex(
        PathIndex.build(image.name for image in images),
        np.array([image.offset for image in images], dtype=np.int64),
        np.array([image.size for image in images], dtype=np.int64),
        np.frombuffer(encoder.codes.tobytes(), dtype=np.int32),
        tuple(encoder.values),
    )


def _samples(shard: Path, label: str | None) -> Iterator[tuple[Member, str | None]]:
    """The image and the label, as text, of each sample."""
    with open_shard(shard) as file:
        for _, members in groupby(read_members(shard), key=attrgetter("key")):
            image, texts = None, dict[str, str | None]()
            for member in members:
                if member.suffix in SUFFIXES and image is None:
                    image = member
                elif label is not None and member.suffix in (label, "json"):
                    file.seek(member.offset)
                    name = f"{shard}/{member.name}"
                    texts[member.suffix] = _label(file.read(member.size), member.suffix, label, name)
            if image is not None:
                yield image, texts.get(label or "") or texts.get("json")


def _label(data: bytes, suffix: str, label: str, name: str) -> str | None:
    try:
        if suffix == label:
            return data.decode("utf-8").strip()
        fields = json.loads(data)
    except ValueError as error:
        raise FileError(f"Cannot read the label in {name}: {error}.") from None
    value = fields.get(label) if isinstance(fields, dict) else None
    return None if value is None else str(value)
