import math

import pytest
import torch
from PIL import Image

from vitrail.backbones.vit import ViTConfig
from vitrail.backbones.xcit import XCiTConfig
from vitrail.errors import VitrailError
from vitrail.recognize.classify import Classifier
from vitrail.recognize.explain import class_attention, explain, query_key_norms
from vitrail.weights import load_classifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = XCiTConfig(width=32, depth=2, heads=2, patch_size=8).build(3).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("block", [0, 1, -1])
def test_class_attention_is_the_softmax_of_query_times_keys(model, images, block):
    seen = {}
    attention = model.class_blocks[block].attention
    attention.register_forward_pre_hook(lambda _, arguments: seen.update(tokens=arguments[0]))
    with torch.no_grad():
        model(images)
    maps = class_attention(model, images, block)
    assert maps.shape == (2, 2, 3, 5)
    tokens = seen["tokens"]
    with torch.no_grad():
        query, key = attention.query(tokens[:, 0]), attention.key_value(tokens)[..., :32]
    for sample in range(2):
        for head in range(2):
            channels = slice(16 * head, 16 * head + 16)
            scores = [float(query[sample, channels] @ row[channels]) / math.sqrt(16) for row in key[sample]]
            total = sum(map(math.exp, scores))
            expected = [math.exp(score) / total for score in scores[1:]]
            assert maps[sample, head].flatten().tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_norms_are_those_of_the_normalised_queries_and_keys(model, images, layer):
    seen = {}
    attention = model.blocks[layer].attention
    attention.query_key_value.register_forward_hook(lambda _, __, output: seen.update(output=output))
    with torch.no_grad():
        model(images)
    query_norm, key_norm = query_key_norms(model, images, layer)
    for norms, columns in ((query_norm, slice(0, 32)), (key_norm, slice(32, 64))):
        x = seen["output"][..., columns]  # [B, N, d]
        normalized = x / x.pow(2).sum(dim=1, keepdim=True).sqrt()
        assert torch.allclose(norms.flatten(1), normalized.pow(2).sum(dim=2).sqrt(), rtol=1e-9)
        assert torch.allclose(norms.pow(2).sum(dim=(1, 2)), torch.tensor(32.0, dtype=torch.float64))


def test_what_a_model_does_not_have_is_refused(images):
    dense = XCiTConfig(width=32, depth=1, heads=2, patch_size=8, class_depth=0).build().double().eval()
    with pytest.raises(VitrailError, match="no class attention; explain one that was trained to classify"):
        class_attention(dense, images)
    with pytest.raises(VitrailError, match="no layer 3: the model has 1, numbered 0 to 0"):
        query_key_norms(dense, images, 3)
    without = XCiTConfig(width=32, depth=1, heads=2, patch_size=8, cross_covariance=False).build(2).double().eval()
    with pytest.raises(VitrailError, match="no cross-covariance attention"):
        query_key_norms(without, images)


@pytest.mark.parametrize(("kind", "rows"), [("class-attention", 5), ("norms", 3)])
def test_the_drawing_has_a_column_a_picture_and_a_row_a_map(run, photos, tmp_path, kind, rows):
    pictures = [photos / "test" / "banana" / "00.webp", photos / "test" / "tomato" / "00.webp"]
    explain(load_classifier(run), pictures, tmp_path / "drawing.png", kind)
    with Image.open(tmp_path / "drawing.png") as drawing:
        assert drawing.size == (int(2.4 * 2 * 120), int(2.6 * rows * 120))
        assert len(drawing.convert("RGB").getcolors(2**24)) > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["drawing.png"]


def test_other_networks_and_formats_are_refused(run, photos, tmp_path):
    picture = photos / "test" / "banana" / "00.webp"
    classifier = load_classifier(run)
    vit = ViTConfig(width=32, depth=1, heads=2, patch_size=8, image_size=32).build(3)
    with pytest.raises(VitrailError, match="Only an XCiT's attention"):
        explain(Classifier(vit, ("a", "b", "c"), classifier.transform), [picture], tmp_path / "drawing.png")
    with pytest.raises(VitrailError, match=r"use a name that ends in \.png"):
        explain(classifier, [picture], tmp_path / "drawing.nonsense")
    with pytest.raises(VitrailError, match=r"^One drawing holds 200 pictures, and there are 201; draw fewer"):
        explain(classifier, [picture] * 201, tmp_path / "drawing.png")
    assert not list(tmp_path.iterdir())
