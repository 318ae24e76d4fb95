"""Classes as people write them."""

import pytest

from vitrail.bind.prompts import LLVIP, NYU_D, SUN_D, parse_classes, read_classes
from vitrail.errors import FileError, VitrailError


def test_classes():
    lines = ["dog", " person | man|woman ", "", "other=basement|cafe", "a b=c"]
    expected = {"dog": ("dog",), "person": ("person", "man", "woman"), "other": ("basement", "cafe"), "a b": ("c",)}
    assert parse_classes(lines) == expected
    for classes in (LLVIP, NYU_D, SUN_D):
        assert parse_classes(f"{title}={'|'.join(names)}" for title, names in classes.items()) == classes
    assert len(SUN_D) == 19


@pytest.mark.parametrize("line", ["|", "dog|", "=dog", "dog="])
def test_what_is_no_class(line):
    with pytest.raises(VitrailError, match="is no class"):
        parse_classes([line])


def test_files_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffdog|hound\n\ncat\n", encoding="utf-8")
    assert read_classes([str(path)]) == {"dog": ("dog", "hound"), "cat": ("cat",)}
    assert read_classes([str(path), "b.txt"]) == {str(path): (str(path),), "b.txt": ("b.txt",)}
    path.write_text("\n")
    with pytest.raises(FileError, match="There is no class in"):
        read_classes([str(path)])
    path.write_bytes(b"\xff")
    with pytest.raises(FileError, match="it is not text in UTF-8; give a text file"):
        read_classes([str(path)])
