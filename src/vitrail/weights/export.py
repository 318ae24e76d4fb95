"""Networks for use elsewhere: safetensors, torch.export programs, ONNX."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.backbones.features import Backbone
from vitrail.backbones.vit import ViT
from vitrail.config import to_json
from vitrail.errors import VitrailError
from vitrail.files import atomic_path
from vitrail.weights.networks import METADATA, Network

if TYPE_CHECKING:
    from vitrail.recognize.classify import Classifier

ONNX_LIMIT = 2**31  # bytes: protocol buffers hold no more

TOLERANCE = 1e-4  # of the largest output


def export(network: "Classifier | Network", path: str | Path) -> None:
    """Writes a classifier, or a network that gives features, in the format of the suffix.

    - `.safetensors`: the weights; `open_network` opens it again, and `load_classifier` if it is one.
    - `.pt2`: a torch.export program, `torch.export.load(path).module()`, that needs torch alone.
    - `.onnx`: for onnxruntime and others; input `images`, output `logits` or, without classes, `features`.

    Programs take pictures of any number, height and width above one patch, [B, 3, H, W] float32, normalised by the
    transform in the metadata. Before the file appears, it is run at three other sizes and compared with the model.
    Linformer takes one size alone, and PyTorch's exporters do not know all sizes of ResNets (.pt2) and of some
    efficient attentions: then nothing is written.

    Raises:
        VitrailError: an unknown suffix, a missing package, a model that cannot be exported or is not the same after.
    """
    path = Path(path)
    writers: dict[str, Callable[[nn.Module, dict[str, str], Path], None]] = {
        ".safetensors": _write_safetensors,
        ".pt2": _write_program,
        ".onnx": _write_onnx,
    }
    if path.suffix not in writers:
        raise VitrailError(f"Cannot export to {path}: its name must end in {', '.join(writers)}.")
    if not isinstance(network.model, Backbone):
        raise VitrailError(
            f"A {type(network.model).__name__} cannot be exported; export the network as it was loaded or trained."
        )
    model = copy.deepcopy(network.model).cpu().float().eval().requires_grad_(False)
    metadata = {
        "backbone": to_json(model.config),
        "classes": list(network.classes),
        "transform": to_json(network.transform),
    }
    with atomic_path(path) as temporary:
        try:
            writers[path.suffix](model, {METADATA: json.dumps(metadata)}, temporary)
        except VitrailError:
            raise
        except Exception as error:  # whatever the exporters raise where they do not know an operation or a size
            raise VitrailError(
                f"This network cannot be written to {path} ({_first_cause(error)}); "
                "any network can be exported as .safetensors."
            ) from error


def _write_safetensors(model: nn.Module, metadata: dict[str, str], path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path, metadata)


def _write_program(model: nn.Module, metadata: dict[str, str], path: Path) -> None:
    with _known_warnings():
        torch.export.save(_trace(model), path, extra_files=dict(metadata))
        program = torch.export.load(path).module()
    _compare(model, cast("Callable[[Tensor], Tensor]", program), path)


def _write_onnx(model: nn.Module, metadata: dict[str, str], path: Path) -> None:
    try:
        import onnxruntime
        import onnxscript
    except ImportError:
        raise VitrailError("ONNX needs packages that are not installed: pip install 'vitrail[export]'.") from None
    if sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) > ONNX_LIMIT:
        raise VitrailError("The model is above 2 GB, more than one ONNX file holds; export it as .pt2.")
    output = "logits" if model.num_classes else "features"
    with _known_warnings():
        program = torch.onnx.export(
            _trace(model), dynamo=True, input_names=["images"], output_names=[output], verbose=False
        )
    assert program is not None
    program.model.graph.inputs[0].shape = onnxscript.ir.Shape(["batch", 3, "height", "width"])
    program.model.metadata_props.update(metadata)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    _compare(model, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), path)


def _trace(model: nn.Module) -> torch.export.ExportedProgram:
    """The model as a graph in which batch, height and width are unknown."""
    if isinstance(model, ViT) and model.config.attention == "linformer":
        raise VitrailError("Linformer takes one size alone, and programs take any; export it as .safetensors.")
    patch_size = cast("int", model.patch_size)
    example = torch.zeros(2, 3, 3 * patch_size, 4 * patch_size)
    dynamic = torch.export.Dim.DYNAMIC
    with _known_warnings():
        return torch.export.export(model, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))


def _compare(model: nn.Module, exported: Callable[[Tensor], Tensor], path: Path) -> None:
    """At the size the model was made for, and at others that are no multiples of its patches."""
    patch_size = cast("int", model.patch_size)
    own = getattr(model.config, "image_size", 4 * patch_size)
    generator = torch.Generator().manual_seed(0)
    others = ((3, 5 * patch_size - 1, 3 * patch_size + 1), (2, patch_size + 1, 7 * patch_size - 1))
    for batch, height, width in ((1, own, own), *others):
        images = torch.randn(batch, 3, height, width, generator=generator)
        expected = model(images)
        error = (exported(images) - expected).abs().max() / expected.abs().max()
        if not error <= TOLERANCE:
            raise VitrailError(
                f"The exported model differs from this one by {error:.1e} of the largest output at {height} x "
                f"{width} pixels, so {path.suffix} was not written; export as .safetensors."
            )


def _first_cause(error: BaseException) -> str:
    """Its kind and first line; exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def _known_warnings() -> Iterator[None]:
    """torch 2.11 warns of its own deprecated class when it traces, and of its own read-only bytes when it loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield
