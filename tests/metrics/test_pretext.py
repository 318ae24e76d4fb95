import pytest
import torch

from vitrail.errors import VitrailError
from vitrail.metrics.neighbours import leave_one_out_accuracy
from vitrail.metrics.pretext import PretextMetric


def test_terms_are_means_over_images_and_neighbours_those_of_labelled_ones():
    generator = torch.Generator().manual_seed(0)
    losses, features = torch.rand(9, generator=generator), torch.randn(9, 4, generator=generator)
    labels = torch.tensor([0, 1, -1, 0, 1, 1, -1, 0, 0])
    whole = PretextMetric()
    whole.update({"loss": losses}, features, labels)
    known = labels >= 0
    assert whole.compute() == {
        "loss": pytest.approx(float(losses.double().mean())),
        "knn": leave_one_out_accuracy(features[known], labels[known]),
    }
    parts = [PretextMetric(), PretextMetric()]
    parts[0].update({"loss": losses[:4]}, features[:4], labels[:4])
    parts[1].update({"loss": losses[4:8]}, features[4:8], labels[4:8])
    parts[1].update({"loss": losses[8:]}, features[8:], labels[8:])
    parts[0].merge(parts[1])
    assert parts[0].compute() == pytest.approx(whole.compute())


def test_without_labels_there_is_the_loss_alone():
    metric = PretextMetric()
    with pytest.raises(VitrailError, match="had no image"):
        metric.compute()
    metric.update({"loss": torch.tensor([1.0, 3.0])}, torch.randn(2, 4), torch.tensor([-1, 1]))
    assert metric.compute() == {"loss": 2.0}
