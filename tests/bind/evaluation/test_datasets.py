"""Class folders and tables as data to evaluate on."""

import pytest

from vitrail.bind.evaluation.datasets import Item, open_data
from vitrail.errors import FileError, VitrailError


def folders(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def table(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_class_folders(tmp_path):
    root = folders(tmp_path, "10/b.wav", "2/a.wav", "2/deep/c.ogg", "README.txt", ".git/x.wav", "2/notes.xyz")
    data = open_data(root)
    assert data.sense == "audio" and not data.multi_label
    assert data.classes == {"2": ("2",), "10": ("10",)}  # in natural order
    assert data.items == (
        Item(root / "10/b.wav", ("10",)),
        Item(root / "2/a.wav", ("2",)),
        Item(root / "2/deep/c.ogg", ("2",)),
    )
    data = open_data(
        root, "imu", {"rain": ("rain",), "sea": ("sea",), "2": ("two",), **{str(n): ("x",) for n in range(3, 12)}}
    )
    assert data.sense == "imu" and [item.labels[0] for item in data.items] == ["10", "2", "2", "2"]
    with pytest.raises(FileError, match=r"label '10' in .* is not one of the 2 classes"):
        open_data(root, None, {"a": ("a",), "b": ("b",)})


def test_classes_are_named_or_numbered(tmp_path):
    root = folders(tmp_path, "living_room/b.wav", "1/a.wav")
    classes = {"living_room": ("lounge", "parlour"), "cellar": ("cellar",)}
    data = open_data(root, None, classes)
    assert data.classes == classes and [item.labels for item in data.items] == [("cellar",), ("living_room",)]
    assert open_data(folders(tmp_path / "other", "a_b/c.wav")).classes == {"a_b": ("a b",)}


def test_tables_of_labels(tmp_path):
    data = open_data(
        table(tmp_path / "a.csv", "file,label,fold", "x.wav,dog | rain,1", "y.wav,sea,2", "x.wav,cat,1", "z.wav,,2")
    )
    assert data.sense == "audio" and data.multi_label and list(data.classes) == ["cat", "dog", "rain", "sea"]
    assert data.items == (
        Item(tmp_path / "x.wav", ("dog", "rain", "cat"), fold="1"),
        Item(tmp_path / "y.wav", ("sea",), fold="2"),
        Item(tmp_path / "z.wav", (), fold="2"),
    )
    assert open_data(table(tmp_path / "b.csv", "depth,label", "x.png,hall")).sense == "depth"


def test_numbers_in_parquet_are_labels_and_folds(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"file": ["a.wav", "b.wav", "c.wav"], "label": [0, 1, 0], "fold": [1, 1, 2]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    data = open_data(tmp_path / "t.parquet", None, {"rain": ("rain",), "sea": ("sea",)})
    assert [(item.labels, item.fold) for item in data.items] == [(("rain",), "1"), (("sea",), "1"), (("rain",), "2")]


def test_rows_longer_than_the_header_are_read(tmp_path):
    data = open_data(table(tmp_path / "a.csv", "file,label", "x.wav,dog,what", "y.wav"))
    assert [item.labels for item in data.items] == [("dog",), ()]


def test_tables_of_captions_and_of_pairs(tmp_path):
    captions = table(tmp_path / "a.csv", "file,caption", "x.wav,a dog", "y.wav,rain", 'x.wav,"one, two"')
    data = open_data(captions)
    assert data.classes is None and (data.sense, data.partner) == ("audio", "text")
    assert data.items == (
        Item(tmp_path / "x.wav", matches=("a dog", "one, two")),
        Item(tmp_path / "y.wav", matches=("rain",)),
    )
    several = table(tmp_path / "b.csv", "audio,caption_1,caption_2", "x.wav,a dog,barks", "y.wav,rain,")
    assert [item.matches for item in open_data(several).items] == [("a dog", "barks"), ("rain",)]
    pairs = open_data(table(tmp_path / "c.csv", "text,thermal", "a dog,x.png"))
    assert (pairs.sense, pairs.partner) == ("thermal", "text") and pairs.items[0].matches == ("a dog",)
    both = table(tmp_path / "d.csv", "image,thermal", "x.jpg,x.png")
    pairs = open_data(both)
    assert (pairs.sense, pairs.partner) == ("image", "thermal")
    assert pairs.items == (Item(tmp_path / "x.jpg", matches=(tmp_path / "x.png",)),)
    pairs = open_data(both, "thermal")
    assert (pairs.sense, pairs.partner) == ("thermal", "image")
    assert pairs.items == (Item(tmp_path / "x.png", matches=(tmp_path / "x.jpg",)),)
    assert open_data(both, "audio").items == open_data(both).items


def test_parts_and_settings(tmp_path):
    lines = [
        "audio,image,start,seconds,audio.padding,image.crops,imu.rate",
        "x.wav,x.mp4,2,3,repeat,1,x",
        "x.wav,y.mp4,,,,,",
    ]
    data = open_data(table(tmp_path / "a.csv", *lines, "x.wav,z.mp4,2,3,,,"))
    first, second = data.items
    assert first.span == (2.0, 3.0) and second.span is None and second.settings == {}
    assert first.matches == (tmp_path / "x.mp4", tmp_path / "z.mp4") and second.matches == (tmp_path / "y.mp4",)
    assert first.settings == {"audio": {"padding": "repeat"}, "image": {"crops": 1}}
    with pytest.raises(FileError, match=r"Row 1 of .* has a setting that cannot be: audio has no field 'loud'"):
        open_data(table(tmp_path / "b.csv", "audio,label,audio.loud", "x.wav,rain,1"))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["file,colour", "x.wav,red"], "has the columns file, colour; it must have"),
        (["label", "red"], "has the columns label"),
        (["file,label"], "There is no row in"),
        (["file,label", ",red"], "Row 1 of .* has no 'file'"),
        (["file,label", "x.wav,"], "There is no label in"),
        (["file,label", "x.wav,a", "y.jpg,b"], "There are files of audio, image in .*; say by --sense"),
        (["file,label", "x.xyz,a"], "whose suffixes tell no sense"),
    ],
)
def test_tables_that_are_none(tmp_path, lines, sentence):
    with pytest.raises(VitrailError, match=sentence):
        open_data(table(tmp_path / "t.csv", *lines))


def test_places_that_are_none(tmp_path):
    with pytest.raises(FileError, match="is neither a folder nor a table"):
        open_data(tmp_path / "nothing")
    with pytest.raises(FileError, match="There is no class folder"):
        open_data(folders(tmp_path, "x.wav", "notes/a.xyz"))
