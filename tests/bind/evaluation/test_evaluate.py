"""Scores against what a few lines of arithmetic, and scikit-learn, say of the same vectors."""

import math

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Pillow
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from vitrail.bind import ImageBindConfig
from vitrail.bind.evaluation.datasets import Item
from vitrail.bind.evaluation.evaluate import (
    EmbeddedItems,
    embed_items,
    evaluate_retrieval,
    few_shot,
    read_item,
    zero_shot,
)
from vitrail.bind.evaluation.zero_shot import ZeroShotClassifier
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.modalities.depth import Depth
from vitrail.bind.modalities.image import Image
from vitrail.bind.modalities.text import Text
from vitrail.bind.modalities.thermal import Thermal
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import FileError, VitrailError

TINY = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    senses = {"text": Text(**TINY), "image": Image(**TINY, size=28), "thermal": Thermal(**TINY, size=32)}
    return ImageBindConfig(8, senses).build().eval()


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (48, 64), dtype=np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def embedded(vectors, labels, folds=None):
    names = [(label,) if isinstance(label, str) else tuple(label) for label in labels]
    folds = folds or [None] * len(names)
    items = tuple(Item(f"{n}.wav", name, fold=fold) for n, (name, fold) in enumerate(zip(names, folds, strict=True)))
    return EmbeddedItems(items, vectors, {})


def test_vectors_of_one_sense_and_of_two(model, pictures):
    items = [Item(pictures / f"{number}.png") for number in (2, 0)]
    seen = []
    (one, both) = (
        embed_items(model, items, senses, done=lambda: seen.append(1)) for senses in (["thermal"], ["thermal", "image"])
    )
    assert len(seen) == 6 and one.items == both.items == tuple(items)
    paths = [item.path for item in items]
    alone = model.embed({"thermal": paths, "image": paths})
    torch.testing.assert_close(one.vectors, alone["thermal"])
    torch.testing.assert_close(both.vectors, normalize(alone["thermal"] + alone["image"], dim=1))


def test_files_that_cannot_be_read(model, pictures):
    (pictures / "1.png").write_bytes(b"nothing")
    items = [Item(pictures / f"{number}.png") for number in range(3)]
    with pytest.raises(CorruptSample):
        embed_items(model, items, ["thermal"])
    found = embed_items(model, items, ["thermal", "image"], on_corrupt="skip")
    assert [item.path.name for item in found.items] == ["0.png", "2.png"] and len(found.vectors) == 2
    assert list(found.skipped) == [str(pictures / "1.png")]
    with pytest.raises(FileError, match=r"None of the 1 files could be read \(.*1.png: "):
        embed_items(model, items[1:2], ["thermal"], on_corrupt="skip")


def test_numbers_beyond_what_can_be_embedded(tmp_path):
    for name, loudness in {"a.wav": 0.1, "b.wav": 1e30, "c.wav": 0.2}.items():
        soundfile.write(tmp_path / name, loudness * np.sin(np.arange(32_000.0)), 16_000, subtype="FLOAT")
    model = ImageBindConfig(8, {"audio": Audio(**TINY)}).build().eval()
    items = [Item(tmp_path / name, ("a",)) for name in ("a.wav", "b.wav", "c.wav")]
    sentence = r"Cannot read .*b\.wav: its numbers are too large;"
    with pytest.raises(CorruptSample, match=sentence):
        embed_items(model, items, ["audio"])
    with pytest.raises(CorruptSample, match=sentence):
        model.embed({"audio": [item.path for item in items]})
    found = embed_items(model, items, ["audio"], on_corrupt="skip")
    assert found.items == (items[0], items[2]) and found.vectors.isfinite().all() and len(found.vectors) == 2
    assert found.skipped == {str(tmp_path / "b.wav"): "its numbers are too large"}


def test_parts_of_recordings(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 160000), 16000)
    torch.manual_seed(0)
    model = ImageBindConfig(8, {"audio": Audio(**TINY)}).build().eval()
    spans = (None, (1.0, 2.0), (4.0, 3.0), (7.0, math.inf))
    items = [Item(tmp_path / "a.wav", matches=(tmp_path / "a.wav",), span=span) for span in spans]
    assert read_item(Audio(), items[1]).equal(Audio().read_part(tmp_path / "a.wav", (1.0, 2.0)))
    found = embed_items(model, items, ["audio"])
    assert len(found.vectors.unique(dim=0)) == 4
    figures = evaluate_retrieval(model, found, "audio", partner="audio")  # each part matches the same part
    assert figures["audio_to_audio_r1"] == 1
    beyond = Item(tmp_path / "a.wav", span=(11.0, 1.0))
    found = embed_items(model, [*items, beyond], ["audio"], on_corrupt="skip")
    assert found.items == tuple(items) and list(found.skipped) == [str(tmp_path / "a.wav")]


def test_boxes_and_settings(pictures):
    path = pictures / "0.png"
    values = np.asarray(Pillow.open(path))
    item = Item(path, box=(10, 4, 30, 44))
    thermal = Thermal(**TINY, size=32)
    assert read_item(thermal, item).equal(thermal.read(values[4:44, 10:30]))
    with pytest.raises(CorruptSample, match="lies beyond"):
        read_item(thermal, Item(path, box=(70, 0, 80, 10)))
    with pytest.raises(VitrailError, match="not of image"):
        read_item(Image(**TINY, size=28), item)
    Pillow.fromarray(values.astype(np.uint16) * 8 + 8000).save(path)
    depth = Depth(**TINY, size=32)
    settings = {"encoding": "sunrgbd", "sensor": "xtion", "focal_length": 500.0}
    own = Depth(**TINY, size=32, **settings)
    assert read_item(depth, Item(path, settings={"depth": settings})).equal(own.read(path))
    assert not own.read(path).equal(depth.read(path))


def test_zero_shot_accuracy():
    vectors = normalize(torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 2], [0, 1, 3]]), dim=1)
    classifier = ZeroShotClassifier(["a", "b", "c"], torch.eye(3))
    figures = zero_shot(classifier, embedded(vectors, ["a", "b", "c", "b"])).compute()
    assert figures["top1"] == 0.75 and figures["top5"] == 1
    assert figures["mean_class_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    with pytest.raises(VitrailError, match=r"label 'd' of 3.wav is none of the 3 classes"):
        zero_shot(classifier, embedded(vectors, ["a", "b", "c", "d"]))


def test_several_labels_give_mean_average_precision():
    vectors = normalize(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = [["a"], [], ["a", "b"], ["b"], ["c"], ["a", "c"]] * 2
    found = zero_shot(ZeroShotClassifier(["a", "b", "c"], torch.eye(3)), embedded(vectors, labels)).compute()
    truth = np.array([[name in own for name in "abc"] for own in labels])
    expected = average_precision_score(truth, vectors.numpy(), average="macro")
    assert found == {"mean_average_precision": pytest.approx(expected)}


def clusters(count, noise=0.3, seed=0):
    labels = torch.arange(count) % 3
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.eye(8)[labels] + noise * torch.randn(count, 8, generator=generator)
    return normalize(vectors, dim=1), ["abc"[label] for label in labels]


def test_few_shots_of_the_rest_and_of_training_data():
    data = embedded(*clusters(60, noise=0.2))
    found = few_shot(data, "abc", (1, 4))
    assert list(found) == [1, 4] and found[4] > 0.9 and found[1] > 0.6
    assert few_shot(data, "abc", (1, 4)) == found
    wrong = embedded(clusters(30, seed=1)[0], ["bca"["abc".index(label)] for label in clusters(30)[1]])
    assert few_shot(data, "abc", (8,), training=wrong)[8] < 0.1  # taught all wrong, it says it all wrong
    with pytest.raises(VitrailError, match="20 shots leave no file to test on"):
        few_shot(data, "abc", (20,))
    with pytest.raises(VitrailError, match="has 2 labels"):
        few_shot(embedded(data.vectors[:1], [["a", "b"]]), "abc", (1,))


def test_few_shots_by_folds():
    """Fold 2 calls everything otherwise than folds 1 and 3 do: nothing that is learned holds across."""
    vectors, labels = clusters(90, noise=0.05)
    folds = [str(1 + number // 30) for number in range(90)]
    labels = ["bca"["abc".index(label)] if fold == "2" else label for label, fold in zip(labels, folds, strict=True)]
    right = embedded(vectors, clusters(90)[1], folds)
    assert few_shot(right, "abc", (8,)) == {8: 1.0}
    with pytest.raises(VitrailError, match="The class 'c' has 0 samples to learn from, not 1; ask for fewer shots, or"):
        few_shot(embedded(vectors[:6], list("ababac"), list("112212")), "abc", (1,))
    few_shot(embedded(vectors[:6], list("ababac"), ["1", "1", "2", "2", "1", None]), "abc", (1,))  # c is in no fold
    mixed = few_shot(EmbeddedItems(right.items[:60], vectors[:60], {}), "abc", (8,))
    assert mixed == {8: 1.0}
    assert few_shot(embedded(vectors[:60], labels[:60], folds[:60]), "abc", (8,)) == {8: 0.0}


def test_retrieval_of_captions_and_of_files(model, pictures):
    """Three pictures, a caption each, and one that all share."""
    items = tuple(Item(pictures / f"{number}.png", matches=(f"number {number}", "a picture")) for number in range(3))
    found = embed_items(model, items, ["thermal"])
    figures = evaluate_retrieval(model, found, "thermal")
    texts = model.embed({"text": ["number 0", "a picture", "number 1", "number 2"]})["text"]
    similarities = texts @ found.vectors.mT
    ranks = [1 + int((similarities[row] > similarities[row, own]).sum()) for row, own in ((0, 0), (2, 1), (3, 2))]
    expected = (sum(rank == 1 for rank in ranks) + 1) / 4  # "a picture" finds whichever is first
    assert figures["text_to_thermal_r1"] == expected and figures["thermal_to_text_r5"] == 1
    same = tuple(Item(item.path, matches=(item.path,)) for item in items)
    figures = evaluate_retrieval(model, EmbeddedItems(same, found.vectors, {}), "thermal", partner="thermal")
    assert figures["thermal_to_thermal_r1"] == 1 and figures["thermal_to_thermal_median_rank"] == 1
    with pytest.raises(VitrailError, match="Nothing belongs"):
        evaluate_retrieval(model, EmbeddedItems((Item("x"),), found.vectors[:1], {}), "thermal")
