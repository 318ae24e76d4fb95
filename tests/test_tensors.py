import argparse
import collections
import os
import zipfile
from pathlib import PurePosixPath

import pytest
import torch
from safetensors.torch import save_file

from vitrail.errors import FileError
from vitrail.tensors import read_tensors

VALUES = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_names_of_nested_tensors(mapped, zipped, tmp_path):
    nested = {"model": {"a.b": VALUES, "c": {0: VALUES + 1}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(nested, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    tensors, metadata = read_tensors(tmp_path / "file.pth", mapped)
    assert list(tensors) == ["model.a.b", "model.c.0"]
    assert torch.equal(tensors["model.a.b"], VALUES)
    assert torch.equal(tensors["model.c.0"], VALUES + 1)
    assert metadata == {}


def test_safetensors_and_their_metadata(tmp_path):
    for name in ("file.safetensors", "named_otherwise.bin"):
        save_file({"a": VALUES}, tmp_path / name, {"who": "me"})
        tensors, metadata = read_tensors(tmp_path / name)
        assert torch.equal(tensors["a"], VALUES)
        assert metadata == {"who": "me"}


def test_files_that_are_not_weights(tmp_path):
    with pytest.raises(FileError, match="There is no file"):
        read_tensors(tmp_path / "nothing.pth")
    good = tmp_path / "good.pth"
    torch.save({"a": torch.zeros(1000)}, good)
    save_file({"a": torch.zeros(100)}, tmp_path / "good.safetensors")
    broken = {
        "empty.pth": b"",
        "text.pth": b"hello, world",
        "cut.pth": good.read_bytes()[:2000],
        "cut.safetensors": (tmp_path / "good.safetensors").read_bytes()[:200],
        "page.safetensors": b"<html>404</html>",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=f"{name} is not a readable file of weights") as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2).half()
        self.blocks = torch.nn.ModuleList([torch.nn.LayerNorm(4)])
        self.turned = torch.nn.Parameter(VALUES.clone().T)
        self.register_buffer("number", torch.tensor(7))

    def forward(self, inputs):
        return self.blocks[0](inputs)


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")
def test_archives_of_torchscript(tmp_path):
    module = Scripted()
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 4)), tmp_path / "file.pt")
    tensors, _ = read_tensors(tmp_path / "file.pt")
    expected = module.state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name])
        assert tensor.stride() == expected[name].stride()
    content = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"cut\.pt is not a readable file of weights"):
        read_tensors(tmp_path / "cut.pt")


@pytest.mark.parametrize("evil", [print, os.system, torch.load, collections.Counter, "far"])
def test_archives_that_would_run_programs_are_refused(evil, tmp_path):
    """The pickle in an archive names something else, or numbers beyond what is stored."""
    if evil == "far":
        storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
        data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"K\x7f(K\x09t(K\x01t\x89NtR."
    else:
        data = b"\x80\x02c" + f"{evil.__module__}\n{evil.__name__}\n".encode() + b"(X\x01\x00\x00\x00atR."
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        for name, content in (("data.pkl", data), ("constants.pkl", b""), ("data/0", bytes(4))):
            archive.writestr(f"evil/{name}", content)
    with pytest.raises(FileError, match="not a readable file of weights"):
        read_tensors(tmp_path / "evil.pt")


def test_files_that_would_run_programs_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("I run when I am loaded",)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(FileError, match=r"needs builtins.print to be read, which could run any program; save its tens"):
        read_tensors(tmp_path / "evil.pth")
    torch.save({"model": torch.zeros(1), "when": PurePosixPath("a")}, tmp_path / "path.pth")
    with pytest.raises(FileError, match=r"needs pathlib.*PurePosixPath to be read"):
        read_tensors(tmp_path / "path.pth")


def test_modules_that_were_pickled_whole(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ModuleDict({"norm": torch.nn.BatchNorm1d(2)}))
    torch.save(module, tmp_path / "module.pkl")
    tensors, _ = read_tensors(tmp_path / "module.pkl")
    expected = module.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(
        torch.equal(tensors[name], value) and not tensors[name].requires_grad for name, value in expected.items()
    )
