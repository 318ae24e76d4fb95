import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import vitrail
from vitrail.backbones import MODELS
from vitrail.backbones.xcit import XCITS, XCiTConfig
from vitrail.config import to_json
from vitrail.data.augmentation import EvalTransform
from vitrail.data.datasets import ImageData
from vitrail.engine import checkpoint
from vitrail.errors import FileError, VitrailError
from vitrail.recognize.classify import Classification, Classifier
from vitrail.weights import create_model, export, list_models, load_classifier, load_weights
from vitrail.weights.models import imagenet_classes

TINY = XCiTConfig(width=32, heads=4, depth=1)
OVERRIDES = {"width": 32, "heads": 4, "depth": 1}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds a file where a published one would be, with other contents."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


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
    classifier = load_classifier("xcit_nano_12_p16.dist_384")
    assert same(expected, classifier.model)
    assert classifier.transform == EvalTransform(size=384, crop_ratio=1.0)
    assert classifier.classes == imagenet_classes()


def test_published_backbone_of_a_detector_has_no_class_token(cache, fill):
    dense = fill(replace(XCITS["xcit_tiny_12_p16"], class_depth=0).build())
    torch.save(
        {"state_dict": {f"backbone.{key}": t for key, t in dense.state_dict().items()}},
        cache / "maskrcnn_xcit_tiny_12_p16.pth",
    )
    model = create_model("xcit_tiny_12_p16.coco_maskrcnn")
    assert model.config.class_depth == 0
    assert same(dense, model)
    with pytest.raises(VitrailError, match=r"^xcit_tiny_12_p16.coco_maskrcnn has no head, only features; train one"):
        load_classifier("xcit_tiny_12_p16.coco_maskrcnn")


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
    with pytest.raises(
        FileError, match=r"six.pth does not say which model and which classes it is for; use create_model"
    ):
        load_classifier(tmp_path / "six.pth")


def test_exported_classifier_comes_back(tmp_path, fill):
    classifier = Classifier(fill(TINY.build(2)), ("cat", "dog"), EvalTransform(size=64, crop_ratio=0.9))
    export(classifier, tmp_path / "pets.safetensors")
    again = load_classifier(tmp_path / "pets.safetensors")
    assert same(classifier.model, again.model)
    assert (again.classes, again.transform, again.model.config) == (classifier.classes, classifier.transform, TINY)
    assert not again.model.training
    assert same(classifier.model, create_model("xcit_small_12_p16", tmp_path / "pets.safetensors", **OVERRIDES))


def test_checkpoint_and_run_folder(tmp_path, fill):
    experiment = Classification(
        data=ImageData(root=tmp_path), backbone=TINY, classes=("cat", "dog"), eval_transform=EvalTransform(size=48)
    )
    task, average = experiment.build_task(), experiment.build_task()
    fill(task, 1)
    fill(average, 2)
    tensors = {f"model.{key}": tensor for key, tensor in task.state_dict().items()}
    tensors |= {f"ema.{key}": tensor for key, tensor in average.state_dict().items()}
    header = checkpoint.Header(step=1, configuration=to_json(experiment))
    path = tmp_path / "run" / "checkpoints" / "last.safetensors"
    checkpoint.save(path, header, tensors)
    for name in (path, tmp_path / "run"):
        classifier = load_classifier(name)
        assert same(average.backbone, classifier.model)
        assert (classifier.classes, classifier.transform) == (("cat", "dog"), EvalTransform(size=48))
        model = TINY.build(5)
        assert load_weights(model, str(name), head="auto").fresh == ("head.bias", "head.weight")
        assert torch.equal(model.norm.weight, average.backbone.norm.weight)
        assert same(average.backbone, create_model("xcit_small_12_p16", name, **OVERRIDES))


def test_a_file_with_a_damaged_description(tmp_path):
    path = tmp_path / "odd.safetensors"
    metadata = {"backbone": {"type": "backbones.xcit.Nothing"}, "classes": [], "transform": None}
    save_file(TINY.build(2).state_dict(), path, {"vitrail.classifier": json.dumps(metadata)})
    with pytest.raises(VitrailError, match="open it with the version that wrote it"):
        load_classifier(path)


def test_a_file_whose_description_does_not_describe_it(tmp_path):
    path = tmp_path / "odd.safetensors"
    backbone, transform = to_json(TINY), to_json(EvalTransform(size=48))
    good = {"backbone": backbone, "classes": ["cat", "dog"], "transform": transform}
    odd = [{key: value for key, value in good.items() if key != missing} for missing in good]
    odd += [good | {key: None} for key in good] + [good | {"backbone": transform}, good | {"classes": ["cat"]}, []]
    for description in ("nonsense", *map(json.dumps, odd)):
        save_file(TINY.build(2).state_dict(), path, {"vitrail.classifier": description})
        with pytest.raises(FileError, match=r"odd\.safetensors does not say which model, classes and transform"):
            load_classifier(path)
    save_file(TINY.build(2).state_dict(), path, {"vitrail.classifier": json.dumps(good)})
    assert load_classifier(path).classes == ("cat", "dog")


def test_imagenet_classes():
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert classes[0].startswith("tench")
    assert classes[999].startswith("toilet")


def test_public_functions_are_imported_when_asked_for():
    code = "import sys, vitrail; assert 'torch' not in sys.modules; assert vitrail.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert vitrail.create_model is create_model
    assert vitrail.load_classifier is load_classifier
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vitrail.nothing  # noqa: B018
