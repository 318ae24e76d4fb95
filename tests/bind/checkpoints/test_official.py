"""The official layout: there and back, and the official outputs on weights made by formula."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.bind.checkpoints.official import from_official, head_count, is_official, official_keys, to_official
from vitrail.bind.modalities import MODALITIES
from vitrail.bind.model import SIX, ImageBind, ImageBindConfig, imagebind_huge, imagebind_tiny
from vitrail.errors import FileError, VitrailError

PARITY = Path(__file__).parents[3].parent / "shared" / "parity"
shared = pytest.mark.skipif(not PARITY.exists(), reason="the reference outputs are not beside the repository")

# Widths, blocks and heads all different, so that nothing fits by chance.
SIZES = {
    "image": {"width": 16, "depth": 3, "heads": 4},
    "text": {"width": 8, "depth": 2, "heads": 2},
    "audio": {"width": 12, "depth": 2, "heads": 3},
    "depth": {"width": 10, "depth": 1, "heads": 5},
    "thermal": {"width": 14, "depth": 2, "heads": 7},
    "imu": {"width": 18, "depth": 1, "heads": 6},
}
HEADS = {name: {"heads": sizes["heads"]} for name, sizes in SIZES.items()}


def small_model():
    config = ImageBindConfig(6, {name: MODALITIES[name](**sizes) for name, sizes in SIZES.items()})
    model = ImageBind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def test_there_and_back(tmp_path):
    model = small_model()
    official = to_official(model)
    assert is_official(official)
    assert not is_official(model.state_dict())
    official["modality_preprocessors.text.mask"] = torch.full((77, 77), -torch.inf).triu(1)
    torch.save(official, tmp_path / "small.pth")
    loaded = ImageBind.load(tmp_path / "small.pth", settings=HEADS)
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not loaded.training


def test_some_senses(tmp_path):
    official = to_official(small_model())
    torch.save(official, tmp_path / "small.pth")
    one = ImageBind.load(tmp_path / "small.pth", modalities=["imu"], settings=HEADS)
    assert list(one.encoders) == list(one.scales) == ["imu"]
    only = {key: value for key, value in official.items() if ".imu." in key}
    torch.save(only, tmp_path / "imu.pth")
    assert list(ImageBind.load(tmp_path / "imu.pth", settings=HEADS).encoders) == ["imu"]
    with pytest.raises(VitrailError, match=r"imu.pth has no modality 'text' but imu; choose among these\.$"):
        ImageBind.load(tmp_path / "imu.pth", modalities=["text"], settings=HEADS)


def test_layout_of_the_huge_model():
    with torch.device("meta"):
        official = to_official(ImageBind(imagebind_huge()))
    assert len(official) == 1310  # and the causal mask
    shapes = {key: list(tensor.shape) for key, tensor in official.items()}
    expected = {
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": [1280, 3, 2, 14, 14],
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": [1, 257, 1280],
        "modality_preprocessors.text.pos_embed": [1, 77, 1024],
        "modality_preprocessors.text.token_embedding.weight": [49408, 1024],
        "modality_preprocessors.audio.rgbt_stem.proj.weight": [768, 1, 16, 16],
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": [1, 229, 768],
        "modality_preprocessors.depth.depth_stem.norm_layer.bias": [384],
        "modality_preprocessors.thermal.cls_token": [1, 1, 768],
        "modality_preprocessors.imu.imu_stem.proj.weight": [512, 48],
        "modality_preprocessors.imu.pos_embed": [1, 251, 512],
        "modality_trunks.vision.pre_transformer_layer.0.weight": [1280],
        "modality_trunks.vision.blocks.31.attn.in_proj_weight": [3840, 1280],
        "modality_trunks.text.blocks.23.mlp.fc1.weight": [4096, 1024],
        "modality_trunks.audio.blocks.11.attn.bias_k": [1, 1, 768],
        "modality_heads.vision.2.weight": [1024, 1280],
        "modality_heads.text.proj.1.weight": [1024, 1024],
        "modality_heads.imu.3.weight": [1024, 512],
        "modality_postprocessors.text.1.log_logit_scale": [],
    }
    assert {key: shapes[key] for key in expected} == expected


def test_huge_has_the_official_number_of_parameters():
    """1200.78 million, by sense as published; learned temperatures count, fixed ones do not."""
    with torch.device("meta"):
        model = ImageBind(imagebind_huge())
    count = {name: sum(parameter.numel() for parameter in model.encoders[name].parameters()) / 1e6 for name in SIX}
    expected = {"image": 632.1, "text": 354.0, "audio": 86.2, "depth": 21.9, "thermal": 86.2, "imu": 19.6}
    assert count == pytest.approx(expected, abs=0.75)
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert total == pytest.approx(1200.78, abs=0.005)


def test_tiny_embeds_all_six():
    config = imagebind_tiny()
    assert config.dimension == 128
    assert list(config.modalities) == list(SIX)
    with torch.device("meta"):
        model = config.build()
    assert sum(parameter.numel() for parameter in model.parameters()) < 15e6


def test_heads_of_published_widths():
    assert [head_count(width) for width in (1280, 1024, 768, 512, 384)] == [16, 16, 12, 8, 8]
    with pytest.raises(VitrailError, match=r"56 channels .* settings=.*, or --set image\.heads=4\.$"):
        head_count(56)


def test_what_is_missing_or_left_over_is_said():
    official = to_official(small_model())
    with pytest.raises(FileError, match=r"^file lacks modality_trunks.imu.blocks.0.norm_1.bias and 0 more of the imu "):
        from_official(
            {k: v for k, v in official.items() if k != "modality_trunks.imu.blocks.0.norm_1.bias"}, HEADS, "file"
        )
    with pytest.raises(FileError, match=r"holds modality_trunks.smell.weight \(1 such keys\)"):
        from_official(official | {"modality_trunks.smell.weight": torch.zeros(1)}, HEADS, "file")


def test_models_that_the_layout_has_no_place_for():
    config = ImageBindConfig(6, {"imu": MODALITIES["imu"](**SIZES["imu"], head_width=7)})
    with pytest.raises(
        VitrailError, match=r"needs modality_heads.imu.3.weight, which this model lacks; save it in ours"
    ):
        to_official(ImageBind(config))
    config = ImageBindConfig(6, {"image": MODALITIES["image"](**SIZES["image"], temperature=0.1)})
    with pytest.raises(VitrailError, match=r"no place for scales.image.log_scale; save the model in ours"):
        to_official(ImageBind(config))


@pytest.fixture(scope="module")
def formula():
    """The module that makes the weights."""
    specification = importlib.util.spec_from_file_location("seeded_weights", PARITY / "seeded_weights.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def layout():
    return json.loads((PARITY / "imagebind" / "tiny.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reference():
    with np.load(PARITY / "imagebind" / "tiny_reference.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def official_model(formula, layout, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "tiny.pth"
    arrays = formula.seeded_state_dict(layout["shapes"], layout["fixed"])
    torch.save({key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}, path)
    arguments = {name: "vision" if name == "image" else name for name in SIX}
    heads = {name: {"heads": layout["kwargs"][f"{theirs}_num_heads"]} for name, theirs in arguments.items()}
    return ImageBind.load(path, settings=heads)


@pytest.mark.shared
@shared
def test_every_official_key_is_used(official_model, layout):
    used = {
        key for name, one in official_model.config.modalities.items() for key in official_keys(name, one.depth).values()
    }
    assert used == set(layout["shapes"]) - set(layout["causal_mask_keys"])
    returned = to_official(official_model)
    assert {key: list(tensor.shape) for key, tensor in returned.items()} == {key: layout["shapes"][key] for key in used}


def assert_same(actual, expected):
    assert actual.shape == expected.shape
    assert np.abs(actual.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.shared
@shared
@pytest.mark.parametrize(
    "case",
    ["image", "image_280", "video_1clip", "video_6views", "audio", "audio_3clips", "depth", "thermal", "imu", "text"],
)
@torch.inference_mode()
def test_official_outputs(case, official_model, formula, layout, reference):
    if case == "text":
        assert_same(
            official_model.encode({"text": torch.from_numpy(reference["tokens_int/text"])}, scaled=True)["text"],
            reference["output/text"],
        )
        return
    theirs, shape = layout["inputs"][case]
    name = "image" if theirs == "vision" else theirs
    inputs = torch.from_numpy(formula.seeded_input(case, shape))
    assert_same(official_model.encode({name: inputs}, scaled=True)[name], reference[f"output/{case}"])
    encoder = official_model.encoders[name]
    clips = inputs if encoder.accepts(tuple(inputs.shape)) else inputs.flatten(0, 1)
    tokens = encoder.stem(clips)
    assert_same(tokens[:1, :24], reference[f"tokens/{case}"])
    assert_same(encoder.trunk(tokens)[:1, :2], reference[f"trunk/{case}"])
    assert_same(encoder(clips), reference[f"head/{case}"])
