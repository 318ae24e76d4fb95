import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo():
    """A real photo, 112 pixels high or wide at least."""
    path = Path(__file__).parents[2] / "src" / "vitrail" / "demo" / "photos" / "test" / "tomato" / "00.webp"
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.fixture
def to_array():
    """The transform that keeps pixels as they are: a picture -> [3, H, W], uint8."""
    return pixels


def pixels(image):
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def write_image():
    """Writes an image of one colour, which tells it from others."""

    def write(path, value=0, size=(4, 4)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (value, value, value)).save(path)

    return write


@pytest.fixture
def shard():
    """Writes a tar shard: for each key a PNG whose grey value is the label, and the label."""

    def write(path, samples):
        with tarfile.open(path, "w") as tar:
            for key, value in samples.items():
                file = io.BytesIO()
                Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
                add_member(tar, f"{key}.png", file.getvalue())
                add_member(tar, f"{key}.cls", str(value).encode())
        return path

    return write


def add_member(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def raw_shard():
    """Writes a tar shard of the given members, name -> bytes."""

    def write(path, members):
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                add_member(tar, name, data)
        return path

    return write
