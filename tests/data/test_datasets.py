import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitrail.config import from_json, to_json
from vitrail.data.augmentation import EvalTransform
from vitrail.data.corrupt import CorruptSample
from vitrail.data.datasets import ImageData, ImageFiles, ImageFolder, ImageList
from vitrail.data.loader import LoaderConfig, evaluation_batches
from vitrail.data.samples import LabelledImage, UnlabelledImage
from vitrail.data.tars import TarImages
from vitrail.errors import FileError

PHOTOS = Path(__file__).parents[2] / "src" / "vitrail" / "demo" / "photos"
GROCERY = Path(__file__).parents[2].parent / "shared" / "data" / "grocery"


def contents(dataset):
    """Grey value and label of each sample; the label is missing where there is none."""
    return [(int(sample.image[0, 0, 0]), *sample[1:]) for sample in (dataset[i] for i in range(len(dataset)))]


def test_class_folders(tmp_path, write_image, to_array):
    for value, name in enumerate(("0/a.png", "2/a.png", "10/b/10.png", "10/b/9.png")):
        write_image(tmp_path / name, value)
    dataset = ImageData(tmp_path).open(to_array)
    assert dataset.classes == ("0", "2", "10")
    assert contents(dataset) == [(0, 0), (1, 1), (3, 2), (2, 2)]
    assert type(dataset[0]) is LabelledImage


def test_class_folders_of_given_classes(tmp_path, write_image, to_array):
    write_image(tmp_path / "dog" / "1.png", 1)
    (tmp_path / "cat").mkdir()
    dataset = ImageData(tmp_path).open(to_array, classes=("cat", "cow", "dog"))
    assert (contents(dataset), dataset.classes) == ([(1, 2)], ("cat", "cow", "dog"))
    with pytest.raises(FileError, match=r"'dog' in .* is not one of the 2 classes"):
        ImageData(tmp_path).open(to_array, classes=("cat", "cow"))
    with pytest.raises(FileError, match=r"The class folder .*cat has no image"):
        ImageFolder(tmp_path, to_array)


def test_imagenet_v2_layout(tmp_path, write_image, to_array):
    for number in range(0, 1000, 37):
        write_image(tmp_path / str(number) / "x.png", number % 256)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(1000)))
    dataset = ImageData(tmp_path, classes=names).open(to_array)
    assert contents(dataset) == [(number % 256, number) for number in range(0, 1000, 37)]
    assert dataset.classes[999] == "class 999"


def test_flat_folder(tmp_path, write_image, to_array):
    for value in range(12):
        write_image(tmp_path / f"{value}.png", value)
    (tmp_path / "notes").mkdir()
    dataset = ImageData(tmp_path).open(to_array)
    assert contents(dataset) == [(value,) for value in range(12)]
    assert (dataset.classes, type(dataset[0])) == (None, UnlabelledImage)


def test_without_labels_images_at_any_depth_count(tmp_path, write_image, to_array):
    for value, name in enumerate(("a.png", "b/1.png", "b/c/2.png")):
        write_image(tmp_path / name, value)
    assert contents(ImageData(tmp_path, labelled=False).open(to_array)) == [(0,), (1,), (2,)]
    with pytest.raises(FileError, match=r"has both folders of images and images of its own, such as a.png"):
        ImageData(tmp_path).open(to_array)


@pytest.mark.parametrize(
    ("lines", "column", "expected", "classes"),
    [
        ("b.png, 2, 0\na b.png, 0, 1\n", 1, [(1, 2), (2, 0)], ("0", "1", "2")),
        ("b.png, 2, 0\na b.png, 0, 1\n", 2, [(1, 0), (2, 1)], ("0", "1")),
        ("b.png, 2, 0\na b.png, 0, 1\n", None, [(1,), (2,)], None),
        ("\nb.png\tdog\n\na b.png\tcat, wild\n", 1, [(1, 1), (2, 0)], ("cat, wild", "dog")),
        ('"c,d.png",1\nb.png,0\n', 1, [(3, 1), (1, 0)], ("0", "1")),
        ("a b.png 1 5\nb.png  0 4\n", 1, [(2, 1), (1, 0)], ("0", "1")),
        ("a b.png\nb.png\r\n", 1, [(2,), (1,)], None),
        ("path,label\na b.png,x\n", 1, [(2, 0)], ("x",)),
        ('"Path","Label"\na b.png,x\n', 1, [(2, 0)], ("x",)),
        ("\npath\n a b.png \n", 1, [(2,)], None),
        ("File 1.png\nb.png\n", 1, [(4,), (1,)], None),
        ("File 1.png,x\nb.png,y\n", 1, [(4, 0), (1, 1)], ("x", "y")),
    ],
)
def test_lists(lines, column, expected, classes, tmp_path, write_image, to_array):
    for value, name in enumerate(("b.png", "a b.png", "c,d.png", "File 1.png"), 1):
        write_image(tmp_path / name, value)
    (tmp_path / "list.txt").write_text(lines)
    dataset = ImageData(tmp_path / "list.txt", label_column=column).open(to_array)
    assert (contents(dataset), dataset.classes) == (expected, classes)


def test_the_column_of_a_label_is_of_lists_alone(tmp_path, write_image, to_array):
    write_image(tmp_path / "a" / "1.png", 1)
    (tmp_path / "list.txt").write_text("a/1.png,7,3\n")
    data = ImageData(tmp_path / "list.txt", label_column=2)
    with pytest.raises(FileError, match="is no list file, whose column 2 could be the label; leave"):
        replace(data, root=tmp_path).open(to_array)
    assert len(replace(data, root=tmp_path, labelled=False).open(to_array)) == 1
    assert data.at(tmp_path).open(to_array).classes == ("a",)
    assert contents(data.at(tmp_path / "list.txt").open(to_array)) == [(1, 3)]


def test_a_list_elsewhere(tmp_path, shard, write_image, to_array):
    write_image(tmp_path / "images" / "a.png", 1)
    write_image(tmp_path / "b.png", 2)
    file = tmp_path / "lists" / "train.csv"
    file.parent.mkdir()
    file.write_text(f"a.png,1\n{tmp_path / 'b.png'},0\n")
    data = ImageData(tmp_path / "images", list=file)
    assert contents(data.open(to_array)) == [(1, 1), (2, 0)]
    (tmp_path / "lists" / "validation.csv").write_text("a.png,0\n")
    assert contents(data.at(tmp_path / "lists" / "validation.csv").open(to_array)) == [(1, 0)]
    shard(tmp_path / "validation.tar", {"a": 5})
    assert contents(replace(data, label_column=2).at(tmp_path / "validation.tar").open(to_array)) == [(5, 5)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png,1\nb.png\n", "Line 2 of .*list.txt differs from those before"),
        ("a.png,1\nb.png,1\n", "Line 1 of .*list.txt has no column 2"),
        ("", "There is no image in the list"),
        ("a.png,1\nb.png,\n", "Line 2 of .*list.txt has an empty label; fill it in"),
        (",1\n", "Line 1 of .*list.txt has an empty path; fill it in"),
    ],
)
def test_bad_lists(lines, message, tmp_path, to_array):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(FileError, match=message):
        ImageList(tmp_path / "list.txt", to_array, label_column=2 if "column" in message else 1)


def test_nothing_there(tmp_path, to_array, write_image):
    write_image(tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    for root, message in (
        ("missing", "There is no .*missing"),
        ("empty", "There is no image in .*empty"),
        ("*.tar", "No tar file matches"),
        ("one.png", r"one.png is one image"),
    ):
        with pytest.raises(FileError, match=message):
            ImageData(tmp_path / root).open(to_array)
    with pytest.raises(FileError, match="Cannot read the list"):
        ImageData(tmp_path, list=tmp_path / "none.txt").open(to_array)


def test_a_list_from_a_pipe_is_refused(tmp_path, to_array):
    reader, writer = os.pipe()
    os.write(writer, b"a.jpg 1\n")
    os.close(writer)
    with pytest.raises(FileError, match=r"Cannot read the list /dev/fd/\d+: underlying stream is not seekable; give a"):
        ImageData(tmp_path, list=Path(f"/dev/fd/{reader}")).open(to_array)
    os.close(reader)


def test_a_missing_image_is_a_corrupt_sample(tmp_path, to_array):
    (tmp_path / "list.txt").write_text("none.jpg 1\n")
    with pytest.raises(CorruptSample, match=r"none.jpg: there is no such file"):
        ImageData(tmp_path / "list.txt").open(to_array)[0]


def test_the_configuration_survives_json():
    data = ImageData(Path("a"), list=Path("b"), label_column=None, labelled=False, at_least=64)
    assert from_json(to_json(data)) == data


def test_the_demo_photos_in_batches():
    dataset = ImageData(PHOTOS / "test").open(EvalTransform(32).build())
    assert isinstance(dataset, ImageFiles)
    assert len(dataset) == 160
    assert dataset.classes[::9] == ("avocado", "zucchini")
    batches = list(evaluation_batches(dataset, batch_size=100, loader=LoaderConfig(workers=0)))
    assert [batch.image.shape for batch in batches] == [(100, 3, 32, 32), (60, 3, 32, 32)]
    assert torch.cat([batch.label for batch in batches]).bincount().tolist() == [16] * 10


@pytest.mark.shared
@pytest.mark.skipif(not GROCERY.is_dir(), reason="the shared data sets are not beside the repository")
def test_grocery_lists():
    data = ImageData(
        GROCERY, list=GROCERY / "test.txt", label_column=2, classes=GROCERY / "classes.csv", class_column=2
    )
    dataset = data.open(EvalTransform(32).build())
    assert len(dataset) == 2485
    assert dataset.classes[20] == "Milk"
    assert all(dataset.classes[dataset.labels[i]] in dataset.paths[i] for i in range(0, 2485, 9))


def test_tars_are_recognised(tmp_path, shard, write_image, to_array):
    for name in ("train-10.tar", "train-9.tar", "val.tar"):
        shard(tmp_path / name, {"a": int(name.strip("train-vl.") or 0)})
    assert contents(ImageData(tmp_path / "train-*.tar").open(to_array)) == [(9, 9), (10, 10)]
    assert contents(ImageData(tmp_path / "val.tar").open(to_array)) == [(0, 0)]
    dataset = ImageData(tmp_path, labelled=False).open(to_array)
    assert isinstance(dataset, TarImages)
    assert contents(dataset) == [(9,), (10,), (0,)]
    write_image(tmp_path / "a" / "1.png")
    with pytest.raises(FileError, match=r"has both folders of images and tars, such as .*tar; move one of both"):
        ImageData(tmp_path).open(to_array)
