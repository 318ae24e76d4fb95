"""Zero-shot classification of any sense by the names of classes (Section 6.3.1)."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.bind.model import LARGEST_SCALE, ImageBind
from vitrail.bind.prompts import IMAGENET_TEMPLATES
from vitrail.errors import VitrailError


class ZeroShotClassifier:
    """Classes as directions in the common space; what is nearest wins.

    Attributes:
        classes: their names.
        vectors: [n, d] unit vectors on the CPU, one or several a class; of texts, or of examples of any sense.
        owners: [n] int64, the number of the class of each.
        scale: 1 / tau, which makes probabilities of similarities.
    """

    def __init__(
        self, classes: Sequence[str], vectors: Tensor, owners: Tensor | None = None, scale: float = LARGEST_SCALE
    ) -> None:
        """One vector a class, in order, unless `owners` says otherwise.

        Raises:
            VitrailError: a class has no vector, or a vector has no class.
        """
        owners = torch.arange(len(vectors)) if owners is None else owners
        counts = torch.bincount(owners, minlength=len(classes))
        if vectors.ndim != 2 or owners.shape != vectors.shape[:1] or len(counts) != len(classes) or not counts.all():
            raise VitrailError(
                f"{len(classes)} classes do not fit vectors of shape {list(vectors.shape)}; "
                "give every class at least one vector."
            )
        self.classes = tuple(classes)
        self.vectors = F.normalize(vectors.float().cpu(), dim=1)
        self.owners = owners
        self.scale = scale

    @classmethod
    def from_names(
        cls,
        model: ImageBind,
        classes: Mapping[str, Sequence[str]] | Sequence[str],
        templates: Sequence[str] = IMAGENET_TEMPLATES,
        batch_size: int = 64,
    ) -> Self:
        """Classes by their names in words.

        A name's vector is the mean of the unit vectors of all templates with the name in them, normalized again. Of
        several names of a class, such as `vitrail.bind.prompts.NYU_D`'s last, the nearest counts (Section 6.4.6). The
        scale is that of the model's texts.

        Args:
            model: with text.
            classes: names, or class -> its names.
            templates: each with {} where the name belongs, such as `Modality.templates` of what will be classified.
            batch_size: texts that are encoded at a time.

        Raises:
            VitrailError: there are no classes, a class has no name, or a template no {}.
        """
        names = dict(classes) if isinstance(classes, Mapping) else {name: (name,) for name in classes}
        if not names or not all(names.values()):
            raise VitrailError("Zero-shot classification needs classes, and at least one name of each; give them.")
        if not templates or not all("{}" in template for template in templates):
            raise VitrailError(f"{list(templates)} are no templates; write {{}} in each where the name belongs.")
        called = [name for of_class in names.values() for name in of_class]
        texts = [template.replace("{}", name) for name in called for template in templates]
        vectors = model.embed({"text": texts}, batch_size)["text"]
        vectors = vectors.unflatten(0, (len(called), len(templates))).mean(dim=1)
        owners = [number for number, of_class in enumerate(names.values()) for _ in of_class]
        scale = model.scales["text"](torch.ones((), device=model.device)).item() if "text" in model.scales else None
        return cls(tuple(names), vectors, torch.tensor(owners), scale or LARGEST_SCALE)

    def similarities(self, vectors: Tensor) -> Tensor:
        """Unit vectors of any sense, [m, d] -> [m, classes], the cosine with the nearest vector of each class.

        Raises:
            VitrailError: the vectors are of another dimension.
        """
        if vectors.shape[1:] != self.vectors.shape[1:]:
            raise VitrailError(
                f"Vectors of shape {list(vectors.shape)} are not of the classes' {self.vectors.shape[1]} dimensions; "
                "embed them by the same model."
            )
        each = vectors.float().cpu() @ self.vectors.mT
        nearest = each.new_full((len(vectors), len(self.classes)), -torch.inf)
        return nearest.scatter_reduce_(1, self.owners.expand(len(vectors), -1), each, "amax")

    def probabilities(self, vectors: Tensor) -> Tensor:
        """[m, d] -> [m, classes], the softmax of the similarities times the scale.

        Raises:
            VitrailError: as `similarities`.
        """
        return (self.similarities(vectors) * self.scale).softmax(dim=1)

    def classify(self, vectors: Tensor) -> Tensor:
        """[m, d] -> [m] int64, the numbers of the nearest classes; of equal ones the first.

        Raises:
            VitrailError: as `similarities`.
        """
        return self.similarities(vectors).argmax(dim=1)


def blend(vectors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Several senses of the same things, such as sound and video (Table 6.4), as one vector for each thing.

    Args:
        vectors: of each sense [n, d], the i-th rows of all of the i-th thing; scaled to unit length first.
        weights: of each sense; None: equal ones, 0.5 each of two as for embedding arithmetic (Section 6.4.4.1). The
            thesis does not say which ones Table 6.4 has.

    Returns:
        [n, d], the weighted sums, of unit length again.

    Raises:
        VitrailError: the senses differ in shape, or weights and senses in number.
    """
    weights = [1 / len(vectors)] * len(vectors) if weights is None else weights
    if len(weights) != len(vectors) or len({part.shape for part in vectors}) != 1:
        raise VitrailError(
            f"Vectors of shapes {[list(part.shape) for part in vectors]} with {len(weights)} weights cannot be "
            "combined; give each sense a vector of every thing, and a weight."
        )
    total = sum(weight * F.normalize(part, dim=1) for weight, part in zip(weights, vectors, strict=True))
    return F.normalize(torch.as_tensor(total), dim=1)
