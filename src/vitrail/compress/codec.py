"""Pictures to files and back: autoencoder, prior, stages and range coder together (Figure 5.2)."""

import copy
import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vitrail.compress.autoencoder import Autoencoder, InferenceAutoencoder
from vitrail.compress.coding.bitstream import MODEL_BYTES, Header
from vitrail.compress.coding.coder import Decoder, Encoder
from vitrail.compress.coding.frequencies import PRECISION, Integers, normalize
from vitrail.compress.coding.grid import Grid, GridCoder
from vitrail.compress.errors import CodecError, DamageError, DamageWarning, FormatError, ModelError
from vitrail.compress.prior import InferencePrior, Prior
from vitrail.compress.stages import Scheme

MAX_PIXELS = 2**26  # 67 million; a file of a few bytes may claim any size, and its picture needs memory


@dataclass(frozen=True)
class StageReport:
    """One stage of a file."""

    positions: int
    """Of the grid, in this stage."""
    bits: float
    """That its indices, offsets and check take in the stream."""


@dataclass(frozen=True)
class Report:
    """What a file holds."""

    header: Header
    """Size, quality and order."""
    size: int
    """Bytes of the file."""
    grid: tuple[int, int]
    """(h, w), rows and columns of positions."""
    stages: tuple[StageReport, ...]
    """The stages that could be decoded."""
    total_stages: int
    """The stages that the file should have."""
    damage: str | None
    """What is wrong from the first missing stage on, or behind the last, in one sentence; None: the file is whole."""

    @property
    def bits_per_pixel(self) -> float:
        """Of the file, everything included."""
        return 8 * self.size / (self.header.width * self.header.height)


@dataclass(frozen=True)
class Decoded:
    """A decoded picture, and how much of it was in the file."""

    image: Image.Image
    """RGB, of the original's size."""
    stages: int
    """How many stages were decoded; the rest of the grid is the prior's most probable guess."""
    total_stages: int
    """How many there should be."""
    damage: str | None
    """What is wrong with the file, in one sentence; None: nothing was found, as far as it was read."""


class Networks(NamedTuple):
    """The networks as a codec uses them."""

    autoencoder: InferenceAutoencoder
    prior: InferencePrior


class Codec:
    """Compresses and decompresses pictures with one trained model.

    A file decodes to the same indices on every machine: the prior runs in float64 and everything after it in integers
    (`vitrail.compress.coding.frequencies`). The picture that the decoder network makes of the indices may differ by
    rounding.

    Args:
        autoencoder: images to indices and back; it is put in evaluation mode.
        prior: for the same indices; a copy in float64 is kept.
        marginals: [M, V] integers, how often each centroid was chosen in training: the first stage's distribution.
        name: the model's permanent name, for messages.

    Attributes:
        fingerprint: SHA-256 of all weights, buffers and marginals. A file starts with its first 2 bytes, and every
            check of the file depends on all of it.
        histogram: the marginals as they were given.
    """

    def __init__(self, autoencoder: Autoencoder, prior: Prior, marginals: Integers | Tensor, name: str) -> None:
        self.autoencoder = autoencoder.eval()
        self.prior = copy.deepcopy(prior).double().eval()
        self.networks = Networks(self.autoencoder.optimize_for_inference(), self.prior.optimize_for_inference())
        self.name = name
        counts = np.asarray(marginals, dtype=np.int64)
        if counts.shape != (autoencoder.parts, autoencoder.centroids):
            raise CodecError(
                f"The marginal histogram of {name} is {counts.shape}, its model needs "
                f"({autoencoder.parts}, {autoencoder.centroids}); give it the histogram that it was trained with."
            )
        self.histogram = counts
        self.marginals = normalize(counts)
        self.grid_coder = GridCoder(self.networks.prior, self.marginals)
        self.fingerprint = _fingerprint([autoencoder, self.prior], counts)

    @classmethod
    def load(cls, source: str | Path | None = None, device: str | torch.device = "cpu") -> "Codec":
        """A codec by name or from a file: see `vitrail.compress.storage.load_codec`; None: the shipped default.

        Raises:
            VitrailError: there is no such codec, or the file is none.
        """
        from vitrail.compress.storage import load_codec

        return load_codec(source, device)

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None, half: bool = True) -> None:
        """Writes the codec to one file: see `vitrail.compress.storage.save_codec`."""
        from vitrail.compress.storage import save_codec

        save_codec(self, path, facts, half)

    @property
    def qualities(self) -> tuple[int, ...]:
        """What `compress` can be asked for, ascending; a codec that is not nested has one."""
        parts = self.autoencoder.parts
        return tuple(range(1, parts + 1)) if self.autoencoder.config.nested else (parts,)

    def check_quality(self, quality: int | None) -> int:
        """The quality that `compress` takes when it is asked for this one; None stands for the highest.

        Raises:
            CodecError: it is not among `qualities`.
        """
        if quality is None:
            return self.qualities[-1]
        if quality not in self.qualities:
            first, last = self.qualities[0], self.qualities[-1]
            choice = f"choose {first} to {last}" if first < last else f"it has {last} alone"
            raise CodecError(f"{self.name} has no quality {quality}; {choice}.")
        return int(quality)  # of numpy, perhaps

    @torch.inference_mode()
    def compress(self, image: Image.Image, quality: int | None = None, scheme: Scheme | None = None) -> bytes:
        """The file of a picture.

        Args:
            image: RGB (`vitrail.data.images.read_image` makes it of any other), 1 x 1 to 32768 x 32768 pixels, at most
                `MAX_PIXELS` of them.
            quality: how many sub-vectors of each position are sent, one of `qualities`; None: the highest.
            scheme: the order of the positions; None: the quincunx in 5 stages.

        Raises:
            CodecError: the picture or the quality cannot be had.
        """
        quality = self.check_quality(quality)
        if image.mode != "RGB":
            raise CodecError(
                f"The picture is {image.mode}, and the codec takes RGB; read it with vitrail.data.images.read_image."
            )
        _check_pixels(image.width, image.height)
        header = Header(self.fingerprint[:MODEL_BYTES], image.width, image.height, quality, scheme or Scheme())
        pixels = padded(np.asarray(image), self.autoencoder.factor)
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(*_placement(self.networks.autoencoder))
        indices = self.networks.autoencoder.encode(images.div_(255))[0, :, :, :quality].contiguous().cpu().numpy()
        packed = header.pack()
        stream = Encoder(packed + self.fingerprint)
        grid = Grid(indices, np.zeros(indices.shape[:2], dtype=bool))
        for _ in self.grid_coder.stages(stream, header.scheme, grid):
            pass
        return packed + stream.finish()

    def decompress(self, data: bytes, stages: int | None = None) -> Image.Image:
        """The picture in a file, RGB; warns with a `DamageWarning` where only its first stages could be read, or
        there is more than the picture.

        Args:
            data: of `compress`, possibly cut short.
            stages: how many stages to decode; None: all. The rest is filled in by the prior (Section 5.4.3).

        Raises:
            FormatError: the data are no Vitrail picture, or of more than `MAX_PIXELS` pixels.
            ModelError: the file was made with another model.
            DamageError: it is damaged or cut before the end of the first stage.
        """
        decoded = self.decode(data, stages)
        if decoded.damage is not None:
            warnings.warn(decoded.damage, DamageWarning, stacklevel=2)
        return decoded.image

    @torch.inference_mode()
    def decode(self, data: bytes, stages: int | None = None) -> Decoded:
        """Like `decompress`, with the damage in the answer rather than as a warning."""
        if stages is not None and stages < 1:
            raise CodecError(f"{stages} stages make no picture; decode at least 1.")
        header, grid, report = self._read(data, stages)
        indices = torch.from_numpy(grid.indices)[None]
        self.grid_coder.complete(grid)
        images = self.networks.autoencoder.decode(indices.to(_placement(self.networks.autoencoder)[0]))
        pixels = images[0].float().mul_(255).round_().clamp_(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(pixels[: header.height, : header.width].copy())
        return Decoded(image, len(report.stages), report.total_stages, report.damage)

    def inspect(self, data: bytes) -> Report:
        """What a file holds, stage by stage; the indices are decoded for it, the picture is not.

        Raises:
            FormatError, ModelError, DamageError: as `decompress`.
        """
        return self._read(data, None)[2]

    @torch.inference_mode()
    def _read(self, data: bytes, stages: int | None) -> tuple[Header, Grid, Report]:
        """Decodes up to the first check at or after `stages`, or up to the last check before the damage."""
        data = bytes(data)  # of a buffer, perhaps
        header, body = Header.unpack(data)
        _check_pixels(header.width, header.height)
        if header.model != self.fingerprint[:MODEL_BYTES]:
            raise ModelError(
                f"The file was made with the model {header.model.hex()}, and {self.name} is "
                f"{self.fingerprint[:MODEL_BYTES].hex()}; decompress it with the model that made it."
            )
        if header.quality > self.autoencoder.parts:
            raise DamageError("The header of the compressed picture is damaged, and with it all is lost.")
        factor = self.autoencoder.factor
        height, width = -(-header.height // factor), -(-header.width // factor)
        counts = header.scheme.counts(height, width)
        self._check_length(body, counts[0], header.quality)
        stream = Decoder(body, data[: len(data) - len(body)] + self.fingerprint)
        grid = Grid(np.zeros((height, width, header.quality), dtype=np.int64), np.zeros((height, width), dtype=bool))
        known, damage, begun = grid.known.copy(), None, 0.0
        reports: list[StageReport] = []
        pending: list[StageReport] = []
        try:
            for stage, checked in self.grid_coder.stages(stream, header.scheme, grid):
                pending.append(StageReport(counts[stage], stream.bits - begun))
                begun = stream.bits
                if checked:
                    known, reports, pending = grid.known.copy(), reports + pending, []
                    if stages is not None and len(reports) >= stages:
                        break
        except DamageError as error:
            if not reports:
                raise DamageError(
                    f"Stage 1 of the compressed picture cannot be read ({error}), and without it there is no picture; "
                    "get the file anew."
                ) from None
            damage = (
                f"Stage {len(reports) + 1} of {len(counts)} cannot be read ({error}): what it and the later ones held "
                "is guessed from the stages before. The file is damaged or cut there, or this machine computes the "
                "model otherwise."
            )
        if len(reports) == len(counts) and (more := len(body) - stream.size) > 0:
            behind = "1 byte" if more == 1 else f"{more:,} bytes"
            damage = f"The compressed picture is whole, but the file goes on for {behind} behind its end; get it anew."
        grid.known = known
        return header, grid, Report(header, len(data), (height, width), tuple(reports), len(counts), damage)

    def _check_length(self, body: bytes, positions: int, quality: int) -> None:
        """Refuses at once what is too short for its first stage, so that a few bytes cannot claim a vast picture."""
        cheapest = PRECISION - np.log2(self.marginals[:quality].max(axis=1) + 1.0)
        if positions * cheapest.sum() > 8 * len(body) + 64:
            raise DamageError(
                f"The file has {len(body)} bytes behind its header, too few for the first stage of the picture that "
                "the header claims; it is cut or damaged, get it anew."
            )


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise FormatError(
            f"A picture of {width} x {height} pixels is beyond the limit of {MAX_PIXELS:,}; cut it into smaller ones."
        )


def padded(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Pixels [H, W, 3], mirrored at its right and lower edge up to multiples of `factor`."""
    down, across = -pixels.shape[0] % factor, -pixels.shape[1] % factor
    return np.pad(pixels, ((0, down), (0, across), (0, 0)), mode="symmetric")


def _placement(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network's inputs belong, and in what precision."""
    weights = next(module.parameters())
    return weights.device, weights.dtype


def _fingerprint(modules: list[nn.Module], marginals: Integers) -> bytes:
    """SHA-256 of all values as float64, so that one model has one fingerprint whatever precision it is stored in."""
    digest = hashlib.sha256(marginals.astype("<i8").tobytes())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {list(value.shape)} ".encode())
            digest.update(value.detach().cpu().double().numpy().astype("<f8").tobytes())
    return digest.digest()
