"""Visual words: a picture's patches as numbers, without labels and without another network (Section 4.3.3)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import check_range
from vitrail.data.loader import Dataset
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class TokenizerConfig:
    """How words are found; the defaults are those of the thesis's own models (Section 4.5.6)."""

    kind: Literal["random_projection", "random_patches", "k_means"] = "random_projection"
    """Random directions, patches of the training images, or centroids of such patches."""
    words: int = 8192
    """V, the size of the vocabulary."""
    patch_size: Literal[8, 16] = 8
    """Pixels a side of what is compared with the words: pictures are resized such that words and the network's patches
    correspond one to one (with 8, for patches of 16, to half their size)."""
    samples: int = 3_000_000
    """Most patches that k-means is given, or that random patches are chosen from."""
    iterations: int = 20
    """Of k-means."""
    seed: int = 0
    """Of the directions, the choice of patches and k-means."""

    def __post_init__(self) -> None:
        check_range(self, "words", least=2)
        check_range(self, "samples", "iterations", least=1)
        check_range(self, "seed", least=0)

    def build(self, patch_size: int) -> "Tokenizer":
        """A tokenizer for networks with patches of `patch_size` pixels, with random directions until it is `fit`."""
        return Tokenizer(self, patch_size)


class Tokenizer(nn.Module):
    """Pictures [B, 3, H, W], normalised -> the word of each patch, [B, h, w] int64.

    The word of a patch is that of the largest cosine with it (Equation 4.1), in the space of normalised pixels.

    Attributes:
        vocabulary: [V, 3 * patch_size^2], unit vectors; a buffer, so that it is stored with the network that learns it.
    """

    vocabulary: Tensor

    def __init__(self, config: TokenizerConfig, patch_size: int) -> None:
        super().__init__()
        self.config, self.patch_size = config, patch_size
        generator = torch.Generator().manual_seed(config.seed)
        directions = torch.rand(config.words, 3 * config.patch_size**2, generator=generator) * 2 - 1
        self.register_buffer("vocabulary", F.normalize(directions, dim=1))

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, h, w, 3 * patch_size^2], the vectors that are compared with the words."""
        side = self.patch_size
        images = F.pad(images, (0, -images.shape[3] % side, 0, -images.shape[2] % side))
        grid = (images.shape[2] // side, images.shape[3] // side)
        if self.config.patch_size != side:
            size = [self.config.patch_size * cells for cells in grid]
            images = F.interpolate(images, size, mode="area" if self.config.patch_size < side else "bilinear")
        columns = F.unfold(images, self.config.patch_size, stride=self.config.patch_size)
        return columns.mT.unflatten(1, grid)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], normalised -> words [B, h, w] int64, h = ceil(H / patch of the network)."""
        with torch.autocast(images.device.type, enabled=False):
            vectors = self.patches(images.float())
            return (vectors.flatten(0, 2) @ self.vocabulary.mT).argmax(dim=1).view(vectors.shape[:3])

    def words(self, numbers: Tensor) -> Tensor:
        """Words [...] -> what they look like, [..., 3, patch_size, patch_size], unit vectors in normalised pixels."""
        side = self.config.patch_size
        return self.vocabulary[numbers].unflatten(-1, (3, side, side))

    @torch.no_grad()
    def fit(self, images: Dataset) -> None:
        """Takes the words from pictures, as the configuration says; random directions need none.

        Args:
            images: samples with an `image` [3, H, W], normalised, not augmented.

        Raises:
            VitrailError: they have fewer patches than there are words.
        """
        if self.config.kind == "random_projection":
            return
        vectors = self._sample(images)
        if len(vectors) < self.config.words:
            raise VitrailError(
                f"The images have {len(vectors):,} patches, too few for {self.config.words:,} words; lower "
                "tokenizer.words or take random_projection."
            )
        if self.config.kind == "random_patches":
            generator = torch.Generator().manual_seed(self.config.seed)
            words = vectors[torch.randperm(len(vectors), generator=generator)[: self.config.words]]
        else:
            words = self._k_means(vectors)
        self.vocabulary.copy_(F.normalize(words, dim=1))

    def _sample(self, images: Dataset) -> Tensor:
        """Unit vectors of at most `samples` patches, equally many of each image, [n, 3 * patch_size^2].

        Patches without any contrast to the mean of all pictures have no direction, and are left out.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(images), generator=generator).tolist()[: self.config.samples]
        each = -(-self.config.samples // len(order))
        found = []
        for number in order:
            vectors = self.patches(images[number].image[None].float()).flatten(0, 2)
            vectors = vectors[vectors.norm(dim=1) > 1e-6]
            found.append(vectors[torch.randperm(len(vectors), generator=generator)[:each]])
        return F.normalize(torch.cat(found)[: self.config.samples], dim=1)

    def _k_means(self, vectors: Tensor) -> Tensor:
        import faiss

        k_means = faiss.Kmeans(
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
