import math

import pytest
import torch

from vitrail.pretrain import pretraining
from vitrail.pretrain.beit import BEiTTask
from vitrail.pretrain.masks import MaskedImage, Masks, split
from vitrail.pretrain.pretraining import HeldOutImage, word_costs


@pytest.fixture
def task(tiny) -> BEiTTask:
    torch.manual_seed(0)
    return tiny("beit").build_task()


@pytest.fixture
def batch() -> MaskedImage:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return MaskedImage(images, torch.stack([Masks(ratio=0.4, least=2, most=5).draw((4, 4)) for _ in range(3)]))


def test_hidden_pixels_are_not_seen(task, batch):
    pixels = batch.mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)[:, None]
    others = torch.where(pixels, torch.full_like(batch.image, 7.0), batch.image)
    (ours,), (theirs,) = task.predict(*batch), task.predict(others, batch.mask)
    assert torch.equal(ours.logits, theirs.logits)
    seen = torch.where(pixels, batch.image, batch.image + 1)
    assert not torch.equal(task.predict(seen, batch.mask)[0].logits, ours.logits)


def test_the_encoder_is_given_all_patches_the_hidden_ones_as_the_token(task, batch):
    tokens, grid = task.backbone.embed(batch.image, masked=(batch.mask, task.mask_token))
    plain, _ = task.backbone.embed(batch.image)
    leading = task.backbone.leading
    assert grid == (4, 4) and tokens.shape[1] == leading + 16
    hidden = batch.mask.flatten(1)
    expected = (task.mask_token + task.backbone.positions.table[:, leading:]).expand(3, -1, -1)
    torch.testing.assert_close(tokens[:, leading:][hidden], expected[hidden], rtol=0, atol=0)
    assert torch.equal(tokens[:, leading:][~hidden], plain[:, leading:][~hidden])
    assert torch.equal(tokens[:, :leading], plain[:, :leading])


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_hidden_words(task, batch):
    terms = task(batch, "train")
    tokens = task.backbone.forward_features(batch.image, masked=(batch.mask, task.mask_token)).patches
    words, (_, hidden) = task.tokenizer(batch.image).flatten(1), split(batch.mask)
    costs = []
    for image in range(3):
        for patch in hidden[image].tolist():
            logits = task.head(tokens[image, patch]).double()
            costs.append(float(logits.logsumexp(dim=0) - logits[words[image, patch]]))
    assert len(costs) == 3 * round(0.4 * 16)
    assert float(terms["loss"]) == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(math.log(16), abs=0.1)


def test_words_cost_the_same_however_many_are_taken_at_a_time(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    head, tokens = torch.nn.Linear(6, 11).double(), torch.randn(4, 5, 6, dtype=torch.float64, generator=draw)
    words = torch.randint(11, (4, 5), generator=draw)
    expected = torch.nn.functional.cross_entropy(head(tokens).mT.float(), words, reduction="none").mean(dim=1)
    for rows in (1, 3, 256):
        monkeypatch.setattr(pretraining, "ROWS", rows)
        costs, right = word_costs(head, tokens, words)
        torch.testing.assert_close(costs, expected)
        assert torch.equal(right, (head(tokens).argmax(dim=2) == words).float().mean(dim=1))


def test_all_parameters_learn_and_an_evaluation_has_terms_of_each_image(task, batch):
    task(batch, "train")["loss"].backward()
    assert [name for name, parameter in task.named_parameters() if parameter.grad is None] == []
    found = task.eval()(HeldOutImage(*batch, torch.tensor([0, 1, -1])), "evaluate")
    assert {name: term.shape for name, term in found["terms"].items()} == {"loss": (3,), "right": (3,)}
    torch.testing.assert_close(found["terms"]["loss"].mean(), task(batch, "train")["loss"])
