"""The plain model, in float64, is the oracle: every fold is exact, so that what differs is rounding alone."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail.backbones.features import Features
from vitrail.backbones.xcit import XCITS, XCiT, XCiTConfig
from vitrail.backbones.xcit_inference import InferenceXCiT, optimize_for_inference
from vitrail.errors import VitrailError
from vitrail.layers import inference, inference_attention
from vitrail.layers.attention import CrossCovarianceAttention
from vitrail.layers.inference_attention import InferenceAttention, covariance_crossover

NEVER = 10**9
TINY = XCiTConfig(width=32, heads=4, depth=3, patch_size=8)


def randomized(config: XCiTConfig, num_classes: int = 5, seed: int = 0) -> XCiT:
    """A model with nothing at its initial value, where zeros and ones would hide errors."""
    torch.manual_seed(seed)
    model = config.build(num_classes).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var") or name.endswith("temperature"):
                tensor.uniform_(0.5, 2)
            elif "norm" in name and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("scale"):
                tensor.uniform_(-0.5, 0.5)
            elif tensor.ndim == 1:
                tensor.normal_(std=0.5)
            elif tensor.ndim >= 2 and "token" not in name:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
    return model


def assert_same(ours: Features, theirs: Features, tolerance: float) -> None:
    assert ours.grid == theirs.grid
    assert len(ours.layers) == len(theirs.layers)
    pairs = [(ours.patches, theirs.patches), (ours.class_token, theirs.class_token)]
    for got, wanted in [*pairs, *zip(ours.layers, theirs.layers, strict=True)]:
        torch.testing.assert_close(got, wanted.to(got.dtype), rtol=tolerance, atol=tolerance)


def few_tokens_at_once(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(inference, "_tokens_at_once", lambda x, on_cpu=0, elsewhere=0: tokens)


@pytest.fixture(params=[0, NEVER], ids=["covariance", "queries-keys"])
def covariance_from(request: pytest.FixtureRequest) -> int:
    return request.param


CONFIGS = {
    "plain": TINY,
    "patches of 16": replace(TINY, patch_size=16),
    "patches left as they are": replace(TINY, normalize_patches=False),
    "one class block": replace(TINY, class_depth=1),
    "three class blocks": replace(TINY, class_depth=3),
    "no class block": replace(TINY, class_depth=0),
    "without LPI": replace(TINY, local_interaction=False),
    "without XCA": replace(TINY, cross_covariance=False),
    "without normalisation": replace(TINY, normalize=False),
    "without learned temperature": replace(TINY, learned_temperature=False),
    "linear patches": replace(TINY, patch_projection="linear", patch_size=7),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("size", [(43, 30), (70, 60)])  # in patches of 7 and 8, fewer and more tokens than channels
@pytest.mark.parametrize("pieces", [2, 512])
def test_exact_in_float64(
    config: XCiTConfig, size: tuple[int, int], covariance_from: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_tokens_at_once(monkeypatch, pieces)
    model = randomized(config).double()
    fast = optimize_for_inference(model, covariance_from)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_same(fast.forward_features(images, [2, 0]), model.forward_features(images, [2, 0]), 1e-10)
        torch.testing.assert_close(fast(images), model(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (8, 56), (56, 8), (1, 1), (3, 17), (16, 16), (65, 127), (64, 64)])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_every_grid(
    size: tuple[int, int], patch_size: int, covariance_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomized(replace(TINY, patch_size=patch_size, depth=2)).double()
    fast = optimize_for_inference(model, covariance_from)
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        wanted = model.forward_features(images)
    for pieces in (1, 5, 13, 60, 512):
        few_tokens_at_once(monkeypatch, pieces)
        assert_same(fast.forward_features(images), wanted, 1e-10)


@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "xcit_tiny_12_p8"])
@pytest.mark.parametrize("size", [(1, 64, 64), (2, 112, 90), (1, 512, 400)])
def test_float32(name: str, size: tuple[int, int, int], covariance_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through oneDNN where it is there, and without it."""
    model = randomized(replace(XCITS[name], depth=6))
    images = torch.randn(size[0], 3, *size[1:])
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().forward_features(images.double(), [3])
    fast = optimize_for_inference(model, covariance_from)
    assert_same(fast.forward_features(images, [3]), wanted, 1e-5)
    monkeypatch.setattr(inference, "_HAS_ONEDNN", False)
    assert_same(fast.forward_features(images, [3]), wanted, 1e-5)


def test_bfloat16_is_as_exact_as_the_plain_model(covariance_from: int) -> None:
    model = randomized(replace(XCITS["xcit_nano_12_p16"], depth=6))
    images = torch.randn(2, 3, 224, 224).bfloat16()
    fast = optimize_for_inference(model, covariance_from).bfloat16()
    with torch.no_grad():
        exact = copy.deepcopy(model).double().forward_features(images.double())
        plain = copy.deepcopy(model).bfloat16().forward_features(images)
    ours = fast.forward_features(images)
    assert ours.patches.dtype == torch.bfloat16

    def error(tensor: Tensor, wanted: Tensor) -> float:
        return ((tensor.double() - wanted).norm() / wanted.norm()).item()

    for number in (0, 1):  # patches and class token
        assert error(ours[number], exact[number]) < 0.03
        assert error(ours[number], exact[number]) < 1.2 * error(plain[number], exact[number]) + 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_as_exact_as_the_plain_model(covariance_from: int, dtype: torch.dtype) -> None:
    model = randomized(replace(XCITS["xcit_nano_12_p16"], depth=6))
    images = torch.randn(2, 3, 224, 224).to(dtype)
    fast = optimize_for_inference(model, covariance_from).to("cuda", dtype)
    with torch.no_grad():
        exact = copy.deepcopy(model).double().forward_features(images.double())
        plain = copy.deepcopy(model).to("cuda", dtype).forward_features(images.cuda())
        ours = fast.forward_features(images.cuda())
    for got, theirs, wanted in zip(ours[:2], plain[:2], exact[:2], strict=True):
        errors = [float((one.cpu().double() - wanted).norm() / wanted.norm()) for one in (got, theirs)]
        assert errors[0] < (0.03 if dtype == torch.bfloat16 else 1e-3)  # convolutions may take TF32
        assert errors[0] < 1.2 * errors[1] + 1e-3


def test_sums_over_tokens_are_float32() -> None:
    x = torch.randn(2, 3000, 16).bfloat16()
    covariance = inference_attention.centered_gram(x, torch.zeros(2, 1, 16).bfloat16())
    assert covariance.dtype == torch.float32
    torch.testing.assert_close(covariance.double(), x.double().mT @ x.double(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("common", [0.0, 100.0])
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_covariance_form_does_not_cancel(common: float, spread: float) -> None:
    """Tokens that are nearly alike, and biases that take their common part away: where X^T X itself would fail."""
    torch.manual_seed(0)
    width, heads = 64, 4
    norm = torch.nn.LayerNorm(width)
    attention = CrossCovarianceAttention(width, heads)
    direction = torch.randn(width) * common
    tokens = direction + spread * torch.randn(1, 900, width)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(std=3.0)
        attention.query_key_value.weight.normal_(std=width**-0.5)
        center = norm(tokens).mean(dim=(0, 1))
        attention.query_key_value.bias.copy_(-attention.query_key_value.weight @ center)
        attention.temperature.fill_(3.0)
        wanted = copy.deepcopy(attention).double()(copy.deepcopy(norm).double()(tokens.double()))
        plain = attention(norm(tokens)).double()
        form = InferenceAttention(attention, norm, torch.ones(width), covariance_from=0)
        branch = form(tokens).double()
    scale = wanted.abs().max().item()
    plain_error = (plain - wanted).abs().max().item()
    assert (branch - wanted).abs().max().item() < 3 * plain_error + 2e-6 * scale


# 32 * 2.25 / 1.25 = 57.6, and 5 or 16 times as much
@pytest.mark.parametrize(("dtype", "crossover"), [(torch.float32, 58), (torch.float64, 58), (torch.bfloat16, 289)])
def test_tokens_choose_the_form(dtype: torch.dtype, crossover: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert covariance_crossover(32, 4, dtype, torch.device("cpu")) == crossover
    assert covariance_crossover(32, 4, dtype, torch.device("cuda")) == (922 if dtype == torch.bfloat16 else 58)
    fast = randomized(TINY).optimize_for_inference().to(dtype)
    calls: list[int] = []
    original = inference_attention.centered_gram
    monkeypatch.setattr(
        inference_attention, "centered_gram", lambda x, mean: calls.append(x.shape[1]) or original(x, mean)
    )
    fast(torch.randn(1, 3, 8, 8 * (crossover - 1), dtype=dtype))
    assert calls == []
    fast(torch.randn(1, 3, 8, 8 * crossover, dtype=dtype))
    assert calls == [crossover] * 3


def test_original_stays_as_it_is() -> None:
    model = randomized(TINY).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = optimize_for_inference(model)
    out = fast(torch.randn(1, 3, 64, 64))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not fast.training and not out.requires_grad
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    for tensor in fast.state_dict().values():
        tensor.zero_()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_answers_what_the_plain_model_answers() -> None:
    model = randomized(TINY, num_classes=7)
    fast = model.optimize_for_inference()
    assert isinstance(fast, InferenceXCiT)
    assert fast.config == TINY and (fast.width, fast.patch_size, fast.num_classes) == (32, 8, 7)
    assert fast.head.weight.shape == (7, 32)
    with pytest.raises(VitrailError, match="layers 0 to 2, but 3"):
        fast.forward_features(torch.randn(1, 3, 16, 16), [3])
    assert fast.optimize_for_inference() is fast
    assert fast(torch.empty(0, 3, 64, 64)).shape == (0, 7)


@pytest.mark.parametrize("size", [40, 64])
def test_under_autocast(size: int) -> None:
    """With as many tokens as channels and fewer, and with more, for which there are weights per image."""
    model = randomized(TINY, num_classes=7).eval()
    images = torch.randn(2, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model.optimize_for_inference()(images), model(images), atol=0.1)


def test_saved_copied_and_moved_like_any_model() -> None:
    fast = randomized(TINY, seed=1).optimize_for_inference()
    other = randomized(TINY, seed=2).optimize_for_inference()
    images = torch.randn(1, 3, 32, 32)
    other.load_state_dict(fast.state_dict())
    assert torch.equal(other(images), fast(images))
    assert torch.equal(copy.deepcopy(fast)(images), fast(images))
    assert fast.double()(images.double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.compile's own imports
@pytest.mark.parametrize(
    ("config", "pieces"), [("plain", 8192), ("one class block", 24), ("without normalisation", 8192)]
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_whole(backend: str, config: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile sees one graph, the stem in parts included, and attention divides in other places there."""
    torch.compiler.reset()  # which counts what the other cases compiled against its limit
    few_tokens_at_once(monkeypatch, pieces)
    fast = randomized(replace(CONFIGS[config], depth=1)).optimize_for_inference()
    compiled = torch.compile(fast, backend=backend, fullgraph=True)
    for size in ((8, 16), (48, 64), (64, 64)):  # all forms of attention: 2, 48 and 64 tokens
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(images), fast(images), rtol=1e-5, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that one operator has made; a view of what was there is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = function(*arguments, **(options or {}))
        if isinstance(output, Tensor) and not function.is_view:
            self.elements = max(self.elements, output.numel())
        return output


def test_no_tensor_larger_than_the_tokens(covariance_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or than queries and keys, where they exist."""
    few_tokens_at_once(monkeypatch, 32)
    model = randomized(replace(TINY, width=64, patch_size=16))
    images = torch.randn(1, 3, 512, 512)
    tokens = 32 * 32 * 64
    fast = optimize_for_inference(model, covariance_from)
    with LargestTensor() as plain, torch.no_grad():
        model(images)
    with LargestTensor() as ours:
        fast(images)
    assert plain.elements == 8 * tokens  # the first convolution of the patches
    assert ours.elements == (tokens + 64 if covariance_from == 0 else 2 * tokens)  # with the class token
