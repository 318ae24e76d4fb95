import pytest
import torch
from sklearn.metrics import average_precision_score

from vitrail.errors import VitrailError
from vitrail.metrics.average_precision import MultiLabelClassification, average_precision


@pytest.mark.parametrize("steps", [3, 10, 10**6])  # of few steps, many scores are equal
def test_scikit_learn_agrees(steps):
    generator = torch.Generator().manual_seed(steps)
    for share in (0.02, 0.5, 0.98):
        positive = torch.rand(200, generator=generator) < share
        scores = ((torch.rand(200, generator=generator) + 0.3 * positive) * steps).round()
        expected = average_precision_score(positive.numpy(), scores.numpy())
        assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_all_equal_scores_give_the_share_of_positives():
    assert average_precision(torch.zeros(4), torch.tensor([True, False, False, False])) == 0.25


def test_mean_over_classes_that_have_samples_in_batches_and_processes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, generator=generator)
    labels = (torch.rand(30, 4, generator=generator) < 0.3).long()
    labels[:, 2] = 0
    parts = [MultiLabelClassification(4), MultiLabelClassification(4)]
    for part, rows in zip(parts, (slice(0, 17), slice(17, 30)), strict=True):
        part.update(logits[rows], labels[rows])
    parts[0].merge(parts[1])
    kept = [0, 1, 3]
    expected = average_precision_score(labels[:, kept].numpy(), logits[:, kept].numpy(), average="macro")
    assert parts[0].compute() == {"mean_average_precision": pytest.approx(expected, abs=1e-12)}


def test_errors():
    metric = MultiLabelClassification(3)
    with pytest.raises(VitrailError, match="no sample is of any class"):
        metric.compute()
    with pytest.raises(VitrailError, match=r"Logits of shape \[2, 4\] and labels of shape \[2, 4\] are not \[B, 3\]"):
        metric.update(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(VitrailError, match=r"labels of shape \[3\]"):
        metric.update(torch.zeros(3, 3), torch.zeros(3))
    with pytest.raises(VitrailError, match="labels other than 0 and 1"):
        metric.update(torch.zeros(1, 3), torch.tensor([[0, 2, 0]]))
    metric.update(torch.full((1, 3), torch.nan), torch.tensor([[0, 1, 0]]))
    with pytest.raises(VitrailError, match="logits that are not numbers"):
        metric.compute()
