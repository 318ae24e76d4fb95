"""Real photos, a classifier that was trained on them for two steps, and scenes that two senses see."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need an accelerator are left out where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no accelerator")


@pytest.fixture(scope="session", autouse=True)
def processes_can_fork() -> None:
    """Wakes PyTorch's autograd before anything is exported.

    torch.export pretends that there are eight GPUs; autograd, if it wakes later, starts a thread for each of them, and
    the processes that tests fork from this one could not train any more.
    """
    import torch

    torch.ones((), requires_grad=True).backward()


@pytest.fixture(scope="session")
def photos() -> Path:
    """The photos that ship with the package: train/<class>/NN.webp and test/<class>/NN.webp."""
    return Path(vitrail.__file__).parent / "demo" / "photos"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the demo's recipe, made tiny."""
    from vitrail.cli.main import main

    folder = tmp_path_factory.mktemp("run") / "run"
    tiny = ["--backbone.width", "32", "--backbone.depth", "2", "--loop.batch-size", "8", "--loop.steps", "2"]
    sizes = ["--train-transform.size", "32", "--eval-transform.size", "32", "--loader.workers", "0"]
    assert main(["train", "xcit_demo", "-o", str(folder), *tiny, *sizes]) == 0
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Pictures of heat, and depths in metres of half the size, that show the same numbers: where on the picture."""
    lines = ["thermal,depth,caption"]
    for scene in range(3):
        rows, columns = np.mgrid[0:48, 0:64]
        place = ((rows + 0.5) / 48 + (columns + 0.5) / 64 + scene) / 5
        Image.fromarray((65535 * place).astype(np.uint16)).save(tmp_path / f"{scene}.tiff")
        half = place.reshape(24, 2, 32, 2).mean(axis=(1, 3))
        np.save(tmp_path / f"{scene}.npy", 1 / half)  # whose disparity is proportional to the place
        lines.append(f'{scene}.tiff,{scene}.npy,"scene {scene}, as it is"')
    (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "pairs.csv"
