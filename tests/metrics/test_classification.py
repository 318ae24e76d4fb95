import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    top_k_accuracy_score,
)

from vitrail.errors import VitrailError
from vitrail.metrics.classification import Classification


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 12, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 11, (200,), generator=generator)  # class 11 has no sample
    return logits, labels


def test_equals_scikit_learn(batch):
    logits, labels = batch
    metric = Classification(12)
    metric.update(logits=logits[:150], labels=labels[:150])
    metric.update(logits=logits[150:], labels=labels[150:])
    figures, scores, predicted = metric.compute(), logits.softmax(1).numpy(), logits.argmax(1)
    assert figures["top1"] == accuracy_score(labels, predicted)
    assert figures["top5"] == top_k_accuracy_score(labels, scores, k=5, labels=range(12))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert figures["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-15)
    assert figures["loss"] == pytest.approx(log_loss(labels, scores, labels=range(12)), abs=1e-12)
    np.testing.assert_array_equal(metric.confusion, confusion_matrix(labels, predicted, labels=range(12)))


def test_merge_equals_one_metric(batch):
    logits, labels = batch
    whole, first, second = Classification(12), Classification(12), Classification(12)
    whole.update(logits, labels)
    first.update(logits[:70], labels[:70])
    second.update(logits[70:], labels[70:])
    first.merge(second)
    assert first.compute() == pytest.approx(whole.compute(), abs=1e-14)
    assert torch.equal(first.confusion, whole.confusion)


def test_few_classes_ties_and_nan():
    metric = Classification(3)
    metric.update(torch.zeros(3, 3), torch.tensor([0, 1, 2]))
    assert metric.compute() == pytest.approx(
        {"top1": 1 / 3, "top5": 1.0, "loss": np.log(3), "mean_class_accuracy": 1 / 3}, abs=1e-15
    )
    metric = Classification(3)
    metric.update(torch.full((2, 3), torch.nan), torch.tensor([0, 2]))
    assert metric.compute()["top1"] == metric.compute()["top5"] == 0
    metric.update(torch.tensor([[2.0, 1, 0], [0, torch.nan, 0], [0, torch.nan, 0]]), torch.tensor([0, 1, 0]))
    figures = metric.compute()  # of five samples the third alone is right: of class 0 one of three
    assert figures["top1"] == 0.2 and figures["mean_class_accuracy"] == pytest.approx(1 / 9, abs=1e-15)
    assert metric.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    other = Classification(3)
    other.merge(metric)
    assert other.compute() == pytest.approx(figures, nan_ok=True)


def test_half_precision_logits_are_summed_exactly():
    logits = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    metric = Classification(2)
    for _ in range(1000):
        metric.update(logits, torch.tensor([1]))
    assert metric.compute()["loss"] == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"logits of shape \[2, 3\], not \[2, 4\]"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "a label 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "a negative one"),
    ],
)
def test_wrong_shapes_and_labels(logits, labels, message):
    with pytest.raises(VitrailError, match=message):
        Classification(3).update(logits, labels)


def test_nothing_added():
    with pytest.raises(VitrailError, match="had no sample"):
        Classification(3).compute()
