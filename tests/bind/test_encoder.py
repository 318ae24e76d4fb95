"""The encoders against torch's own layers, float64."""

import pytest
import torch
from torch import nn

from vitrail.bind.encoder import (
    Encoder,
    PatchStem,
    SignalStem,
    patch_encoder,
    signal_encoder,
    text_encoder,
    video_encoder,
)
from vitrail.bind.modality import Modality
from vitrail.errors import VitrailError
from vitrail.layers.blocks import StochasticDepth

WIDTH, HEADS, DIMENSION = 12, 3, 5


class Small(Modality):
    name = "small"


def sizes(**fields):
    return Small(**{"width": WIDTH, "depth": 2, "heads": HEADS} | fields)


def filled(encoder):
    """All parameters, those of one dimension too, away from where they start; a stem alone has not even begun."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.5 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder.double().eval()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def layer(block, epsilon, activation):
    """torch's transformer layer with a block's weights."""
    twin = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, activation, epsilon, batch_first=True, norm_first=True, dtype=torch.float64
    )
    attention, forward = block.attention, block.feed_forward
    twin.load_state_dict(
        {
            "self_attn.in_proj_weight": attention.query_key_value.weight,
            "self_attn.in_proj_bias": attention.query_key_value.bias,
            "self_attn.out_proj.weight": attention.projection.weight,
            "self_attn.out_proj.bias": attention.projection.bias,
            "linear1.weight": forward.expand.weight,
            "linear1.bias": forward.expand.bias,
            "linear2.weight": forward.contract.weight,
            "linear2.bias": forward.contract.bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.feed_forward_norm.weight,
            "norm2.bias": block.feed_forward_norm.bias,
        }
    )
    return twin.train()  # in evaluation torch takes a shortcut of another precision; nothing is dropped


@pytest.mark.parametrize("epsilon", [1e-6, 0.3])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_video_encoder(epsilon, activation):
    encoder = filled(video_encoder(sizes(norm_epsilon=epsilon, activation=activation), DIMENSION, patch_size=4, size=8))
    clips = noise(2, 3, 2, 8, 8)
    kernel = encoder.stem.patches.weight.unflatten(1, (3, 2))  # over time, height and width
    patches = nn.functional.conv3d(clips, kernel, stride=(2, 4, 4)).flatten(2).mT
    tokens = torch.cat([encoder.stem.class_token.expand(2, 1, -1), patches], dim=1) + encoder.stem.positions.table
    tokens = nn.functional.layer_norm(tokens, [WIDTH], encoder.norm_before.weight, encoder.norm_before.bias, epsilon)
    function = nn.functional.gelu if activation == "gelu" else (lambda x: x * torch.sigmoid(1.702 * x))
    for block in encoder.blocks:
        tokens = layer(block, epsilon, function)(tokens)
    tokens = nn.functional.layer_norm(tokens, [WIDTH], encoder.norm.weight, encoder.norm.bias, epsilon)
    close(encoder(clips), tokens[:, 0] @ encoder.head.weight.T)


def test_picture_is_a_clip_of_equal_frames():
    encoder = filled(video_encoder(sizes(), DIMENSION, patch_size=4, size=8))
    picture = noise(2, 3, 12, 8)
    close(encoder(picture), encoder(picture[:, :, None].expand(-1, -1, 2, -1, -1)))


def test_text_encoder_is_causal_and_gives_the_token_at_the_largest_id():
    encoder = filled(text_encoder(sizes(), DIMENSION, vocabulary=10, length=6))
    ids = torch.tensor([[8, 3, 9, 0, 0, 0], [8, 1, 2, 3, 4, 9]])
    tokens = encoder.stem.tokens.weight[ids] + encoder.stem.positions
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for block in encoder.blocks:
        tokens = layer(block, 1e-6, nn.functional.gelu)(tokens, mask)
    last = torch.stack([tokens[0, 2], tokens[1, 5]])
    last = nn.functional.layer_norm(last, [WIDTH], encoder.norm.weight, encoder.norm.bias, 1e-6)
    close(encoder(ids), last @ encoder.head.weight.T)


def test_stem_of_overlapping_patches():
    encoder = filled(patch_encoder(sizes(), DIMENSION, channels=1, kernel_size=4, stride=3, size=(10, 13)))
    inputs = noise(2, 1, 10, 13)
    windows = inputs[:, 0].unfold(1, 4, 3).unfold(2, 4, 3)  # [B, 3, 4, 4, 4]
    patches = windows.flatten(3).flatten(1, 2) @ encoder.stem.patches.weight.flatten(1).T
    patches = nn.functional.layer_norm(patches, [WIDTH], encoder.stem.norm.weight, encoder.stem.norm.bias, 1e-5)
    expected = torch.cat([encoder.stem.class_token.expand(2, 1, -1), patches], dim=1) + encoder.stem.positions.table
    close(encoder.stem(inputs), expected)
    assert all(block.attention.extra_key.shape == (WIDTH,) for block in encoder.blocks)


def test_stem_of_signals():
    encoder = filled(signal_encoder(sizes(), DIMENSION, channels=6, kernel_size=4, length=20))
    inputs = noise(2, 6, 20)
    stretches = inputs.unflatten(2, (5, 4)).transpose(1, 2).flatten(2)  # [B, 5, 6 * 4], channel by channel
    patches = stretches @ encoder.stem.patches.weight.flatten(1).T
    patches = nn.functional.layer_norm(patches, [WIDTH], encoder.stem.norm.weight, encoder.stem.norm.bias, 1e-5)
    expected = torch.cat([encoder.stem.class_token.expand(2, 1, -1), patches], dim=1) + encoder.stem.positions
    close(encoder.stem(inputs), expected)


def test_positions_are_resampled_for_other_sizes():
    """Bicubic with a = -0.75 and no antialiasing for pictures, linear for signals; the class token keeps its own."""
    stem = filled(PatchStem(WIDTH, 1, 4, 4, (16, 16)))
    nn.init.zeros_(stem.patches.weight)
    nn.init.zeros_(stem.norm.bias)
    tokens = stem(noise(1, 1, 20, 8))
    table = stem.positions.table
    picture = table[:, 1:].mT.unflatten(2, (4, 4)).float()
    expected = nn.functional.interpolate(picture, size=(5, 2), mode="bicubic", align_corners=False)
    torch.testing.assert_close(tokens[:, 1:], expected.flatten(2).mT.double())
    close(tokens[:, 0], (stem.class_token + table[:, :1])[:, 0])

    stem = filled(SignalStem(1, 1, 2, 8))
    nn.init.zeros_(stem.norm.bias)
    nn.init.zeros_(stem.patches.weight)
    with torch.no_grad():
        stem.positions.copy_(torch.tensor([9.0, 0, 1, 2, 3]).view(1, 5, 1))
    values = (stem(noise(1, 1, 4)) - stem.class_token * torch.tensor([[[1.0], [0], [0]]])).flatten()
    close(values, torch.tensor([9, 0.5, 2.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("encoder", "right", "wrong", "words"),
    [
        (
            video_encoder(sizes(), DIMENSION, patch_size=4, size=8),
            [(1, 3, 4, 9), (1, 3, 2, 8, 8)],
            [(1, 1, 8, 8), (1, 3, 3, 8), (1, 3, 3, 8, 8), (3, 8, 8)],
            r"\[B, 3, H, W\] or \[B, 3, 2, H, W\] of at least 4 x 4",
        ),
        (
            patch_encoder(sizes(), DIMENSION, channels=1, kernel_size=4, stride=3, size=(8, 8)),
            [(1, 1, 8, 8)],
            [(1, 1, 1, 8, 8), (1, 3, 8, 8), (8,)],
            r"\[B, 1, H, W\] of at least 4 x 4",
        ),
        (
            signal_encoder(sizes(), DIMENSION, channels=6, kernel_size=4, length=20),
            [(1, 6, 4)],
            [(1, 6, 3), (1, 5, 4), (6, 20)],
            r"\[B, 6, L\] of L >= 4",
        ),
    ],
)
def test_shapes(encoder, right, wrong, words):
    for shape in right:
        assert encoder(torch.zeros(shape)).shape == (1, DIMENSION)
    for shape in wrong:
        with pytest.raises(VitrailError, match=f"do not fit the encoder, which takes {words}; prepare"):
            encoder(torch.zeros(shape))


def test_head_of_two_layers_dropout_and_drop_path():
    modality = sizes(depth=3, drop_path=0.6, dropout=0.5, head_width=7)
    encoder = filled(signal_encoder(modality, DIMENSION, channels=6, kernel_size=4, length=20))
    assert [tuple(part.weight.shape) for part in encoder.head if hasattr(part, "weight")] == [
        (7, WIDTH),
        (DIMENSION, 7),
    ]
    assert [module.rate for module in encoder.modules() if isinstance(module, StochasticDepth)] == [0, 0.3, 0.6]
    inputs = noise(4, 6, 20)
    vectors = nn.functional.layer_norm(
        encoder.trunk(encoder.stem(inputs))[:, 0], [WIDTH], encoder.norm.weight, encoder.norm.bias, 1e-6
    )
    first, last = encoder.head[0], encoder.head[2]
    close(encoder(inputs), nn.functional.gelu(vectors @ first.weight.T + first.bias) @ last.weight.T)
    assert not torch.equal(encoder.train()(inputs), encoder(inputs))


def test_fresh_weights():
    torch.manual_seed(0)
    encoder = Encoder(SignalStem(WIDTH, 6, 4, 20), sizes(), DIMENSION, extra_key_value=True)
    for name, parameter in encoder.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        elif parameter.ndim > 1:
            inputs = {"stem.patches.weight": 6 * 4}.get(name, parameter.shape[-1])
            assert parameter.std().item() == pytest.approx(inputs**-0.5, rel=0.4), name
        else:
            assert 0 < parameter.std() < 0.04, name


def test_fresh_weights_tell_inputs_apart():
    """Or else contrastive training starts on a plateau."""
    torch.manual_seed(0)
    encoder = patch_encoder(Small(width=64, depth=3, heads=4), 64, channels=1, kernel_size=4, stride=4, size=(16, 16))
    vectors = nn.functional.normalize(encoder.eval()(noise(32, 1, 16, 16).float()), dim=1)
    assert (vectors @ vectors.mT).mean() < 0.7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 10}, "10 channels of small cannot be shared out among 3 heads"),
        ({"learned_temperature": True, "temperature": None}, "has no value to learn from"),
        ({"temperature": 0.001}, r"Small.temperature is 0.001; it must be at least 0.01"),
        ({"depth": 0}, "Small.depth is 0"),
        ({"drop_path": 1.0}, "Small.drop_path is 1.0"),
    ],
)
def test_configuration_is_checked(fields, words):
    with pytest.raises(VitrailError, match=words):
        sizes(**fields)
