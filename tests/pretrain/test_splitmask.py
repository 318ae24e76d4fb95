import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vitrail.errors import VitrailError
from vitrail.pretrain.masks import MaskedImage, Masks, split
from vitrail.pretrain.pretraining import HeldOutImage
from vitrail.pretrain.splitmask import SplitMaskTask


@pytest.fixture
def task(tiny) -> SplitMaskTask:
    torch.manual_seed(0)
    return tiny("splitmask").build_task()


def batch_of(ratio: float = 0.5, size: int = 4, grid: tuple[int, int] = (4, 4), kind: str = "uniform") -> MaskedImage:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(size, 3, 8 * grid[0], 8 * grid[1], generator=generator)
    return MaskedImage(images, torch.stack([Masks(kind, ratio).draw(grid) for _ in range(size)]))


def encoded_with(task: SplitMaskTask, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Notes what the encoder gives, with the patches it was given, at every call."""
    noted, forward = [], task.backbone.forward_features

    def note(images, keep=None, **other):
        features = forward(images, keep=keep, **other)
        noted.append((features.patches, keep))
        return features

    monkeypatch.setattr(task.backbone, "forward_features", note)
    return noted


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_a_branch_never_sees_the_pixels_of_the_other(task, monkeypatch, ratio):
    batch = batch_of(ratio)
    pixels = batch.mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)[:, None]
    others = torch.where(pixels, 100 * torch.randn_like(batch.image), batch.image)  # the hidden patches differ
    noted = encoded_with(task, monkeypatch)
    ours, theirs = task.branches(batch.image, batch.mask), task.branches(others, batch.mask)
    visible, hidden = split(batch.mask)
    tokens = [part for encoded, _ in noted for part in (encoded.chunk(2) if ratio == 0.5 else (encoded,))]
    assert tokens[0].shape[1] == visible.shape[1] and tokens[1].shape[1] == hidden.shape[1]
    assert torch.equal(tokens[0], tokens[2])  # what A encodes, to the bit
    assert torch.equal(ours[0].tokens, theirs[0].tokens)  # and all that is made of it
    assert not torch.equal(tokens[1], tokens[3])  # while B did see them


def test_equal_halves_go_as_one_batch_and_give_what_two_would(task, monkeypatch):
    batch = batch_of()
    noted = encoded_with(task, monkeypatch)
    first, second = task.branches(batch.image, batch.mask)
    assert [keep.shape for _, keep in noted] == [(8, 8)]
    visible, hidden = split(batch.mask)
    torch.testing.assert_close(first.tokens, task._decode(batch.image, visible), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second.tokens, task._decode(batch.image, hidden), rtol=1e-5, atol=1e-5)
    assert torch.equal(first.missing, hidden) and torch.equal(second.missing, visible)


def test_unequal_halves_are_two_batches_that_cover_all_patches(task, monkeypatch):
    batch = batch_of(0.75)
    noted = encoded_with(task, monkeypatch)
    first, second = task.branches(batch.image, batch.mask)
    assert [keep.shape for _, keep in noted] == [(4, 4), (4, 12)]
    assert first.tokens.shape == second.tokens.shape == (4, 16, 16)
    both = torch.cat([first.missing, second.missing], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(16).expand(4, -1))


def test_the_decoder_is_given_mask_tokens_with_positions_where_patches_are_missing(task, monkeypatch):
    batch = batch_of()
    given = []
    monkeypatch.setattr(task.decoder[0], "forward", lambda tokens, grid: given.append((tokens, grid)) or tokens)
    noted = encoded_with(task, monkeypatch)
    task.branches(batch.image, batch.mask)
    (tokens, grid), (encoded, keep) = given[0], noted[0]
    assert grid == (4, 4)
    table = task.backbone.positions.table[0, task.backbone.leading :]
    for row in range(8):
        missing = [number for number in range(16) if number not in keep[row].tolist()]
        torch.testing.assert_close(tokens[row, missing], task.mask_token + table[missing], rtol=0, atol=0)
        assert torch.equal(tokens[row, keep[row]], encoded[row])


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_the_loss_is_the_equations(task, ratio):
    """Cross-entropy of all words and Equation 4.2, in float64."""
    batch = batch_of(ratio)
    terms = task(batch, "train")
    branches, words = task.branches(batch.image, batch.mask), task.tokenizer(batch.image).flatten(1)
    total = []
    for image in range(4):
        for branch in branches:
            for patch in branch.missing[image].tolist():
                logits = task.head(branch.tokens[image, patch]).double()
                total.append(float(logits.logsumexp(dim=0) - logits[words[image, patch]]))
    assert len(total) == 4 * 16  # every patch once
    inpainting = sum(total) / len(total)
    a, b = (F.normalize(branch.tokens.double().mean(dim=1), dim=1) for branch in branches)
    scores = a @ b.T / 0.2
    own = torch.arange(4)
    matching = float(-(scores.log_softmax(1)[own, own] + scores.log_softmax(0)[own, own]).mean() / 2)
    assert float(terms["inpainting_loss"]) == pytest.approx(inpainting, rel=1e-5)
    assert float(terms["matching_loss"]) == pytest.approx(matching, rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(inpainting + matching, rel=1e-5)
    guesses = [task.head(branch.tokens.gather(1, branch.missing[:, :, None].expand(-1, -1, 16))) for branch in branches]
    missing = torch.cat([branch.missing for branch in branches], dim=1)
    right = (torch.cat(guesses, dim=1).argmax(dim=2) == words.gather(1, missing)).float().mean()
    assert float(terms["right"]) == pytest.approx(float(right))


@torch.no_grad()
def test_at_the_start_every_word_is_as_likely_as_any(task):
    assert float(task(batch_of(), "train")["inpainting_loss"]) == pytest.approx(math.log(16), abs=0.05)


def test_each_part_of_the_loss_can_be_left_out(tiny):
    def terms(**switches) -> set[str]:
        return set(tiny("splitmask", **switches).build_task()(batch_of(), "train"))

    assert terms() == {"loss", "inpainting_loss", "matching_loss", "right"}
    assert terms(match=False) == {"loss", "inpainting_loss", "right"}
    assert terms(inpaint=False) == {"loss", "matching_loss"}
    with pytest.raises(VitrailError, match="learns nothing"):
        tiny("splitmask", inpaint=False, match=False)
    with pytest.raises(VitrailError, match="predicts no words"):
        tiny("splitmask", inpaint=False).build_task().predict(*batch_of())


def test_all_parameters_learn(tiny):
    task = tiny("splitmask").build_task()
    task(batch_of(), "train")["loss"].backward()
    assert [name for name, parameter in task.named_parameters() if parameter.grad is None] == []
    assert "tokenizer.vocabulary" in task.state_dict()


@torch.no_grad()
def test_any_picture_and_encoder_will_do(tiny):
    for backbone in ({"class_token": False}, {"positions": "sinusoidal"}, {"attention": "efficient"}):
        task = tiny("splitmask", backbone=backbone).build_task()
        image = torch.randn(2, 3, 35, 50)  # 5 x 7 patches, the last ones beyond the picture
        batch = MaskedImage(image, torch.stack([Masks(least=2, most=5).draw((5, 7)) for _ in range(2)]))
        assert math.isfinite(float(task(batch, "train")["loss"]))
        assert [part.missing.shape[1] for part in task.predict(*batch)] == [18, 17]


def test_an_evaluation_gives_each_image_its_own_terms(task):
    batch = batch_of()
    labels = torch.tensor([1, -1, 0, 1])
    found = task.eval()(HeldOutImage(*batch, labels), "evaluate")
    terms = found["terms"]
    assert terms.keys() == {"loss", "inpainting_loss", "matching_loss", "right"}
    assert all(term.shape == (4,) for term in terms.values())
    assert torch.equal(found["labels"], labels) and found["features"].shape == (4, 16)
    assert not found["features"].requires_grad
    torch.testing.assert_close(terms["loss"], terms["inpainting_loss"] + terms["matching_loss"])
    torch.testing.assert_close(terms["loss"].mean(), task(batch, "train")["loss"])
    torch.testing.assert_close(found["features"], task.backbone.forward_features(batch.image).class_token)


def test_half_precision_is_float32_to_rounding(task):
    batch = batch_of()
    exact = task(batch, "train")["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = task(batch, "train")["loss"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)


@torch.no_grad()
def test_deep_layers_start_small(tiny):
    task = tiny("splitmask", backbone={"width": 64, "depth": 4}).build_task()
    for number, block in enumerate(task.backbone.blocks, 1):
        for layer in (block.attention.projection, block.feed_forward.contract):
            assert float(layer.weight.std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.1)
        assert float(block.attention.query_key_value.weight.std()) == pytest.approx(0.02, rel=0.1)


def test_the_decoder_is_as_deep_as_asked(tiny):
    assert len(tiny("splitmask", decoder_depth=3).build_task().decoder) == 3
    with pytest.raises(VitrailError, match="decoder_depth is 0"):
        replace(tiny("splitmask"), decoder_depth=0)
