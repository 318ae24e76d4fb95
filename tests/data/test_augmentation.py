import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from vitrail.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, Mixing, TrainTransform
from vitrail.data.loader import seeded
from vitrail.errors import VitrailError


@pytest.mark.parametrize(("size", "ratio"), [(64, 1.0), (64, 0.875), (96, 0.9), (160, 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_equals_timm(size, ratio, interpolation, photo):
    theirs = create_transform(size, is_training=False, interpolation=interpolation, crop_pct=ratio)
    assert torch.equal(EvalTransform(size, ratio, interpolation).build()(photo), theirs(photo))


@pytest.mark.parametrize("seed", range(4))
def test_training_equals_the_peers_step_by_step(seed, photo):
    """The same draws give torchvision's crop and flip, timm's RandAugment, and torchvision's erasing."""
    theirs = create_transform(64, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic")
    rand_augment = theirs.transforms[2]
    assert type(rand_augment).__name__ == "RandAugment"
    with seeded(seed, 0):
        ours = TrainTransform(64, erasing=1.0).build()(photo)
    with seeded(seed, 0):
        crop = v2.RandomResizedCrop(64, interpolation=v2.InterpolationMode.BICUBIC)
        expected = v2.functional.pil_to_tensor(rand_augment(v2.RandomHorizontalFlip()(crop(photo))))
        expected = v2.functional.normalize(expected.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
        expected = v2.RandomErasing(1.0, (0.02, 1 / 3), (0.3, 1 / 0.3), "random")(expected)
    assert ours.shape == (3, 64, 64)
    assert torch.equal(ours, expected)


def test_erasing_is_normal_noise_on_a_quarter_of_the_images(photo):
    kept = TrainTransform(32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, rand_augment="", colour_jitter=0)
    whole, erasing = photo.crop((0, 0, 96, 96)), kept.build()
    with seeded(0, 0):
        changed = [(erasing(whole) != EvalTransform(32).build()(whole)).any(0) for _ in range(400)]
    erased = [mask for mask in changed if mask.any()]
    assert 75 <= len(erased) <= 125
    assert all(0.01 < mask.float().mean() < 0.36 for mask in erased)


def test_colour_jitter_only_without_rand_augment(photo):
    names = [
        [type(step).__name__ for step in TrainTransform(rand_augment=policy, colour_jitter=jitter).build().transforms]
        for policy, jitter in (("rand-m9-mstd0.5-inc1", 0.4), ("", 0.4), ("", 0.0))
    ]
    assert [("RandAugment" in steps, "ColorJitter" in steps) for steps in names] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_mixing_one_seed_one_result():
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    for seed in range(8):
        results = []
        for _ in range(2):
            with seeded(seed, 0):
                results.append(Mixing().build(5)(images, labels))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        torch.testing.assert_close(results[0][1].sum(1), torch.ones(6))


def test_mixup_weights_images_as_labels():
    images = torch.eye(4)[:, :3, None, None].expand(4, 3, 8, 8) + torch.arange(4.0)[:, None, None, None]
    labels = torch.arange(4)
    with seeded(1, 0):
        mixed, targets = Mixing(cutmix=0).build(4)(images, labels)
    expected = torch.einsum("bk,kchw->bchw", targets, images)
    torch.testing.assert_close(mixed, expected)
    assert 0 < targets.max() < 1


def test_cutmix_weights_labels_by_area():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16)
    with seeded(4, 0):
        mixed, targets = Mixing(mixup=0).build(4)(images, torch.arange(4))
    share = torch.stack([(mixed == label).float().mean((1, 2, 3)) for label in range(4)], dim=1)
    torch.testing.assert_close(targets, share)
    assert 0 < targets.max() < 1


def test_mixing_switches():
    images = torch.arange(2.0)[:, None, None, None].expand(2, 1, 16, 16)
    with seeded(0, 0):
        mix = Mixing(switch=0.5).build(2)
        cut = sum(bool(((x := mix(images, torch.arange(2))[0]) == x.round()).all()) for _ in range(200))
    assert 75 <= cut <= 125
    same, targets = Mixing(mixup=0, cutmix=0).build(3)(images, torch.tensor([2, 0]))
    assert torch.equal(same, images)
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_only_the_global_generators_decide(photo):
    transform = TrainTransform(32).build()
    results = []
    for _ in range(2):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        results.append(torch.stack([transform(photo) for _ in range(8)]))
    assert torch.equal(*results)


@pytest.mark.parametrize("size", [(1, 10_000_000), (10_000_000, 1)])
def test_of_a_long_strip_the_middle_is_prepared(size):
    """Resized whole, it would have 41 billion pixels."""
    strip = Image.new("RGB", size)
    strip.putpixel((size[0] // 2, size[1] // 2), (255, 255, 255))
    prepared = EvalTransform(size=64, mean=(0, 0, 0), std=(1, 1, 1)).build()(strip)
    assert prepared.shape == (3, 64, 64) and prepared.max() > 0.5


def test_the_smaller_number_stands_first():
    with pytest.raises(VitrailError, match=r"TrainTransform\.ratio is 2 to 1; give the smaller number first"):
        TrainTransform(ratio=(2, 1))


def test_an_unknown_policy_is_named():
    with pytest.raises(VitrailError, match="rand_augment is 'nonsense', which timm does not understand"):
        TrainTransform(rand_augment="nonsense").build()


@pytest.mark.parametrize("options", [{"size": 2**14 + 1}, {"size": 224, "crop_ratio": 0.01}])
def test_pictures_that_no_memory_holds_are_refused(options):
    with pytest.raises(VitrailError, match="resized to 16384 pixels at most; choose a smaller size"):
        EvalTransform(**options)
    with pytest.raises(VitrailError, match=r"TrainTransform\.size is 16385; it must be at least 1 and at most 16384"):
        TrainTransform(size=2**14 + 1)
    assert EvalTransform(2**14).size == 2**14
