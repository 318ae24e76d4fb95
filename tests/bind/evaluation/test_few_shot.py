"""A few examples a class, and the classifier they make."""

import pytest
import torch
from torch.nn.functional import normalize

from vitrail.bind.evaluation.few_shot import FEW_SHOT_DEPTH, FewShot, choose_shots, linear_accuracy, train_linear
from vitrail.errors import VitrailError

NAMES = "abcd"


def test_shots_are_nested_and_of_every_class():
    labels = torch.arange(40) % 4
    eight = choose_shots(labels, labels, NAMES, 8, seed=3)
    assert labels[eight].bincount().tolist() == [8] * 4
    for shots in (1, 2, 4):
        fewer = choose_shots(labels, labels, NAMES, shots, seed=3)
        assert set(fewer.tolist()) < set(eight.tolist())
        assert labels[fewer].tolist() == sorted(list(range(4)) * shots)
    assert choose_shots(labels, labels, NAMES, 8, seed=3).equal(eight)
    assert not choose_shots(labels, labels, NAMES, 8, seed=4).equal(eight)
    with pytest.raises(VitrailError, match="The class 'a' has 10 samples to learn from, not 11; ask for fewer"):
        choose_shots(labels, labels, NAMES, 11, seed=3)
    with pytest.raises(VitrailError, match="The class 'c' has 0 samples to learn from, not 1"):
        choose_shots(labels[:2], labels[:3], NAMES, 1, seed=3)


def test_linear_classifier_learns_and_repeats():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    vectors = normalize(torch.eye(8)[labels] + 0.25 * torch.randn(120, 8, generator=generator), dim=1)
    with torch.inference_mode():
        made = vectors.clone()
    few = choose_shots(labels, labels, NAMES, 8, seed=0)
    for config in (FewShot(), FEW_SHOT_DEPTH):
        classifier = train_linear(made[few], labels[few], 3, config)
        assert linear_accuracy(classifier, made, labels) > 0.9
        again = train_linear(vectors[few], labels[few], 3, config)
        assert again.weight.equal(classifier.weight)
        other = train_linear(vectors[few], labels[few], 3, config, seed=1)
        assert not other.weight.equal(classifier.weight)


def test_one_step_is_adamw():
    vectors, labels = torch.tensor([[0.6, 0.8]]), torch.tensor([1])
    classifier = train_linear(vectors, labels, 2, FewShot(learning_rate=0.01, weight_decay=0.0, epochs=1))
    # From zero, AdamW's first step is the learning rate against the sign of the gradient.
    torch.testing.assert_close(classifier.weight.detach(), torch.tensor([[-0.01, -0.01], [0.01, 0.01]]))
    with pytest.raises(VitrailError, match=r"FewShot.epochs is 0"):
        FewShot(epochs=0)
