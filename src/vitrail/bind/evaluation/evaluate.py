"""The score of a model: zero-shot and few-shot classification, and retrieval (Sections 6.4.1 to 6.4.3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vitrail.bind.evaluation.datasets import Item
from vitrail.bind.evaluation.few_shot import FewShot, choose_shots, linear_accuracy, train_linear
from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier, blend
from vitrail.bind.grey import GreyPicture, grey_values
from vitrail.bind.modality import Modality
from vitrail.bind.model import ImageBind
from vitrail.bind.spans import Span
from vitrail.data.corrupt import TOO_LARGE, CorruptSample
from vitrail.errors import FileError, VitrailError
from vitrail.metrics.average_precision import MultiLabelClassification
from vitrail.metrics.classification import Classification
from vitrail.metrics.retrieval import retrieval

Split = tuple[Tensor, Tensor]
"""Numbers of the samples to train on, and of those to test on."""


@dataclass(frozen=True)
class EmbeddedItems:
    """The files of a data set that could be read, and their vectors."""

    items: tuple[Item, ...]
    """In order."""
    vectors: Tensor
    """[n, d], of unit length, on the CPU."""
    skipped: dict[str, str]
    """Path -> what is wrong with it."""


def embed_items(
    model: ImageBind,
    items: Sequence[Item],
    senses: Sequence[str],
    *,
    batch_size: int = 16,
    on_corrupt: Literal["stop", "skip"] = "stop",
    done: Callable[[], object] = lambda: None,
) -> EmbeddedItems:
    """Files to their vectors.

    Args:
        model: in evaluation mode.
        items: the files.
        senses: of them; of several, such as sound and video of the same file, the vectors are combined (Table 6.4).
        batch_size: clips that are encoded at a time.
        on_corrupt: what to do with files that cannot be read in all senses.
        done: called after each file and sense.

    Raises:
        VitrailError: the model lacks a sense, a file cannot be read, or none can.
    """
    skipped: dict[str, str] = {}
    left_out: set[int] = set()  # of a file, some parts may be readable

    def leave_out(number: int, error: FileError) -> None:
        if on_corrupt == "stop":
            raise error
        left_out.add(number)
        skipped[str(items[number].path)] = error.reason if isinstance(error, CorruptSample) else str(error)

    def read(modality: Modality) -> Iterator[tuple[int, Tensor]]:
        for number, item in enumerate(items):
            try:
                yield number, read_item(modality, item)
            except FileError as error:
                leave_out(number, error)
            done()

    modalities = [model.modality(sense) for sense in senses]
    parts = [model.embed_clips(one.name, read(one), len(items), batch_size) for one in modalities]
    for part in parts:
        for number in (~part.isfinite().all(dim=1)).nonzero()[:, 0].tolist():
            leave_out(number, CorruptSample(items[number].path, TOO_LARGE))
    kept = [number for number in range(len(items)) if number not in left_out]
    if not kept:
        first = next((f"{path}: {reason}" for path, reason in skipped.items()), "there is none")
        raise FileError(f"None of the {len(items)} files could be read ({first}); check the data set.")
    return EmbeddedItems(
        tuple(items[number] for number in kept),
        parts[0][kept] if len(parts) == 1 else blend([part[kept] for part in parts]),
        skipped,
    )


def read_item(modality: Modality, item: Item) -> Tensor:
    """A file, or its part or box, prepared for the encoder: [S, ...].

    Raises:
        FileError: it cannot be read.
        VitrailError: a box of a sense that has none.
    """
    modality = _as_said(modality, item)
    if item.box is None:
        return modality.read(item.path) if item.span is None else modality.read_part(item.path, item.span)
    if not isinstance(modality, GreyPicture):
        raise VitrailError(f"Boxes are read of depth and heat, not of {modality.name}; cut {item.path} beforehand.")
    left, top, right, bottom = item.box
    values = grey_values(item.path)[0][top:bottom, left:right]
    if not values.size:
        raise CorruptSample(item.path, f"the box {item.box} lies beyond the picture")
    return modality.read(values)


def _as_said(modality: Modality, item: Item) -> Modality:
    own = item.settings.get(modality.name)
    return replace(modality, **own) if own else modality


def zero_shot(classifier: ZeroShotClassifier, data: EmbeddedItems) -> Classification | MultiLabelClassification:
    """Accuracy, or where files have several labels mean average precision, by the similarities with classes.

    Raises:
        VitrailError: a label is none of the classes.
    """
    similarities = classifier.similarities(data.vectors)
    numbers = _numbers(classifier.classes, data.items)
    if all(len(own) == 1 for own in numbers):
        accuracy = Classification(len(classifier.classes))
        accuracy.update(similarities * classifier.scale, torch.tensor([own[0] for own in numbers]))
        return accuracy
    positive = torch.zeros(similarities.shape, dtype=torch.int64)
    for row, own in enumerate(numbers):
        positive[row, own] = 1
    precision = MultiLabelClassification(len(classifier.classes))
    precision.update(similarities, positive)
    return precision


def few_shot(
    data: EmbeddedItems,
    classes: Sequence[str],
    shots: Sequence[int],
    *,
    training: EmbeddedItems | None = None,
    config: FewShot | None = None,
    seed: int = 0,
) -> dict[int, float]:
    """The accuracy of linear classifiers of a few examples a class (Section 6.4.3).

    The examples are drawn from `training`; without it, from the other folds, each fold being tested in its turn and the
    accuracies averaged; without folds, from the files themselves, the rest being the test, the same of all shots.

    Args:
        data: with a label each.
        classes: of them.
        shots: numbers of examples a class.
        training: with a label each.
        config: how the classifiers are trained; None: as of sounds.
        seed: of the choice and of the order.

    Returns:
        shots -> accuracy, 0 to 1.

    Raises:
        VitrailError: there are too few examples, nothing is left to test on, or a file has not one label.
    """
    vectors, labels = data.vectors, _single(classes, data.items)
    if training is not None:
        splits = [(torch.arange(len(vectors), len(vectors) + len(training.vectors)), torch.arange(len(vectors)))]
        vectors = torch.cat([vectors, training.vectors])
        labels = torch.cat([labels, _single(classes, training.items)])
    else:
        splits = _splits([item.fold for item in data.items], labels, classes, max(shots), seed)
    accuracies = {}
    for count in shots:
        each = []
        for train, test in splits:
            few = train[choose_shots(labels[train], labels[test], classes, count, seed)]
            classifier = train_linear(vectors[few], labels[few], len(classes), config or FewShot(), seed)
            each.append(linear_accuracy(classifier, vectors[test], labels[test]))
        accuracies[count] = sum(each) / len(each)
    return accuracies


def evaluate_retrieval(
    model: ImageBind, data: EmbeddedItems, sense: str, partner: str = "text", batch_size: int = 16
) -> dict[str, float]:
    """Recall and median rank, in both directions, between files and what belongs to them; a caption is a query each.

    Args:
        model: that embedded the files.
        data: files that have matches.
        sense: what the result calls them.
        partner: the sense of the matches.
        batch_size: texts or clips that are encoded at a time.

    Returns:
        As `vitrail.metrics.retrieval.retrieval`: `text_to_audio_r1` and so on.

    Raises:
        VitrailError: no file has a match, or one cannot be read.
    """
    modality = model.modality(partner)
    numbers: dict[tuple[str | Path, Span | None], int] = {}
    wanted: list[Callable[[], Tensor]] = []
    pairs = []
    for row, item in enumerate(data.items):
        for match in item.matches:
            span = item.span if isinstance(match, Path) else None
            number = numbers.setdefault((match, span), len(numbers))
            if number == len(wanted):
                own = _as_said(modality, item)
                wanted.append(partial(own.read, match) if span is None else partial(own.read_part, match, span))
            pairs.append((number, row))
    if not pairs:
        raise VitrailError("Nothing belongs to any of the files; give them captions, or files of another sense.")
    matches = model.embed_clips(partner, ((number, read()) for number, read in enumerate(wanted)), 0, batch_size)
    return retrieval(matches, data.vectors, torch.tensor(pairs), (partner, sense))


def _numbers(classes: Sequence[str], items: Sequence[Item]) -> list[list[int]]:
    known = {name: number for number, name in enumerate(classes)}
    for item in items:
        if unknown := [label for label in item.labels if label not in known]:
            raise VitrailError(
                f"The label {unknown[0]!r} of {item.path} is none of the {len(classes)} classes; add it."
            )
    return [[known[label] for label in item.labels] for item in items]


def _single(classes: Sequence[str], items: Sequence[Item]) -> Tensor:
    for item in items:
        if len(item.labels) != 1:
            raise VitrailError(f"{item.path} has {len(item.labels)} labels; few shots need exactly one of each file.")
    return torch.tensor([own[0] for own in _numbers(classes, items)])


def _splits(folds: Sequence[str | None], labels: Tensor, classes: Sequence[str], most: int, seed: int) -> list[Split]:
    names = sorted({fold for fold in folds if fold is not None})
    if len(names) > 1:
        numbers = torch.tensor([-1 if fold is None else names.index(fold) for fold in folds])
        return [
            (((numbers != fold) & (numbers >= 0)).nonzero()[:, 0], (numbers == fold).nonzero()[:, 0])
            for fold in range(len(names))
        ]
    chosen = choose_shots(labels, labels, classes, most, seed)
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, chosen, value=False).nonzero()[:, 0]
    if not len(rest):
        raise VitrailError(f"{most} shots leave no file to test on; ask for fewer, or give others to train on.")
    return [(chosen, rest)]
