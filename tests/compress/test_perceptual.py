"""Deep features from every source, and LPIPS written out."""

import math
from dataclasses import replace

import pytest
import torch

from vitrail.compress.perceptual import FeaturesConfig, load_features, load_linear, perceptual_distance
from vitrail.errors import VitrailError


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """timm's ResNet-18 with random weights, and a file with them."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False).eval()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_a_local_file_of_timms_is_loaded_whole(resnet):
    model, path = resnet
    features = load_features(f"timm:resnet18={path}")
    assert features.channels == (64, 64, 128, 256, 512)
    images = torch.rand(2, 3, 64, 64)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    picture = model.act1(model.bn1(model.conv1(normalised)))
    expected = [picture]
    picture = model.maxpool(picture)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        picture = stage(picture)
        expected.append(picture)
    for made, wanted in zip(features(images), expected, strict=True):
        torch.testing.assert_close(made, wanted)


def test_features_are_frozen_but_gradients_reach_the_images(resnet):
    features = load_features(f"timm:resnet18={resnet[1]}").train()
    assert not features.network.training
    assert not any(parameter.requires_grad for parameter in features.parameters())
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    features(images)[-1].sum().backward()
    assert images.grad.abs().sum() > 0


def test_a_checkpoint_of_ours_gives_the_layers_of_its_backbone(run):
    from vitrail.engine.checkpoint import open_task

    features = load_features(str(run))
    experiment, task = open_task(run)
    transform = experiment.eval_transform
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor(transform.mean).view(3, 1, 1)) / torch.tensor(transform.std).view(3, 1, 1)
    expected = task.backbone.forward_features(normalised, [0, 1]).maps()
    made = features(images)
    assert features.channels == (32, 32) and len(made) == 2
    for ours, wanted in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_the_configuration_is_prepared_once(resnet):
    config = FeaturesConfig(network=f"timm:resnet18={resnet[1]}")
    prepared = config.prepared()
    assert prepared == replace(config, channels=(64, 64, 128, 256, 512))
    assert replace(prepared, network="nowhere").prepared().channels == prepared.channels


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet18=nowhere.pth", "There is no file nowhere.pth with weights of resnet18"),
        ("timm:nonsense_net=README.md", "The features timm:nonsense_net=README.md cannot be loaded"),
        ("nowhere", "There is no checkpoint nowhere"),
    ],
)
def test_features_that_cannot_be_had_are_named(name, message):
    with pytest.raises(VitrailError, match=message):
        load_features(name)


def test_a_checkpoint_without_a_backbone_is_refused(autoencoder_run):
    with pytest.raises(VitrailError, match=r"cannot be loaded .*; give timm:NAME"):
        load_features(str(autoencoder_run))


def test_the_distance_is_lpips_written_out():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 2, 2), (2, 5, 1, 2)]
    maps = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    others = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    weights = [torch.rand(3, generator=generator), torch.rand(5, generator=generator)]
    for used in (None, weights):
        expected = [0.0, 0.0]
        for number, (a, b) in enumerate(zip(maps, others, strict=True)):
            _, channels, height, width = a.shape
            for sample in range(2):
                for y in range(height):
                    for x in range(width):
                        one, two = a[sample, :, y, x].tolist(), b[sample, :, y, x].tolist()
                        lengths = math.hypot(*one), math.hypot(*two)
                        for c in range(channels):
                            weight = 1.0 if used is None else used[number][c].item()
                            square = (one[c] / lengths[0] - two[c] / lengths[1]) ** 2
                            expected[sample] += weight * square / (height * width)
        assert perceptual_distance(maps, others, used).tolist() == pytest.approx(expected, rel=1e-5)
    assert perceptual_distance(maps, maps).tolist() == [0, 0]


def test_lpips_weights_come_from_a_file_that_fits(tmp_path):
    path = tmp_path / "lpips.pth"
    state = {f"lin{number}.model.1.weight": torch.rand(1, c, 1, 1) for number, c in enumerate((3, 5))}
    torch.save(state, path)
    weights = load_linear(path, (3, 5))
    assert all(torch.equal(w, s.flatten()) for w, s in zip(weights, state.values(), strict=True))
    with pytest.raises(VitrailError, match=r"for maps of \[3, 5\] channels, the network's have \[3, 6\]"):
        load_linear(path, (3, 6))
    path.write_bytes(b"nothing")
    with pytest.raises(VitrailError, match="Cannot read LPIPS' weights"):
        load_linear(path, (3, 5))
