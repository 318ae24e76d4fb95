"""CLIP's weights, against OpenCLIP's own network on small random ones."""

import pytest
import torch

from vitrail.bind.model import ImageBind
from vitrail.errors import FileError

open_clip_model = pytest.importorskip("open_clip.model")

HEADS = {"image": {"heads": 2}, "text": {"heads": 4}}


def small_clip(quick_gelu=False, custom=False, image_size=28):
    torch.manual_seed(0)
    cls = open_clip_model.CustomTextCLIP if custom else open_clip_model.CLIP
    model = cls(
        embed_dim=12,
        vision_cfg=open_clip_model.CLIPVisionCfg(layers=3, width=16, head_width=8, patch_size=7, image_size=image_size),
        text_cfg=open_clip_model.CLIPTextCfg(layers=2, width=32, heads=4),
        quick_gelu=quick_gelu,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("custom", [False, True])
@torch.inference_mode()
def test_vectors_are_those_of_open_clip(quick_gelu, custom, tmp_path):
    clip = small_clip(quick_gelu, custom)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    activation = {"activation": "quick_gelu"} if quick_gelu else {}
    model = ImageBind.load(tmp_path / "clip.pt", settings={name: heads | activation for name, heads in HEADS.items()})
    images = torch.randn(3, 3, 28, 28)
    ids = torch.randint(1, 49000, (3, 77))
    ids[:, 40] = 49407
    vectors = model.encode({"image": images, "text": ids}, scaled=True)
    expected = clip.encode_image(images, normalize=True)
    assert (vectors["image"] - expected).abs().max() <= 1e-5 * expected.abs().max()
    expected = clip.encode_text(ids, normalize=True) / 0.07
    assert (vectors["text"] - expected).abs().max() <= 1e-5 * expected.abs().max()
    video = images[:, :, None].expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(model.encode({"image": video})["image"], vectors["image"])


@pytest.mark.filterwarnings("ignore")  # of tracing, which only makes the file
@torch.no_grad()
def test_openais_own_archives(tmp_path):
    """TorchScript, with three numbers beside the weights, half precision, and quick_gelu."""
    clip = small_clip(quick_gelu=True)
    for name, number in (("input_resolution", 28), ("context_length", 77), ("vocab_size", 49408)):
        vars(clip).pop(name, None)
        clip.register_buffer(name, torch.tensor(number))
    ids = torch.randint(1, 49000, (3, 77))
    images = torch.randn(3, 3, 28, 28)
    torch.jit.save(torch.jit.trace(clip, (images, ids)).half(), tmp_path / "ViT-S.pt")
    clip.half().float()  # as precise as the file
    model = ImageBind.load(tmp_path / "ViT-S.pt", settings=HEADS)
    assert {one.activation for one in model.config.modalities.values()} == {"quick_gelu"}
    vectors = model.encode({"image": images, "text": ids})
    torch.testing.assert_close(vectors["image"], clip.encode_image(images, normalize=True))
    torch.testing.assert_close(vectors["text"], clip.encode_text(ids, normalize=True))
    torch.save(clip.state_dict(), tmp_path / "state.pt")
    loaded = ImageBind.load(tmp_path / "state.pt", settings=HEADS)
    assert loaded.config == model.config


def test_configuration_is_what_the_file_shows(tmp_path):
    checkpoint = {
        "epoch": 3,
        "name": "a run",
        "state_dict": {f"module.{key}": tensor for key, tensor in small_clip(image_size=42).state_dict().items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    config = ImageBind.load(tmp_path / "epoch_3.pt", settings=HEADS).config
    image, text = config.modalities["image"], config.modalities["text"]
    assert config.dimension == 12
    assert (image.width, image.depth, image.heads, image.patch_size, image.size) == (16, 3, 2, 7, 42)
    assert (text.width, text.depth, text.heads, text.length) == (32, 2, 4, 77)
    assert image.norm_epsilon == text.norm_epsilon == 1e-5
    assert image.temperature is None
    assert text.learned_temperature
    assert text.temperature == pytest.approx(0.07, abs=1e-6)


def test_other_kinds_of_clip_are_refused(tmp_path):
    state = small_clip().state_dict()
    torch.save(state | {"logit_bias": torch.zeros([])}, tmp_path / "bias.pt")
    with pytest.raises(
        FileError, match=r"holds logit_bias, so it is no CLIP that we know; take one with a plain ViT\.$"
    ):
        ImageBind.load(tmp_path / "bias.pt", settings=HEADS)
    torch.save({key: tensor for key, tensor in state.items() if key != "ln_final.bias"}, tmp_path / "less.pt")
    with pytest.raises(FileError, match=r"lacks ln_final.bias, so it is no CLIP that we know"):
        ImageBind.load(tmp_path / "less.pt", settings=HEADS)
