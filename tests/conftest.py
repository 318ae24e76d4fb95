"""Real photos, and a classifier that was trained on them for two steps."""

from pathlib import Path

import pytest

import vitrail


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need an accelerator are left out where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no accelerator")


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
