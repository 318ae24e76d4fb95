"""Three discriminators that can all tell two kinds of pictures apart."""

import pytest
import torch
import torch.nn.functional as F

from vitrail.compress.training.discriminators import build_discriminator
from vitrail.compress.training.losses import discriminator_loss

CHANNELS = (4, 6, 8)


def maps(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Features that need no network: the picture at three scales, its channels repeated."""
    return tuple(F.avg_pool2d(images, 2**scale).repeat(1, 3, 1, 1)[:, :c] for scale, c in enumerate(CHANNELS, start=1))


def build(name: str):
    torch.manual_seed(0)
    return build_discriminator(name, CHANNELS, 8)


SHAPES = {
    "projected": [(2, 1, 5, 3)] * 3,
    "stylegan": [(2, 1)],
    "unet": [(2, 1), (2, 1, 40, 24)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    images = torch.rand(2, 3, 40, 24)
    assert [tuple(logits.shape) for logits in build(name)(images, maps(images))] == SHAPES[name]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("side", [16, 37])
def test_any_size(name, side):
    images = torch.rand(1, 3, side, side)
    assert all(logits.isfinite().all() for logits in build(name)(images, maps(images)))


@pytest.mark.parametrize("name", SHAPES)
def test_it_learns_originals_from_dim_copies_and_pushes_pictures(name):
    model = build(name)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (name == "projected")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(40):
        images = torch.rand(8, 3, 32, 32, generator=generator)
        dim = images / 2
        loss = discriminator_loss(model(images, maps(images)), model(dim, maps(dim)))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(dict(model.named_parameters())[n], value) for n, value in frozen.items())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    sum(logits.mean() for logits in model(images, maps(images))).backward()
    assert images.grad.abs().sum() > 0


def test_every_map_of_the_features_counts():
    model = build("projected").eval()
    images = torch.rand(1, 3, 32, 32)
    plain = model(images, maps(images))
    for scale in range(3):
        features = list(maps(images))
        features[scale] = features[scale] + 1
        changed = model(images, tuple(features))
        # Coarse maps flow into the finer ones, not the other way round.
        assert [not torch.equal(a, b) for a, b in zip(plain, changed, strict=True)] == [
            finer <= scale for finer in range(3)
        ]


def test_stylegans_sees_the_spread_of_a_batch():
    model = build("stylegan").eval()
    images = torch.rand(4, 3, 32, 32)
    together = model(images)[0]
    alone = torch.cat([model(image[None])[0] for image in images])
    assert not torch.allclose(together, alone)


def test_none_is_none():
    assert build("none") is None
