import json

import numpy as np
import onnxruntime
import pytest
import torch

from vitrail.backbones.vit import ViTConfig
from vitrail.backbones.xcit import XCiTConfig
from vitrail.data.augmentation import EvalTransform
from vitrail.errors import VitrailError
from vitrail.recognize.classify import Classifier
from vitrail.weights import Network, export
from vitrail.weights.networks import METADATA

CONFIGS = {
    "xcit": XCiTConfig(width=32, heads=4, depth=1, class_depth=1),
    "vit": ViTConfig(width=32, heads=2, depth=1, image_size=64, distillation_token=True),
}
SIZES = [(1, 3, 64, 64), (3, 3, 47, 100), (2, 3, 32, 17)]


@pytest.fixture(params=CONFIGS)
def classifier(request, fill):
    return Classifier(fill(CONFIGS[request.param].build(3)), ("a", "b", "c"), EvalTransform(size=64))


def check(classifier, run):
    for shape in SIZES:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            expected = classifier.model(images)
        assert (run(images) - expected).abs().max() <= 1e-5 * expected.abs().max(), shape


def check_metadata(text, classifier):
    metadata = json.loads(text)
    assert metadata["classes"] == ["a", "b", "c"]
    assert metadata["transform"]["size"] == 64
    assert metadata["backbone"]["type"].startswith("backbones.")


def test_onnx_of_any_size(classifier, tmp_path):
    path = tmp_path / "model.onnx"
    export(classifier, path)
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, "height", "width"])]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    check(classifier, lambda images: torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0])))
    check_metadata(session.get_modelmeta().custom_metadata_map[METADATA], classifier)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_features_as_onnx(tmp_path, fill):
    network = Network(fill(CONFIGS["vit"].build()), EvalTransform(size=64))
    export(network, tmp_path / "features.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "features.onnx")
    assert [o.name for o in session.get_outputs()] == ["features"]
    check(network, lambda images: torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0])))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_program_of_any_size(classifier, tmp_path):
    path = tmp_path / "model.pt2"
    export(classifier, path)
    extra = {METADATA: ""}
    check(classifier, torch.export.load(path, extra_files=extra).module())
    check_metadata(extra[METADATA], classifier)


def test_the_model_itself_stays_as_it_was(tmp_path):
    model = CONFIGS["xcit"].build(3).train()
    export(Classifier(model, ("a", "b", "c"), EvalTransform()), tmp_path / "model.safetensors")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_exported_says_so(tmp_path, monkeypatch):
    def classifier(model):
        return Classifier(model, ("a", "b", "c"), EvalTransform())

    with pytest.raises(VitrailError, match=r"its name must end in .safetensors, .pt2, .onnx\.$"):
        export(classifier(CONFIGS["xcit"].build(3)), tmp_path / "model.pth")
    with pytest.raises(VitrailError, match="A Linear cannot be exported"):
        export(classifier(torch.nn.Linear(1, 1)), tmp_path / "model.onnx")
    fixed = ViTConfig(width=32, heads=2, depth=1, image_size=64, attention="linformer").build(3)
    for name in ("model.pt2", "model.onnx"):
        with pytest.raises(VitrailError, match=r"^Linformer takes one size alone, .*; export it as .safetensors\.$"):
            export(classifier(fixed), tmp_path / name)
    axial = ViTConfig(width=32, heads=2, depth=1, image_size=64, attention="axial").build(3)
    with pytest.raises(VitrailError, match=r"model.onnx \(\w+Error: [\x20-\x7e]+\); any network can be exported as"):
        export(classifier(axial), tmp_path / "model.onnx")
    reduced = ViTConfig(32, 1, 2, 8, 64, attention="spatial_reduction_convolutional").build(3)
    with pytest.raises(VitrailError, match=r"cannot be written to .*model.pt2 \(AssertionError: Guard failed"):
        export(classifier(reduced), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
