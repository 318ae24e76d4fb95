"""Visual words: a picture's patches as numbers (Section 4.3.3)."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import check_choices, check_range
from vitrail.data.loader import Dataset, LoaderConfig, evaluation_batches
from vitrail.errors import FileError, VitrailError
from vitrail.metrics.neighbours import load_faiss

_AT_ONCE = 512  # patches, each compared with all words: their scores stay in the cache
_OPEN_AT_MOST = 32  # words a patch, on average, that bfloat16 may leave open: with more, float32 alone is faster
_LEAST_OF_AN_IMAGE = 16  # patches that k-means takes: not every image of a large data set need be read


@dataclass(frozen=True)
class TokenizerConfig:
    """How words are found; the defaults are those of the thesis's own models (Section 4.5.6)."""

    kind: Literal["random_projection", "random_patches", "k_means", "program"] = "random_projection"
    """Random directions, patches of the training images, centroids of such patches, or what another network says."""
    words: int = 8192
    """V, the size of the vocabulary."""
    patch_size: Literal[8, 16] = 8
    """Pixels a side of what is compared with the words: pictures are resized such that words and the network's patches
    correspond one to one (with 8, for patches of 16, to half their size)."""
    samples: int = 3_000_000
    """Most patches that k-means is given."""
    iterations: int = 20
    """Of k-means."""
    seed: int = 0
    """Of the directions, the choice of patches and k-means."""
    program: Path | None = None
    """A torch.export file, of people you trust: normalised pictures [B, 3, h * patch_size, w * patch_size] -> words
    [B, h, w] below `words`. `vitrail pretrain tokenizer` writes one from a codec."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "words", least=2)
        check_range(self, "samples", "iterations", least=1)
        check_range(self, "seed", least=0)
        if (self.kind == "program") != (self.program is not None):
            raise VitrailError("A tokenizer of the kind program, and no other, needs tokenizer.program; set both.")

    def build(self, patch_size: int) -> "Tokenizer":
        """A tokenizer for networks with patches of `patch_size` pixels, with random directions until it is `fit`."""
        return Tokenizer(self, patch_size)


class Tokenizer(nn.Module):
    """Pictures [B, 3, H, W], normalised -> the word of each patch, [B, h, w] int64.

    The word of a patch is that of the largest cosine with it (Equation 4.1), in the space of normalised pixels.

    A program stays in its file, and is read when the first picture comes: a checkpoint opens without it.

    Attributes:
        vocabulary: [V, 3 * patch_size^2], unit vectors; a buffer, so that it is stored with the network that learns
            it. Empty where a program says the words.
    """

    vocabulary: Tensor

    def __init__(self, config: TokenizerConfig, patch_size: int) -> None:
        super().__init__()
        self.config, self.patch_size = config, patch_size
        generator = torch.Generator().manual_seed(config.seed)
        words = 0 if config.kind == "program" else config.words
        directions = torch.rand(words, 3 * config.patch_size**2, generator=generator) * 2 - 1
        self._program: tuple[Callable[[Tensor], Tensor], ...] = ()  # in a tuple, for it does not belong in checkpoints
        self.register_buffer("vocabulary", F.normalize(directions, dim=1))

    def resized(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 3, h * patch_size, w * patch_size], a word's pixels for each patch of the network."""
        side = self.patch_size
        images = F.pad(images, (0, -images.shape[3] % side, 0, -images.shape[2] % side))
        grid = (images.shape[2] // side, images.shape[3] // side)
        if self.config.patch_size != side:
            size = [self.config.patch_size * cells for cells in grid]
            images = F.interpolate(images, size, mode="area" if self.config.patch_size < side else "bilinear")
        return images

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, 3 * patch_size^2], the vectors that are compared with the words."""
        images, side = self.resized(images), self.config.patch_size
        columns = F.unfold(images, side, stride=side)
        return columns.mT.unflatten(1, (images.shape[2] // side, images.shape[3] // side))

    @torch.no_grad()
    def forward(self, images: Tensor, only: Tensor | None = None) -> Tensor:
        """The words of pictures.

        Args:
            images: [B, 3, H, W], normalised.
            only: [B, n] int64, the numbers of the patches that are wanted, row by row from 0; None: all of them.

        Returns:
            [B, h, w] int64, h = ceil(H / patch of the network), or [B, n].
        """
        device = images.device.type
        in_bfloat16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        with torch.autocast(device, enabled=False):
            if self.config.program is not None:
                words = self._ask(self.config.program, self.resized(images.float()))
                return words if only is None else words.flatten(1).gather(1, only)
            vectors = self.patches(images.float())
            if only is not None:
                vectors = vectors.flatten(1, 2)
                vectors = vectors.gather(1, only[:, :, None].expand(-1, -1, vectors.shape[2]))
            # Only of random directions are few about as near as the nearest: patches of images are much alike.
            rough = in_bfloat16 and self.config.kind == "random_projection"
            nearest = _nearest_by_bfloat16 if rough else _nearest
            found = nearest(vectors.flatten(0, -2), self.vocabulary)
            return found.view(vectors.shape[:-1])

    def _ask(self, path: Path, images: Tensor) -> Tensor:
        if not self._program:
            self._program = (_load_program(path, images.device),)
            found = self._program[0](images)
            grid = (len(images), *(side // self.config.patch_size for side in images.shape[2:]))
            if found.shape != grid or found.is_floating_point() or not 0 <= int(found.min()) <= int(found.max()):
                raise FileError(
                    f"{path} gives {found.dtype} {list(found.shape)}, not words {list(grid)}; export another."
                )
            if int(found.max()) >= self.config.words:
                raise FileError(f"{path} has more than {self.config.words} words; set tokenizer.words to their number.")
        return self._program[0](images).long()

    def words(self, numbers: Tensor) -> Tensor:
        """Words [...] -> what they look like, [..., 3, patch_size, patch_size], unit vectors in normalised pixels.

        Raises:
            VitrailError: a program says the words, and not what they look like.
        """
        if self.config.kind == "program":
            raise VitrailError("The words of a program have no pictures; only those of other tokenizers can be drawn.")
        side = self.config.patch_size
        return self.vocabulary[numbers].unflatten(-1, (3, side, side))

    @torch.no_grad()
    def fit(self, images: Dataset, loader: LoaderConfig = LoaderConfig()) -> None:
        """Takes the words from pictures, as the configuration says; random directions and programs need none.

        Args:
            images: samples with an `image` [3, H, W], normalised, not augmented, of one size.
            loader: how they are read.

        Raises:
            VitrailError: they have fewer patches than there are words.
        """
        if self.config.kind == "random_patches":  # of different images, as far as there are enough
            self._take(self._sample(images, self.config.words, 1, loader))
        elif self.config.kind == "k_means":
            vectors = self._sample(images, self.config.samples, _LEAST_OF_AN_IMAGE, loader)
            self._take(self._k_means(vectors) if len(vectors) >= self.config.words else vectors)

    def _take(self, words: Tensor) -> None:
        if len(words) < self.config.words:
            raise VitrailError(
                f"The images have {len(words):,} patches, too few for {self.config.words:,} words; lower "
                "tokenizer.words or take random_projection."
            )
        self.vocabulary.copy_(F.normalize(words, dim=1))

    def _sample(self, images: Dataset, count: int, least: int, loader: LoaderConfig) -> Tensor:
        """Unit vectors of at most `count` patches, equally many (`least` or more) of each, [n, 3 * patch_size^2].

        Patches that are of the mean colour throughout have no direction, and are left out.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(images), generator=generator).tolist()[: max(1, count // least)]
        each = -(-count // len(order))
        found = []
        for batch in evaluation_batches(_Chosen(images, order), batch_size=32, loader=loader):
            for vectors in self.patches(batch.image.float()).flatten(1, 2):
                vectors = vectors[vectors.norm(dim=1) > 1e-6]
                found.append(vectors[torch.randperm(len(vectors), generator=generator)[:each]])
        return F.normalize(torch.cat(found)[:count], dim=1)

    def _k_means(self, vectors: Tensor) -> Tensor:
        k_means = load_faiss().Kmeans(
            vectors.shape[1],
            self.config.words,
            niter=self.config.iterations,
            seed=self.config.seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=-(-len(vectors) // self.config.words),
        )
        k_means.train(vectors.numpy())
        return torch.from_numpy(k_means.centroids)


def _nearest(vectors: Tensor, vocabulary: Tensor) -> Tensor:
    """For vectors [n, d] the numbers of the unit vectors [V, d] of the largest cosine with them, [n] int64."""
    return torch.cat([(part @ vocabulary.mT).argmax(dim=1) for part in vectors.split(_AT_ONCE)])


@torch.compiler.disable  # how many words are left open is known only by looking
def _nearest_by_bfloat16(vectors: Tensor, vocabulary: Tensor) -> Tensor:
    """What `_nearest` gives: sought in bfloat16, and where that leaves several words open, decided in float32."""
    rough_vocabulary = vocabulary.bfloat16().mT
    found = []
    for part in vectors.split(_AT_ONCE):
        rough = part.bfloat16() @ rough_vocabulary
        # A product is off by 3 * 2^-8 of the vector's length at most (two factors and a result that are rounded), so
        # that two are by twice as much; rounding the limit itself takes less than the rest of the 8.
        limit = rough.amax(dim=1, keepdim=True) - 8 * 2**-8 * part.norm(dim=1, keepdim=True)
        row, word = (rough >= limit.bfloat16()).nonzero(as_tuple=True)
        if len(row) > _OPEN_AT_MOST * len(part):
            found.append(_nearest(part, vocabulary))
            continue
        scores = (part[row] * vocabulary[word]).sum(dim=1)
        best = scores.new_zeros(len(part)).scatter_reduce(0, row, scores, "amax", include_self=False)
        won = scores == best[row]
        found.append(row.new_zeros(len(part)).scatter_reduce(0, row[won], word[won], "amin", include_self=False))
    return torch.cat(found)


@dataclass(frozen=True)
class _Chosen:
    """Some samples of a data set, in another order."""

    images: Dataset
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.images[self.order[index]]


def _load_program(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    from torch.export.passes import move_to_device_pass

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch reads its own file so
            return move_to_device_pass(torch.export.load(path), device).module()
    except Exception:  # what damaged files raise is of many types
        raise FileError(
            f"{path} is no readable torch.export file; write one with `vitrail pretrain tokenizer`."
        ) from None
