"""Few-shot classification: a linear classifier on the vectors of a few examples a class (Section 6.4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.config import check_range
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class FewShot:
    """How the classifier is trained, with AdamW; the defaults are those of sounds (Section 6.4.3.1)."""

    learning_rate: float = 1.6e-3
    """Constant; the thesis tells of no schedule."""
    weight_decay: float = 0.05
    """Of the matrix and the biases."""
    epochs: int = 50
    """How often each example is seen."""
    batch_size: int = 16
    """Examples a step; our choice, of which the thesis does not tell."""

    def __post_init__(self) -> None:
        check_range(self, "learning_rate", above=0)
        check_range(self, "weight_decay", least=0)
        check_range(self, "epochs", "batch_size", least=1)


FEW_SHOT_DEPTH = FewShot(learning_rate=1e-2, weight_decay=0.0, epochs=60)
"""Those of depth (Section 6.4.3.1)."""


def choose_shots(labels: Tensor, tested: Tensor, classes: Sequence[str], shots: int, seed: int) -> Tensor:
    """Numbers of `shots` samples of every class, class by class; those of fewer shots are among those of more.

    Args:
        labels: [n] int64, from 0.
        tested: [m] int64, labels of what the classifier will be tested on, whose classes need samples too.
        classes: what the labels are called.
        shots: k.
        seed: of the choice.

    Raises:
        VitrailError: a class has fewer than k samples.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for label in torch.cat([labels, tested]).unique().tolist():
        of_class = order[labels[order] == label]
        if len(of_class) < shots:
            raise VitrailError(
                f"The class {classes[label]!r} has {len(of_class)} samples to learn from, not {shots}; ask for fewer "
                "shots, or give more."
            )
        chosen.append(of_class[:shots])
    return torch.cat(chosen)


def train_linear(
    vectors: Tensor, labels: Tensor, classes: int, config: FewShot = FewShot(), seed: int = 0
) -> nn.Linear:
    """A linear classifier of fixed vectors by cross-entropy.

    Its weights start at zero, so that the seed decides nothing but the order of the examples.

    Args:
        vectors: [n, d] on the CPU, as the model gives them; unit vectors.
        labels: [n] int64, 0 to C - 1.
        classes: C.
        config: how it is trained.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors, labels = vectors.clone(), labels.clone()  # what was made in inference mode cannot be learned from
    classifier = nn.Linear(vectors.shape[1], classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.AdamW(classifier.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    for _ in range(config.epochs):
        for few in torch.randperm(len(vectors), generator=generator).split(config.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(classifier(vectors[few]), labels[few]).backward()
            optimizer.step()
    return classifier


@torch.no_grad()
def linear_accuracy(classifier: nn.Linear, vectors: Tensor, labels: Tensor) -> float:
    """The share of vectors [n, d] that the classifier gives their label [n], 0 to 1."""
    return float((classifier(vectors).argmax(dim=1) == labels).double().mean())
