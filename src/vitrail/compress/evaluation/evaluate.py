"""Codecs on a set of pictures: rates of real files, PSNR, MS-SSIM, FID and KID, BD-rates."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.compress.evaluation.classical import CLASSICAL
from vitrail.compress.evaluation.embedding import Embedding
from vitrail.data.images import read_image
from vitrail.errors import VitrailError
from vitrail.metrics.frechet import frechet_distance, hific_patches, kernel_distance
from vitrail.metrics.rate_distortion import bd_rate, bits_per_pixel
from vitrail.metrics.reconstruction import WINDOW, ms_ssim, psnr, to_decibels

PATCH = 256  # pixels a side of the patches of FID and KID
_PATCHES = 16  # through the feature network at once


class PictureCodec(Protocol):
    """What `vitrail.compress.Codec` and the classical codecs have in common."""

    def compress(self, image: Image.Image, quality: int) -> bytes:
        """The file of an RGB picture."""

    def decompress(self, data: bytes) -> Image.Image:
        """The picture in a file, RGB."""


@dataclass(frozen=True)
class Contender:
    """A codec in an evaluation."""

    name: str
    """In tables and plots."""
    codec: PictureCodec
    """Makes and reads the files."""
    qualities: tuple[int, ...]
    """Settings to evaluate."""


@dataclass(frozen=True)
class Measurement:
    """One picture by one codec at one quality."""

    image: str
    """The picture's path."""
    codec: str
    """The contender's name."""
    quality: int
    """Its setting."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    bytes: int
    """Of the file, everything included."""
    bpp: float
    """8 * bytes / (width * height)."""
    psnr: float
    """dB, of RGB values 0..255; infinite where nothing was lost."""
    ms_ssim: float | None
    """0..1, of RGB rounded to 8 bits; None for pictures with a side below 11 pixels."""


@dataclass(frozen=True)
class Summary:
    """One codec at one quality: means over pictures."""

    codec: str
    """The contender's name."""
    quality: int
    """Its setting."""
    images: int
    """How many pictures."""
    bpp: float
    """Mean of the pictures' rates."""
    psnr: float
    """Mean in dB."""
    ms_ssim: float | None
    """Mean; None where a picture has none."""
    ms_ssim_db: float | None
    """-10 log10(1 - mean MS-SSIM)."""
    fid: float | None
    """By HiFiC's patches of 256 pixels; None: not measured."""
    kid: float | None
    """By the same patches."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured."""

    measurements: tuple[Measurement, ...]
    """Picture by picture."""
    summaries: tuple[Summary, ...]
    """Codec by codec, each from its first quality to its last."""
    features: str | None
    """The network whose features FID and KID compare; None: not measured."""


def classical_contenders(names: Sequence[str]) -> list[Contender]:
    """The classical codecs called `names`, at their own lists of qualities."""
    return [Contender(name, CLASSICAL[name], CLASSICAL[name].qualities) for name in names]


def evaluate(
    contenders: Sequence[Contender],
    files: Sequence[str | Path],
    embedding: Embedding | None = None,
    done: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Compresses and decompresses every picture by every codec at every quality.

    Args:
        contenders: of different names.
        files: pictures, read as by `vitrail.data.images.read_image`.
        embedding: makes the features for FID and KID; None: without them.
        done: called after each picture.

    Raises:
        VitrailError: two codecs of one name, a picture that cannot be read or compressed, no picture large enough for
            FID and KID.
    """
    names = [contender.name for contender in contenders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise VitrailError(f"Two codecs are called {', '.join(twice)}; name each codec once.")
    if not files:
        raise VitrailError("There is no picture to evaluate on; name a folder that holds some.")
    measurements: list[Measurement] = []
    originals: list[Tensor] = []
    features: defaultdict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for file in files:
        image = read_image(file)
        if embedding is not None:
            originals += _embed(embedding, image)
        for contender in contenders:
            for quality in contender.qualities:
                data = contender.codec.compress(image, quality)
                decoded = contender.codec.decompress(data)
                measurements.append(measure(str(file), contender.name, quality, image, data, decoded))
                if embedding is not None:
                    features[contender.name, quality] += _embed(embedding, decoded)
        done()
    distances = _distances(originals, features) if embedding is not None else {}
    summaries = tuple(_summaries(measurements, distances))
    return Evaluation(tuple(measurements), summaries, None if embedding is None else embedding.name)


def measure(name: str, codec: str, quality: int, image: Image.Image, data: bytes, decoded: Image.Image) -> Measurement:
    """The figures of one picture and its file."""
    if decoded.size != image.size:
        raise VitrailError(f"{codec} made a picture of {decoded.size} pixels of one of {image.size}, {name}.")
    first, second = (_tensor(picture)[None].double() for picture in (image, decoded))
    similarity = float(ms_ssim(first, second)) if min(image.size) >= WINDOW else None
    rate = bits_per_pixel(len(data), image.width, image.height)
    error = float(psnr(first, second))
    return Measurement(name, codec, quality, image.width, image.height, len(data), rate, error, similarity)


def bd_rates(summaries: Sequence[Summary], reference: str) -> dict[str, tuple[float | None, float | None]]:
    """Each other codec's BD-rates against `reference` by PSNR and by MS-SSIM in dB, in percent.

    None where the two share no range of qualities, or one of them was evaluated at fewer than two.
    """
    codecs = dict.fromkeys(summary.codec for summary in summaries)
    by_psnr = {codec: [(s.bpp, s.psnr) for s in summaries if s.codec == codec] for codec in codecs}
    by_ms_ssim = {
        codec: [(s.bpp, s.ms_ssim_db) for s in summaries if s.codec == codec and s.ms_ssim_db is not None]
        for codec in codecs
    }
    return {
        codec: (bd_rate(by_psnr[reference], by_psnr[codec]), bd_rate(by_ms_ssim[reference], by_ms_ssim[codec]))
        for codec in codecs
        if codec != reference
    }


def _tensor(image: Image.Image) -> Tensor:
    """[3, H, W] in 0..1, float32."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _embed(embedding: Embedding, image: Image.Image) -> Iterator[Tensor]:
    patches = hific_patches(_tensor(image), PATCH)
    if len(patches):
        yield from (embedding(some).cpu() for some in patches.split(_PATCHES))


def _distances(
    originals: Sequence[Tensor], features: Mapping[tuple[str, int], Sequence[Tensor]]
) -> dict[tuple[str, int], tuple[float, float]]:
    if sum(map(len, originals)) < 2:
        raise VitrailError(
            f"FID and KID compare patches of {PATCH} x {PATCH} pixels, and the pictures hold fewer than two; "
            "give larger ones, or leave the features out."
        )
    first = torch.cat(list(originals))
    found = {}
    for setting, rows in features.items():
        second = torch.cat(list(rows))
        found[setting] = frechet_distance(first, second), kernel_distance(first, second)
    return found


def _summaries(
    measurements: Sequence[Measurement], distances: Mapping[tuple[str, int], tuple[float, float]]
) -> Iterator[Summary]:
    groups: defaultdict[tuple[str, int], list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.codec, measurement.quality].append(measurement)
    for (codec, quality), group in groups.items():
        similarities = [one.ms_ssim for one in group if one.ms_ssim is not None]
        similarity = _mean(similarities) if len(similarities) == len(group) else None
        yield Summary(
            codec,
            quality,
            len(group),
            _mean([one.bpp for one in group]),
            _mean([one.psnr for one in group]),
            similarity,
            None if similarity is None else to_decibels(similarity),
            *distances.get((codec, quality), (None, None)),
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
