import pytest
import torch
from torch import nn

from vitrail.errors import VitrailError
from vitrail.recipes import load_recipe
from vitrail.recognize import distill
from vitrail.recognize.distill import Teacher, load_teacher

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Recorder(nn.Module):
    def forward(self, images):
        self.seen = images
        return images.mean(dim=(2, 3))


def test_the_teacher_sees_pictures_in_its_own_normalisation():
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in IMAGENET)
    network = Recorder()
    decisions = Teacher(network, IMAGENET, HALF)((pixels - mean) / deviation)
    assert torch.allclose(network.seen, (pixels - 0.5) / 0.5, atol=1e-6)
    assert decisions.tolist() == pixels.mean(dim=(2, 3)).argmax(1).tolist()


def test_the_teacher_stays_frozen_and_evaluating():
    teacher = Teacher(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), HALF, HALF).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_checkpoint_teaches(run, photos):
    from vitrail.weights import load_classifier

    teacher = load_teacher(str(run), load_classifier(run).classes, IMAGENET)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(teacher(images), load_classifier(run).model(images).argmax(1))


def test_a_teacher_is_asked_about_pictures_of_the_size_of_training(monkeypatch):
    """One of a fixed size, as with Linformer's attention."""
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 10))
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: fixed)
    assert load_teacher("torchvision:fixed", "abcdefghij", IMAGENET, 48)(torch.zeros(2, 3, 48, 48)).shape == (2,)
    with pytest.raises(
        VitrailError, match=r"^The teacher torchvision:fixed takes no pictures of 32 pixels \(.*\); train"
    ):
        load_teacher("torchvision:fixed", "abcdefghij", IMAGENET, 32)


def test_other_classes_are_refused(run):
    from vitrail.weights import load_classifier

    classes = load_classifier(run).classes
    with pytest.raises(VitrailError, match="knows 10 classes and the data has 7; distil from one"):
        load_teacher(str(run), classes[:7], IMAGENET)
    with pytest.raises(VitrailError, match="knows other classes than the data has, or the same in another order; "):
        load_teacher(str(run), classes[::-1], IMAGENET)


def test_a_teacher_that_names_no_classes(monkeypatch):
    monkeypatch.setattr(distill, "open_task", lambda name: (load_recipe("splitmask_mini"), None))
    with pytest.raises(VitrailError, match=r"^The teacher runs/mine is a SplitMask; give a run of a classifier\.$"):
        load_teacher("runs/mine", ("a", "b"), IMAGENET)


@pytest.mark.parametrize("name", ["torchvision:nonsense", "timm:nonsense"])
def test_an_unknown_teacher_is_named(name):
    with pytest.raises(VitrailError, match=rf"The teacher {name} cannot be loaded .*; give timm:NAME"):
        load_teacher(name, "abcdefghij", IMAGENET)
