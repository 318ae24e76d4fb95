import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import vitrail
from vitrail.backbones import MODELS
from vitrail.backbones.xcit import XCITS, XCiTConfig
from vitrail.errors import FileError, VitrailError
from vitrail.weights import create_model, list_models, load_classifier, load_weights

TINY = XCiTConfig(width=32, heads=4, depth=1)
OVERRIDES = {"width": 32, "heads": 4, "depth": 1}


def same(model, other):
    return all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_list_models():
    assert len(list_models("xcit*")) == 14
    assert list_models("xcit_small_12_p?") == ["xcit_small_12_p8"]
    assert list_models() == sorted(MODELS)


def test_create_model_without_weights():
    model = create_model("xcit_nano_12_p16")
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_053_224
    assert not model.training
    assert create_model("xcit_nano_12_p16", num_classes=3, drop_path=0.1).config.drop_path == 0.1
    with pytest.raises(VitrailError, match=r"There is no model 'xcit_huge'; .*, such as xcit_large_24_p16, "):
        create_model("xcit_huge")
    with pytest.raises(VitrailError, match="xcit_nano_12_p16 has no setting size; it has width, depth, heads, "):
        create_model("xcit_nano_12_p16", size=3)
    with pytest.raises(VitrailError, match=r"head is 'bogus'; it must be one of load, skip, auto\.$"):
        create_model("xcit_nano_12_p16", head="bogus")
    assert create_model("xcit_nano_12_p16", num_classes=np.int64(7)).head.weight.shape == (7, 128)
    with pytest.raises(VitrailError, match="num_classes is -1; it must be a whole number, 0 for features"):
        create_model("xcit_nano_12_p16", num_classes=-1)
    with pytest.raises(
        VitrailError, match=r"No published weights are called 'xcit_nano_12_p16\.'; for this model there are"
    ):
        create_model("xcit_nano_12_p16.")


def test_published_weights_by_every_spelling(cache, fill):
    expected = fill(XCITS["xcit_nano_12_p16"].build(1000))
    torch.save({"model": expected.state_dict()}, cache / "xcit_nano_12_p16_384_dist.pth")
    for arguments in (
        ("xcit_nano_12_p16.dist_384",),
        ("xcit_nano_12_p16", "dist_384"),
        ("xcit_nano_12_p16", "xcit_nano_12_p16.dist_384"),
    ):
        assert same(expected, create_model(*arguments))
    with pytest.raises(VitrailError, match="give one of them"):
        create_model("xcit_nano_12_p16.dist_384", "in1k")
    model = XCITS["xcit_nano_12_p16"].build(1000)
    assert load_weights(model, "xcit_nano_12_p16.dist_384").left_aside == ()
    assert same(expected, model)


def test_published_backbone_of_a_detector_has_no_class_token(cache, fill):
    dense = fill(replace(XCITS["xcit_tiny_12_p16"], class_depth=0).build())
    torch.save(
        {"state_dict": {f"backbone.{key}": t for key, t in dense.state_dict().items()}},
        cache / "maskrcnn_xcit_tiny_12_p16.pth",
    )
    model = create_model("xcit_tiny_12_p16.coco_maskrcnn")
    assert model.config.class_depth == 0
    assert same(dense, model)


def test_local_file_decides_the_number_of_classes(tmp_path, fill):
    expected = fill(TINY.build(6))
    torch.save(expected.state_dict(), tmp_path / "six.pth")
    assert create_model("xcit_small_12_p16", tmp_path / "six.pth", **OVERRIDES).head.out_features == 6
    assert isinstance(create_model("xcit_small_12_p16", tmp_path / "six.pth", 0, **OVERRIDES).head, torch.nn.Identity)
    with pytest.raises(FileError, match=r"six.pth is for 6 classes and the model for 3; build the model"):
        create_model("xcit_small_12_p16", tmp_path / "six.pth", 3, **OVERRIDES)
    assert create_model("xcit_small_12_p16", tmp_path / "six.pth", 3, head="skip", **OVERRIDES).head.out_features == 3
    with pytest.raises(FileError, match=r"There is no file .*none.pth"):
        create_model("xcit_small_12_p16", tmp_path / "none.pth")
    with pytest.raises(VitrailError, match="No published weights are called 'none'"):
        load_weights(expected, "none")


def test_public_functions_are_imported_when_asked_for():
    code = "import sys, vitrail; assert 'torch' not in sys.modules; assert vitrail.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert vitrail.create_model is create_model
    assert vitrail.load_classifier is load_classifier
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vitrail.nothing  # noqa: B018
