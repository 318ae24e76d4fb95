"""CompressAI's methods: estimated bits against real bytes, padding, whole files as strings."""

import math

import pytest
import torch
import torch.nn.functional as F

from vitrail.compress import Scheme
from vitrail.compress.errors import CodecError
from vitrail.compress.evaluation.compressai import CompressAIModel

IMAGES = F.interpolate(torch.rand(3, 3, 9, 11, generator=torch.Generator().manual_seed(0)), (83, 110), mode="bicubic")
IMAGES = IMAGES.clamp(0, 1)


@pytest.mark.parametrize(
    ("quality", "scheme"),
    [(None, None), (1, Scheme("quincunx", 3)), (2, Scheme("marginal", 1)), (2, Scheme("quincunx", 8))],
)
def test_estimated_bits_are_those_of_the_files_but_for_the_overhead(make_codec, quality, scheme):
    """A file has 8 or 9 bytes of header, at most 3 bytes of checks a stage, and is rounded up to a byte. Offsets cost
    less than a bit a stage, and logits rounded to 1/16 change an index by 0.09 bits at the very most, by 0.005 % on
    average where the distribution is the model's."""
    model = CompressAIModel(make_codec(), quality, scheme).eval()
    estimated = -model(IMAGES)["likelihoods"]["indices"].log2().flatten(1).sum(dim=1)
    (strings,) = model.compress(IMAGES)["strings"]
    stages = (scheme or Scheme()).stages
    for bits, data in zip(estimated.tolist(), strings, strict=True):
        overhead = 8 * len(data) - bits
        assert 8 * 8 + 24 - 1e-3 * bits <= overhead <= 9 * 8 + 24 * stages + 16 + 1e-3 * bits
        assert bits > 2000


def test_the_likelihoods_are_distributions(make_codec):
    """Summed over all values of the one index of a grid of 1 x 1, and of the second stage of a grid of 1 x 2."""
    codec = make_codec(parts=1, centroids=16)
    model = CompressAIModel(codec, None, Scheme("quincunx", 2))
    totals = torch.zeros(2, dtype=torch.float64)
    for value in range(16):
        model.autoencoder.encode = lambda images, value=value: torch.tensor([[[[3], [value]]]])
        found = model(torch.zeros(1, 3, 4, 8))["likelihoods"]["indices"]
        assert found.shape == (1, 1, 2, 1) and found.dtype == torch.float64
        assert found[0, 0, 0, 0].item() == pytest.approx(codec.marginals[0, 3] / codec.marginals[0].sum(), rel=1e-9)
        totals += found.flatten()
    assert totals[1].item() == pytest.approx(1, abs=1e-5)


def test_decompressed_pictures_are_those_of_forward(make_codec):
    model = CompressAIModel(make_codec(), 2)
    out = model.compress(IMAGES)
    assert out["shape"] == (21, 28) and len(out["strings"]) == 1 and len(out["strings"][0]) == 3
    decoded = model.decompress(out["strings"], out["shape"])["x_hat"]
    assert decoded.shape == IMAGES.shape and model.update(force=True) is False
    assert (decoded - model(IMAGES)["x_hat"]).abs().max() <= 1.01 / 255
    assert (decoded * 255).round().div(255).equal(decoded)


def test_an_evaluation_written_for_compressai(make_codec):
    """The rates as its `eval_model` computes them, which counts whole files here."""
    model = CompressAIModel(make_codec()).eval()
    device = next(model.parameters()).device
    image = IMAGES[:1].to(device)
    out = model.compress(image)
    pixels = image.shape[2] * image.shape[3]
    real = sum(len(s[0]) for s in out["strings"]) * 8.0 / pixels
    likelihoods = model(image)["likelihoods"]
    estimated = sum((torch.log(one).sum() / (-math.log(2) * pixels)).item() for one in likelihoods.values())
    assert estimated < real < 1.1 * estimated


def test_rates_that_depend_on_the_picture_are_refused(make_codec):
    with pytest.raises(CodecError, match="confidence_linear cannot be estimated"):
        CompressAIModel(make_codec(), scheme=Scheme("confidence_linear"))


@pytest.mark.parametrize("quality", [-1, 0, 3])
def test_a_quality_that_the_codec_has_not_is_refused(make_codec, quality):
    with pytest.raises(CodecError, match=f"has no quality {quality}; choose 1 to 2"):
        CompressAIModel(make_codec(), quality)
