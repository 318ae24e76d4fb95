"""Files of tensors, whoever wrote them."""

import argparse
import io
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from vitrail.errors import FileError


def read_tensors(path: str | Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors or PyTorch file by their full names, outer keys first, and its metadata.

    Of TorchScript's archives, as of CLIP's own weights, tensors are read and the program in them is not. Of modules
    that were pickled whole, as DALL-E's encoder, tensors are read and their classes are not asked for.

    Args:
        path: of the file.
        mapped: leave the tensors of a PyTorch file where they are, to be read when they are used, if its format
            allows; those of safetensors always are.

    Raises:
        FileError: no such file, or not a file of tensors. Files that need more than tensors and plain values to be
            read could run any program, and are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_file(path)
    try:
        with path.open("rb") as file:
            looks_safe = path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
        if looks_safe:
            with safetensors.safe_open(path, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        zipped = zipfile.is_zipfile(path)  # files of before PyTorch 1.6 are none
        if zipped and (tensors := _read_script(path)) is not None:
            return tensors, {}
        known: list[Any] = [argparse.Namespace]  # training arguments beside the weights
        with torch.serialization.safe_globals(known):
            needed = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        if refused := [name for name in needed if not name.startswith(_MODULES)]:
            raise FileError(
                f"{path} needs {', '.join(sorted(refused)[:3])} to be read, which could run any program; "
                "save its tensors alone, as torch.save(model.state_dict(), file)."
            )
        with torch.serialization.safe_globals(known + [(_Module, name) for name in needed]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
        return dict(_flatten(loaded)), {}
    except FileError:
        raise
    except Exception:  # what damaged files raise is of nearly every built-in type
        raise FileError(
            f"{path} is not a readable file of weights (safetensors, or PyTorch with tensors and plain values alone); "
            "it may be cut short or something else: get it anew, and if it lies in Vitrail's cache, delete it first."
        ) from None


def missing_file(path: Path) -> FileError:
    """What is said of a file of weights that is not there."""
    return FileError(
        f"There is no file {path}; check the path, or name published weights (`vitrail models --weights`)."
    )


def _flatten(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, _Module):
        for key, item in value.attributes.items():
            inner = name if key in ("_parameters", "_buffers", "_modules") else _joined(name, key)
            yield from _flatten(item, inner)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, _joined(name, key))


def _joined(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _read_script(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a TorchScript archive; None: it is none."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("/constants.pkl") for name in names):
            return None
        (data,) = (name for name in names if name.count("/") == 1 and name.endswith("/data.pkl"))
        module = _ScriptUnpickler(archive, data.removesuffix(".pkl")).load()
    return dict(_flatten(module))


_MODULES = ("dall_e.", "torch.nn.modules.")
"""How the names of classes begin for which `_Module` stands in a PyTorch file; others are refused."""


class _Module:
    """Stands for any module's class, so that none is asked for, and has its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _ScriptUnpickler(pickle.Unpickler):
    """Makes tensors and plain values, and calls nothing that an archive names."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}.pkl")))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for something that the archive names; most is refused."""
        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _script_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, about: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
        """The numbers of some tensors."""
        _, dtype, key, _, _ = about
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}/{int(key)}"))
            self.storages[key] = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
        return self.storages[key], dtype


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def _script_tensor(
    storage: tuple[torch.UntypedStorage, torch.dtype],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *_: Any,
) -> Tensor:
    untyped, dtype = storage
    return torch.empty(0, dtype=dtype).set_(untyped, offset, size, stride)
