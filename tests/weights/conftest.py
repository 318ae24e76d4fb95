"""Small models of every kind, and models filled with numbers that leave no bug in hiding."""

import pytest
import torch
from torch import nn


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Numbers as of a trained network: initial values would hide a missing bias, scale, temperature or statistic."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var") or "temperature" in name:
                tensor.copy_(0.5 + noise.abs() / 2)
            elif "gamma" in name or "scale" in name:
                tensor.copy_(0.3 + 0.05 * noise)
            elif tensor.ndim <= 1 and name.endswith("weight"):
                tensor.copy_(1 + 0.1 * noise)
            elif tensor.ndim <= 1:
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_(noise / max(tensor[0].numel(), 1) ** 0.5)
    return model.eval()


@pytest.fixture(name="fill")
def fill_fixture():
    return fill


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds a file where a published one would be, with other contents."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"
