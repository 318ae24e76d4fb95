import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vitrail.errors import VitrailError
from vitrail.metrics.neighbours import knn_accuracy, leave_one_out_accuracy, neighbours


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 4
    return torch.randn(90, 8, generator=generator) + 1.2 * torch.eye(8)[labels], labels


def reference(features, labels, queries, count):
    """scikit-learn's vote, weighed by exp(cosine / 0.07)."""
    classifier = KNeighborsClassifier(count, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    return torch.from_numpy(classifier.fit(features.numpy(), labels.numpy()).predict(queries.numpy()))


def test_neighbours_are_those_of_the_largest_cosine(data):
    features, _ = data
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    expected = (unit[:5] @ unit.T).topk(7)
    similarities, numbers = neighbours(features[:5], 3 * features, 7)
    assert torch.equal(numbers, expected.indices)
    torch.testing.assert_close(similarities.double(), expected.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_vote_is_scikit_learns(data, count):
    (features, labels), queries = data, torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    guesses = reference(features, labels, queries, count)
    wanted = torch.arange(40) % 4
    assert knn_accuracy(queries, wanted, features, labels, count) == float((guesses == wanted).double().mean())


@pytest.mark.parametrize("count", [1, 20])
def test_leaving_one_out_is_scikit_learns_one_by_one(data, count):
    features, labels = data
    right = 0
    for number in range(len(labels)):
        others = torch.arange(len(labels)) != number
        right += int(reference(features[others], labels[others], features[number][None], count)[0] == labels[number])
    assert leave_one_out_accuracy(features, labels, count) == right / len(labels)


def test_equal_images_do_not_find_themselves():
    features = torch.ones(6, 3)
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    assert leave_one_out_accuracy(features, labels) == pytest.approx(5 / 6)


def test_without_images_there_are_no_neighbours():
    with pytest.raises(VitrailError, match="images with labels to look among"):
        knn_accuracy(torch.ones(1, 2), torch.zeros(1), torch.empty(0, 2), torch.empty(0))
    with pytest.raises(VitrailError, match="at least two images"):
        leave_one_out_accuracy(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
