import json

import pytest
import torch
from safetensors.torch import save_file

from vitrail.backbones.resnet import ResNetConfig
from vitrail.backbones.vit import ViTConfig
from vitrail.backbones.xcit import XCITS, XCiTConfig
from vitrail.config import to_json
from vitrail.data.augmentation import EvalTransform
from vitrail.data.datasets import ImageData
from vitrail.engine import checkpoint
from vitrail.errors import FileError, VitrailError
from vitrail.recognize.classify import Classification, Classifier
from vitrail.weights import Network, create_model, export, load_classifier, load_weights, open_network
from vitrail.weights.networks import imagenet_classes

TINY = XCiTConfig(width=32, heads=4, depth=1)
OVERRIDES = {"width": 32, "heads": 4, "depth": 1}


def same(model, other):
    return all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_published_classifier(cache, fill):
    expected = fill(XCITS["xcit_nano_12_p16"].build(1000))
    torch.save({"model": expected.state_dict()}, cache / "xcit_nano_12_p16_384_dist.pth")
    classifier = load_classifier("xcit_nano_12_p16.dist_384")
    assert same(expected, classifier.model)
    assert classifier.transform == EvalTransform(size=384, crop_ratio=1.0)
    assert classifier.classes == imagenet_classes()


def test_published_features_are_no_classifier(cache, fill):
    dense = fill(XCiTConfig(width=192, heads=4, depth=12, class_depth=0).build())
    tensors = {f"backbone.{key}": tensor for key, tensor in dense.state_dict().items()}
    torch.save({"state_dict": tensors}, cache / "maskrcnn_xcit_tiny_12_p16.pth")
    network = open_network("xcit_tiny_12_p16.coco_maskrcnn")
    assert same(dense, network.model) and network.classes == ()
    with pytest.raises(VitrailError, match=r"^xcit_tiny_12_p16.coco_maskrcnn has no head, only features; train one"):
        load_classifier("xcit_tiny_12_p16.coco_maskrcnn")


def test_a_file_of_weights_alone_does_not_say_what_it_is(tmp_path, fill):
    torch.save(fill(TINY.build(6)).state_dict(), tmp_path / "six.pth")
    message = r"six.pth does not say which model and which classes it is for; use create_model"
    with pytest.raises(FileError, match=message):
        load_classifier(tmp_path / "six.pth")
    for missing in ("seven.pth", "runs/seven"):
        with pytest.raises(FileError, match=rf"^There is no file {missing}; check the path, or name published weights"):
            load_classifier(missing)


@pytest.mark.parametrize("config", [TINY, ViTConfig(width=32, heads=2, depth=1, image_size=64), ResNetConfig(18)])
def test_exported_features_come_back(tmp_path, fill, config):
    network = Network(fill(config.build()), EvalTransform(size=64))
    export(network, tmp_path / "features.safetensors")
    again = open_network(tmp_path / "features.safetensors")
    assert same(network.model, again.model)
    assert (again.classes, again.transform, again.model.config) == ((), network.transform, config)
    assert not again.model.training
    with pytest.raises(VitrailError, match=r"features.safetensors has no head, only features"):
        load_classifier(tmp_path / "features.safetensors")


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
    save_file(TINY.build(2).state_dict(), path, {"vitrail.network": json.dumps(metadata)})
    with pytest.raises(VitrailError, match="open it with the version that wrote it"):
        load_classifier(path)


def test_a_file_whose_description_does_not_describe_it(tmp_path):
    path = tmp_path / "odd.safetensors"
    backbone, transform = to_json(TINY), to_json(EvalTransform(size=48))
    good = {"backbone": backbone, "classes": ["cat", "dog"], "transform": transform}
    odd = [{key: value for key, value in good.items() if key != missing} for missing in good]
    odd += [good | {key: None} for key in good] + [good | {"backbone": transform}, good | {"classes": ["cat"]}, []]
    for description in ("nonsense", *map(json.dumps, odd)):
        save_file(TINY.build(2).state_dict(), path, {"vitrail.network": description})
        with pytest.raises(FileError, match=r"odd\.safetensors does not say which model, classes and transform"):
            load_classifier(path)
    save_file(TINY.build(2).state_dict(), path, {"vitrail.network": json.dumps(good)})
    assert load_classifier(path).classes == ("cat", "dog")


def test_imagenet_classes():
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert classes[0].startswith("tench")
    assert classes[999].startswith("toilet")
