import pytest
import torch

from vitrail.pretrain.masks import Masks
from vitrail.pretrain.show import inpainted


@pytest.mark.parametrize("method", ["splitmask", "beit"])
def test_missing_patches_are_the_predicted_words(tiny, method):
    torch.manual_seed(0)
    task = tiny(method).build_task().eval()
    image, mask = torch.randn(3, 32, 32), Masks(least=2, most=5).draw((4, 4))
    results = inpainted(task, image, mask)
    predictions = task.predict(image[None], mask[None])
    assert len(results) == len(predictions) == (2 if method == "splitmask" else 1)
    true = task.tokenizer(image[None]).flatten(1)[0]
    for (seen, filled, right), (missing, logits) in zip(results, predictions, strict=True):
        guesses = dict(zip(missing[0].tolist(), logits[0].argmax(dim=1).tolist(), strict=True))
        visible = [number for number in range(16) if number not in guesses]
        patches = task.tokenizer.patches(image[None])[0].flatten(0, 1)
        length = patches[visible].norm(dim=1).mean()
        for number in range(16):
            y, x = 8 * (number // 4), 8 * (number % 4)
            here = (slice(None), slice(y, y + 8), slice(x, x + 8))
            if number in guesses:
                assert seen[here].isnan().all()
                torch.testing.assert_close(filled[here], task.tokenizer.words(torch.tensor(guesses[number])) * length)
            else:
                assert torch.equal(seen[here], image[here]) and torch.equal(filled[here], image[here])
        assert right == pytest.approx(sum(int(true[n]) == word for n, word in guesses.items()) / len(guesses))


def test_words_of_half_size_are_enlarged(tiny):
    task = tiny("splitmask", backbone={"patch_size": 16, "image_size": 64}).build_task().eval()
    (seen, filled, _), _ = inpainted(task, torch.randn(3, 64, 64), Masks(least=2, most=5).draw((4, 4)))
    assert filled.shape == (3, 64, 64) and seen.isnan().sum() == 3 * 64 * 32 and filled.isfinite().all()
