import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vitrail.backbones.vit import ViTConfig
from vitrail.data.loader import LoaderConfig
from vitrail.data.samples import LabelledImage, UnlabelledImage
from vitrail.errors import VitrailError
from vitrail.pretrain.probe import OUTPUT, LabelledFeatures, extract, fit_linear, plot_layers, probe

HERE = LoaderConfig(workers=0)


def points(count: int, seed: int) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    features = torch.randn(count, 6, generator=generator) + torch.eye(6)[labels] * 1.5
    noise = torch.randn(count, 6, generator=generator)
    return LabelledFeatures({0: noise, OUTPUT: 10 * features + 4}, labels)


def test_the_linear_classifier_is_the_logistic_regression_of_standardised_features():
    data, penalty = points(150, 0), 0.01
    features = data.layers[OUTPUT]
    found = fit_linear(features, data.labels, penalty)
    inputs = (features.double() - features.double().mean(0)) / features.double().std(0, unbiased=False)
    reference = LogisticRegression(C=1 / (150 * penalty), tol=1e-8, max_iter=1000).fit(inputs.numpy(), data.labels)
    np.testing.assert_allclose(found.weight.numpy(), reference.coef_, atol=2e-3)
    expected = reference.predict_log_proba(inputs.numpy())
    np.testing.assert_allclose(found(features).log_softmax(dim=1).numpy(), expected, atol=5e-3)


def test_informative_layers_are_told_from_noise():
    found = probe(points(300, 1), points(300, 2), neighbours=20)
    assert found.linear[OUTPUT] > 0.7 and found.neighbours > 0.65
    assert found.linear[0] < 0.45
    assert probe(points(30, 1), points(30, 2)).neighbours is None


def test_features_are_means_of_each_layer_and_the_output():
    torch.manual_seed(0)
    backbone = ViTConfig(16, 3, 2, 8, 16).build().eval()
    images = [LabelledImage(torch.randn(3, 16, 16), number % 2) for number in range(5)]
    found = extract(backbone, images, [0, 2], batch_size=2, loader=HERE)
    batch = torch.stack([sample.image for sample in images])
    with torch.no_grad():
        features = backbone.forward_features(batch, [0, 2])
    assert list(found.layers) == [0, 2, OUTPUT] and found.labels.tolist() == [0, 1, 0, 1, 0]
    for layer, tokens in zip((0, 2), features.layers, strict=True):
        torch.testing.assert_close(found.layers[layer], tokens.mean(dim=1))
    torch.testing.assert_close(found.layers[OUTPUT], features.class_token)
    twice = extract(backbone, images, [2, 0, 2], batch_size=2, loader=HERE)
    assert list(twice.layers) == [2, 0, OUTPUT] and twice.layers[2].equal(found.layers[2])
    with pytest.raises(VitrailError, match="layers 0 to 2"):
        extract(backbone, images, [3], loader=HERE)
    with pytest.raises(VitrailError, match="have no labels"):
        extract(backbone, [UnlabelledImage(batch[0])], loader=HERE)


@pytest.mark.parametrize("penalty", [math.nan, math.inf, -1.0, 1e38])
def test_penalties_that_cannot_be(penalty):
    with pytest.raises(VitrailError, match=f"is {re.escape(f'{penalty:g}')}; it must be a number from 0 to 1000000"):
        fit_linear(torch.eye(4), torch.arange(4), penalty)
    assert fit_linear(torch.eye(4), torch.arange(4), 1e6).weight.abs().max() < 1e-6


def test_one_class_is_refused():
    data = points(30, 0)
    with pytest.raises(VitrailError, match="at least two classes"):
        fit_linear(data.layers[0], torch.zeros(30, dtype=torch.int64))
    assert replace(data, labels=data.labels).labels is data.labels


def test_the_curve_is_drawn(tmp_path):
    plot_layers({"run": {0: 0.2, 1: 0.4, OUTPUT: 0.3}}, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
