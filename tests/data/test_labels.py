import pytest

from vitrail.data.labels import LabelEncoder, read_classes
from vitrail.errors import FileError


def encode(labels, classes=None):
    encoder = LabelEncoder()
    for label in labels:
        encoder.add(label)
    numbers, names = encoder.encode(classes, "list.txt")
    return numbers.tolist(), names


def test_labels():
    assert encode(["2", "0", "2"]) == ([2, 0, 2], ("0", "1", "2"))
    assert encode(["c10", "c9", "c10"]) == ([1, 0, 1], ("c9", "c10"))
    assert encode(["b", "a", "2"], classes=("a", "b", "c")) == ([1, 0, 2], ("a", "b", "c"))
    assert encode(["3", "7"], classes=("3", "7")) == ([0, 1], ("3", "7"))  # a name before a number


def test_classes_that_run_into_each_other():
    with pytest.raises(FileError, match=r"In list.txt the label 1 is the name of a class, and 0 can only be"):
        encode(["0", "1", "2"], classes=("1", "2", "3"))
    with pytest.raises(FileError, match=r"Two classes are called b, as images in list.txt are; give each another name"):
        encode(["a", "b"], classes=("a", "b", "b"))
    assert encode(["a"], classes=("a", "b", "b"))[0] == [0]


@pytest.mark.parametrize("label", ["d", "3"])
def test_labels_of_no_class(label):
    with pytest.raises(FileError, match=f"The label '{label}' in list.txt is not one of the 3 classes"):
        encode(["a", label], classes=("a", "b", "c"))


def test_negative_labels():
    with pytest.raises(FileError, match=r"There is a label -1 in list.txt; labels count from 0"):
        encode(["0", "-1"])


def test_read_classes(tmp_path):
    text = tmp_path / "names.txt"
    text.write_text("tench, Tinca tinca\n\n goldfish \n", encoding="utf-8-sig")
    assert read_classes(text) == ("tench, Tinca tinca", "goldfish")
    table = tmp_path / "names.csv"
    table.write_text('Name,ID,Coarse,Coarse ID\nGala,1,Apple,0\nLime,0,Lime,1\n"Pink, Lady",2,Apple,0\n')
    assert read_classes(table) == ("Lime", "Gala", "Pink, Lady")
    assert read_classes(table, 2) == ("Apple", "Lime")
    table.write_text("0,cat\n1,dog\n")
    assert read_classes(table, 1) == ("cat", "dog")
    table.write_text("cat\ndog\n")
    assert read_classes(table) == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a,0\nb,0\n", 0, "calls class 0 both 'a' and 'b'"),
        ("a,0\nb,2\n", 0, "names 2 classes but does not number them 0 to 1"),
        ("a,0\nb,1\n", 2, "has no column 2 with class names; its columns are 0 to 1"),
    ],
)
def test_class_files_that_contradict_themselves(text, column, message, tmp_path):
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(FileError, match=message):
        read_classes(tmp_path / "names.csv", column)


def test_missing_class_file(tmp_path):
    with pytest.raises(FileError, match="Cannot read the class names"):
        read_classes(tmp_path / "none.txt")


def test_a_number_too_large_for_a_class_is_refused():
    with pytest.raises(FileError, match=r"a label 99999999999 in list.txt, and numbers of classes are below 1,000,000"):
        encode(["3", "99999999999"])
    for number in ("1000000", "9" * 5000):
        with pytest.raises(FileError, match=r"There is a label (1000000|9{20}) in list.txt"):
            encode(["3", number])
        with pytest.raises(FileError, match=r"is not one of the 2 classes, neither by name nor by number"):
            encode(["a", number], classes=("a", "b"))
    assert encode(["999999"])[0] == [999999]
