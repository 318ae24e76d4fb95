"""Files made under one configuration, decoded under others: the indices are the same, always."""

import copy
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.compress import Codec
from vitrail.compress.coding.frequencies import MARGIN, choose_offset, integer_histogram, levels
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


def in_batch(context):
    """The same prior, asked about four grids at once, of which the last is the one in question."""

    def function(indices, known):
        others = torch.roll(indices.repeat(3, 1, 1, 1), 1, dims=2)
        return context(torch.cat([others, indices]), known.repeat(4, 1, 1))[-1:]

    return function


@contextmanager
def configuration(codec, threads=1, mkldnn=True, batch=1, compiled=False):
    before, prior = torch.get_num_threads(), codec.networks.prior
    torch.set_num_threads(threads)
    if batch > 1:
        prior.context = in_batch(prior.context)
    if compiled:
        prior.trunk.compile()
    try:
        with torch.backends.mkldnn.flags(enabled=mkldnn):
            yield
    finally:
        vars(prior).pop("context", None)
        prior.trunk._compiled_call_impl = None
        torch.set_num_threads(before)


def logits_of(codec, indices, known):
    prior = codec.networks.prior
    return prior.logits(prior.context(indices, known), indices.shape[3])


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
    for image in pictures(10):
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
        logits = logits_of(codec, indices, known)
        with configuration(codec, **other):
            others = logits_of(codec, indices, known)
        plain = codec.prior(indices, known)
    assert logits.std() > 1
    assert (logits - others).abs().max() < MARGIN / 100
    assert (logits - plain).abs().max() < MARGIN / 100
    offset = choose_offset(logits.numpy())
    assert (levels(logits.numpy(), offset) == levels(others.numpy(), offset)).all()


@torch.inference_mode()
def test_float32_would_not_do(codec):
    """What the design avoids: in float32 the differences are beyond any margin that a million logits leave."""
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, 16, (1, 40, 40, 3), generator=generator)
    known = torch.rand((1, 40, 40), generator=generator) < 0.3
    single = copy.deepcopy(codec.prior).float()(indices, known)
    assert (codec.prior(indices, known) - single).abs().max() > 100 * MARGIN


@pytest.mark.parametrize("instructions", ["default", "avx2"])
def test_files_decode_with_other_instructions(codec, instructions, tmp_path):
    """In a process of its own, since kernels are chosen when it begins."""
    torch.save(codec, tmp_path / "codec")
    files = [codec.compress(image) for image in pictures(20)]
    (tmp_path / "files").write_bytes(pickle.dumps(files))
    code = (
        "import pickle, pathlib, sys, torch; folder = pathlib.Path(sys.argv[1]); torch.set_num_threads(1);"
        "codec = torch.load(folder / 'codec', weights_only=False);"
        "read = [codec._read(data, None) for data in pickle.loads((folder / 'files').read_bytes())];"
        "assert all(report.damage is None for _, _, report in read);"
        "(folder / 'indices').write_bytes(pickle.dumps([grid.indices for _, grid, _ in read]));"
        "print(torch.backends.cpu.get_cpu_capability())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instructions}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == instructions.upper()
    for data, indices in zip(files, pickle.loads((tmp_path / "indices").read_bytes()), strict=True):
        assert (codec._read(data, None)[1].indices == indices).all()


@pytest.mark.gpu
def test_files_decode_on_a_gpu(codec):
    files = [codec.compress(image) for image in pictures(100)]
    alone = [codec._read(data, None)[1].indices for data in files]
    codec.networks.prior.cuda()
    try:
        for data, indices in zip(files, alone, strict=True):
            _, grid, report = codec._read(data, None)
            assert report.damage is None
            assert (grid.indices == indices).all()
    finally:
        codec.networks.prior.cpu()
