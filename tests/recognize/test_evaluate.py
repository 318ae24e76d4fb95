import csv
import os

import pytest
import sklearn.metrics
import torch
from PIL import Image

from vitrail.data.datasets import ImageData
from vitrail.data.images import read_image
from vitrail.data.loader import LoaderConfig
from vitrail.errors import VitrailError
from vitrail.recognize.evaluate import evaluate_at, plot_resolutions, write_confusion
from vitrail.weights import load_classifier

MAIN = LoaderConfig(workers=0)


@pytest.mark.parametrize("size", [32, 56])
def test_figures_are_those_of_scikit_learn_on_the_same_predictions(run, photos, size):
    classifier = load_classifier(run)
    result = evaluate_at(classifier, ImageData(photos / "test"), size, batch_size=50, loader=MAIN)
    transform = classifier.at_size(size).transform.build()
    paths = sorted((photos / "test").glob("*/*.webp"))
    labels = [classifier.classes.index(path.parent.name) for path in paths]
    with torch.no_grad():
        logits = torch.cat([classifier.model(transform(read_image(path))[None]) for path in paths])
    confusion = sklearn.metrics.confusion_matrix(labels, logits.argmax(1), labels=range(10))
    assert result.size == size and result.skipped == {}
    assert (result.metric.confusion.numpy() == confusion).all()
    assert result.metric.compute()["top5"] == sklearn.metrics.top_k_accuracy_score(labels, logits, k=5)


def test_images_without_labels_are_refused(run, photos):
    with pytest.raises(VitrailError, match="have no labels; give class folders or a list with labels"):
        evaluate_at(load_classifier(run), ImageData(photos / "test" / "banana"), 32, loader=MAIN)


def test_the_confusion_matrix_as_a_table_and_as_a_picture(tmp_path):
    confusion = torch.tensor([[3, 1], [0, 2]])
    write_confusion(confusion, ("a", "b, c"), tmp_path / "confusion.csv")
    with (tmp_path / "confusion.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["true \\ predicted", "a", "b, c"], ["a", "3", "1"], ["b, c", "0", "2"]]
    write_confusion(confusion, ("a", "b, c"), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size == (int(2.94 * 120), int(2.94 * 120))


def test_the_plot_of_resolutions_is_a_picture(tmp_path):
    plot_resolutions({"XCiT": [(224, 0.8), (160, 0.7)], "DeiT": [(160, 0.6)]}, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (600, 432)


def test_names_of_any_bytes_and_signs_are_drawn_and_written(tmp_path):
    names = ("a$b$", os.fsdecode(b"\xff"), "\u65e5")
    write_confusion(torch.eye(3, dtype=torch.int64), names, tmp_path / "confusion.png")
    write_confusion(torch.eye(3, dtype=torch.int64), names, tmp_path / "confusion.csv")
    assert b",a$b$,\xff,\xe6\x97\xa5" in (tmp_path / "confusion.csv").read_bytes()


def test_the_picture_of_a_large_confusion_matrix_does_not_grow(tmp_path):
    names = [f"class {number}" for number in range(1000)]
    write_confusion(torch.eye(1000, dtype=torch.int64), names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size == (int(24.5 * 120),) * 2
