"""Which tars a pattern names, and what members they have."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from vitrail.data.datasets import ImageData
from vitrail.data.shards import find_shards, read_members
from vitrail.data.tars import TarImages
from vitrail.errors import FileError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{9..10}.tar", ["a-9.tar", "a-10.tar"]),
        ("a-{8000000..8000001}.tar", ["a-8000000.tar", "a-8000001.tar"]),
        ("{b,a}-{0..1}.tar", ["b-0.tar", "b-1.tar", "a-0.tar", "a-1.tar"]),
    ],
)
def test_braces(pattern, expected):
    assert find_shards(pattern) == tuple(Path(name) for name in expected)


@pytest.mark.parametrize("last", ["1000000", "9" * 5000])
def test_more_tars_than_anyone_has_are_a_slip(last):
    with pytest.raises(
        FileError, match=r"\{0\.\.[09]*1?[09]*\} names more than 1,000,000 tar files; check the numbers"
    ):
        find_shards(f"a-{{0..{last}}}.tar")


def test_globs_in_natural_order(tmp_path):
    for name in ("a-10.tar", "a-9.tar", "a-9.txt", "b-1.tar"):
        (tmp_path / name).touch()
    assert find_shards(tmp_path / "a-*.tar") == (tmp_path / "a-9.tar", tmp_path / "a-10.tar")
    assert find_shards(tmp_path / "{b,a}-?.tar") == (tmp_path / "b-1.tar", tmp_path / "a-9.tar")
    with pytest.raises(FileError, match=r"No tar file matches .*c-\*.tar; check the pattern"):
        find_shards(tmp_path / "c-*.tar")


def test_members(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in (("d/0.JPG", b"one"), ("d/0.depth.png", b"three"), ("1", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = list(read_members(path))
    assert [member[:3] for member in found] == [
        ("d/0.JPG", "d/0", "jpg"),
        ("d/0.depth.png", "d/0", "depth.png"),
        ("1", "1", ""),
    ]
    content = path.read_bytes()
    assert [content[member.offset :][: member.size] for member in found] == [b"one", b"three", b""]


def test_images_of_shards_in_braces(tmp_path, shard, to_array, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    for number in range(3):
        shard(tmp_path / f"x-{number}.tar", {f"{number}": number})
    images = ImageData(tmp_path / "x-{1..2}.tar").open(to_array)
    assert [int(images[number].image[0, 0, 0]) for number in range(len(images))] == [1, 2]


def test_a_pipe_is_not_waited_for(tmp_path, to_array):
    os.mkfifo(tmp_path / "a.tar")
    for read in (lambda shard: next(read_members(shard)), lambda shard: TarImages([shard], to_array)):
        with pytest.raises(FileError, match=r"a\.tar is a pipe, not a file; give a tar file\.$"):
            read(tmp_path / "a.tar")
