"""Files made under one configuration, decoded under others: the indices are the same, always."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitrail.compress import Codec
from vitrail.compress.frequencies import MARGIN, choose_offset, integer_histogram, levels
from vitrail.compress.prior import PriorConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN"),  # whenever oneDNN is switched
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # torch.compile's own imports
]


@pytest.fixture(scope="module")
def codec(tiny_autoencoder):
    """The real networks, small; weights large enough for logits that differ."""
    torch.manual_seed(0)
    autoencoder = tiny_autoencoder.build()
    prior = PriorConfig(width=32, depth=3, heads=4).build(autoencoder.parts, autoencoder.centroids)
    with torch.no_grad():
        prior.heads.weight *= 20
    return Codec(autoencoder, prior, integer_histogram(prior.marginal.numpy()), "real")


class InBatch(nn.Module):
    """The same prior, asked about four grids at once, of which the last is the one in question."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, indices, known):
        others = torch.roll(indices.repeat(3, 1, 1, 1), 1, dims=2)
        return self.prior(torch.cat([others, indices]), known.repeat(4, 1, 1))[-1:]


@contextmanager
def configuration(codec, threads=1, mkldnn=True, batch=1, compiled=False):
    before, prior = torch.get_num_threads(), codec.prior
    torch.set_num_threads(threads)
    codec.prior = InBatch(prior) if batch > 1 else torch.compile(prior) if compiled else prior
    try:
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            yield
    finally:
        codec.prior = prior
        torch.set_num_threads(before)


CONFIGURATIONS = [
    {"threads": 2},
    {"mkldnn": False},
    {"batch": 4},
    {"threads": 2, "mkldnn": False, "batch": 4},
    pytest.param({"compiled": True}, marks=pytest.mark.slow),
]


def pictures(count):
    generator = np.random.default_rng(0)
    for number in range(count):
        height, width = 8 * generator.integers(3, 12, size=2) - number % 8
        yield Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("other", CONFIGURATIONS, ids=str)
def test_files_decode_under_every_other_configuration(codec, other):
    mismatches = 0
    for image in pictures(30):
        data = codec.compress(image)
        alone = codec._read(data, None)[1].indices
        with configuration(codec, **other):
            assert codec.compress(image) == data
            _, grid, report = codec._read(data, None)
            mismatches += report.damage is not None or (grid.indices != alone).any()
    assert mismatches == 0


@pytest.mark.parametrize("other", CONFIGURATIONS, ids=str)
def test_the_margin_is_a_hundred_times_what_differs(codec, other):
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, 16, (1, 40, 40, 3), generator=generator)
    known = torch.rand((1, 40, 40), generator=generator) < 0.3
    with torch.inference_mode():
        logits = codec.prior(indices, known)
        with configuration(codec, **other):
            others = codec.prior(indices, known)
    assert logits.std() > 1
    assert (logits - others).abs().max() < MARGIN / 100
    offset = choose_offset(logits.numpy())
    assert (levels(logits.numpy(), offset) == levels(others.numpy(), offset)).all()


@torch.inference_mode()
def test_float32_would_not_do(codec):
    """What the design avoids: in float32 the differences are beyond any margin that a million logits leave."""
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, 16, (1, 40, 40, 3), generator=generator)
    known = torch.rand((1, 40, 40), generator=generator) < 0.3
    prior = copy.deepcopy(codec.prior).float()
    single = prior(indices, known)
    assert (codec.prior(indices, known) - single).abs().max() > 100 * MARGIN


@pytest.mark.gpu
def test_files_decode_on_a_gpu(codec):
    files = [codec.compress(image) for image in pictures(100)]
    alone = [codec._read(data, None)[1].indices for data in files]
    codec.prior.cuda()
    try:
        for data, indices in zip(files, alone, strict=True):
            _, grid, report = codec._read(data, None)
            assert report.damage is None
            assert (grid.indices == indices).all()
    finally:
        codec.prior.cpu()
