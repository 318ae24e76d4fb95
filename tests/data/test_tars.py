import gzip
import io
import json
import os
import pickle

import pytest
from PIL import Image

from vitrail.data import tars
from vitrail.data.corrupt import CorruptSample
from vitrail.data.loader import LoaderConfig, evaluation_batches
from vitrail.data.tars import TarImages, index_shard
from vitrail.errors import FileError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))


def picture(value, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, kind)
    return file.getvalue()


def contents(dataset):
    return [(int(sample.image[0, 0, 0]), *sample[1:]) for sample in (dataset[i] for i in range(len(dataset)))]


def test_samples_in_any_order_from_several_shards(tmp_path, shard, to_array):
    first = shard(tmp_path / "0.tar", {"a": 5, "dir/b": 1, "dir.x/b": 3})
    second = shard(tmp_path / "1.tar", {"a": 2})
    dataset = pickle.loads(pickle.dumps(TarImages([first, second], to_array)))
    assert contents(dataset) == [(5, 5), (1, 1), (3, 3), (2, 2)]
    assert dataset[3].label == dataset[-1].label == 2
    assert dataset.classes == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(IndexError):
        dataset[4]
    batches = evaluation_batches(dataset, batch_size=3, loader=LoaderConfig(workers=2))
    assert [batch.label.tolist() for batch in batches] == [[5, 1, 3], [2]]


def test_labels_by_name_and_from_json(tmp_path, raw_shard, to_array):
    members = [
        ("1.jpg", picture(1)),
        ("1.cls", b"dog\n"),
        ("1.json", json.dumps({"breed": 7}).encode()),
        ("2.json", json.dumps({"breed": 0, "cls": "cat"}).encode()),
        ("2.PNG", picture(2)),
        ("2.mask.png", picture(9)),
        ("3.cls", b"cat"),
        ("3.jpg", picture(3)),
        ("3.json", json.dumps({"breed": 1, "cls": "dog"}).encode()),
        ("readme.txt", b"no sample"),
    ]
    path = raw_shard(tmp_path / "x.tar", members)
    dataset = TarImages([path], to_array)
    assert (contents(dataset), dataset.classes) == ([(1, 1), (2, 0), (3, 0)], ("cat", "dog"))
    assert contents(TarImages([path], to_array, classes=("cat", "cow", "dog"))) == [(1, 2), (2, 0), (3, 0)]
    assert contents(TarImages([path], to_array, label="breed")) == [(1, 7), (2, 0), (3, 1)]
    unlabelled = TarImages([path], to_array, label=None)
    assert (contents(unlabelled), unlabelled.classes) == ([(1,), (2,), (3,)], None)


def test_some_without_label(tmp_path, raw_shard, to_array):
    path = raw_shard(tmp_path / "x.tar", [("1.jpg", picture(1)), ("1.cls", b"0"), ("d/2.jpg", picture(2))])
    with pytest.raises(FileError, match=r"x.tar/d/2.jpg has no label 'cls', but others have"):
        TarImages([path], to_array)


def test_bad_json(tmp_path, raw_shard, to_array):
    path = raw_shard(tmp_path / "x.tar", [("1.jpg", picture(1)), ("1.json", b"{")])
    with pytest.raises(FileError, match=r"Cannot read the label in .*x.tar/1.json"):
        TarImages([path], to_array)


def test_truncated_anywhere(tmp_path, shard, to_array):
    whole = shard(tmp_path / "whole.tar", {"a": 1, "b": 2}).read_bytes()
    end = 4 * 1024  # four members: a header block and a block of data each
    assert whole[end:].count(0) == len(whole) - end
    cut = tmp_path / "cut.tar"
    for length in (0, 100, 512, 600, 1024, 1500, 2048, 3 * 1024 + 512, end - 1, end):
        cut.write_bytes(whole[:length])
        with pytest.raises(FileError, match=rf"cut.tar \({length:,} bytes\) is truncated, damaged") as caught:
            TarImages([cut], to_array)
        if length > 2048:
            assert "after " in str(caught.value)
    cut.write_bytes(whole[: end + 512])
    assert contents(TarImages([cut], to_array)) == [(1, 1), (2, 2)]


def test_damaged_header_in_the_middle(tmp_path, shard, to_array):
    path = shard(tmp_path / "x.tar", {"a": 1, "b": 2})
    data = bytearray(path.read_bytes())
    data[2048:2560] = b"\xff" * 512
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"x.tar .*damaged or not a plain tar file after a.cls"):
        TarImages([path], to_array)


def test_compressed_or_missing(tmp_path, shard, to_array):
    path = shard(tmp_path / "x.tar", {"a": 1})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FileError, match="decompress it if it is compressed"):
        TarImages([path], to_array)
    with pytest.raises(FileError, match=r"Cannot read .*none.tar: No such file"):
        TarImages([tmp_path / "none.tar"], to_array)


def test_no_image(tmp_path, raw_shard, to_array):
    with pytest.raises(FileError, match="There is no image in"):
        TarImages([raw_shard(tmp_path / "x.tar", [("1.cls", b"0")])], to_array)


def test_a_corrupt_member_is_named(tmp_path, raw_shard, to_array):
    path = raw_shard(tmp_path / "x.tar", [("1.jpg", picture(1)), ("2.jpg", picture(2)[:40]), ("3.jpg", picture(3))])
    dataset = TarImages([path], to_array)
    with pytest.raises(CorruptSample) as caught:
        dataset[1]
    assert caught.value.path == f"{path}/2.jpg"
    batches = evaluation_batches(dataset, batch_size=9, loader=LoaderConfig(workers=0, on_corrupt="skip"))
    assert [batch.image[:, 0, 0, 0].tolist() for batch in batches] == [[1, 3]]
    assert list(batches.corrupt) == [f"{path}/2.jpg"]


def test_headers_are_read_once(tmp_path, shard, monkeypatch):
    path = shard(tmp_path / "x.tar", {"a": 1, "b": 0})
    scans = []
    scan = tars._scan
    monkeypatch.setattr(tars, "_scan", lambda *arguments: scans.append(arguments) or scan(*arguments))
    for _ in range(2):
        index = index_shard(path, "cls")
        assert [index.names[0], index.names[1]] == ["a.png", "b.png"]
        assert (index.codes.tolist(), index.values) == ([0, 1], ("1", "0"))
    assert len(scans) == 1
    index_shard(path, "other")  # another label
    os.utime(path, ns=(0, 12345))  # another time
    index_shard(path, "other")
    shard(path, {"a": 1, "b": 0, "c": 4})  # another content
    assert len(index_shard(path, "cls").names) == 3
    assert len(scans) == 4


def test_a_damaged_index_is_made_again(tmp_path, shard):
    path = shard(tmp_path / "x.tar", {"a": 1})
    index_shard(path, "cls")
    stored = tmp_path / ".x.tar.index.npz"
    for data in (b"", b"PK\x03\x04 nonsense", stored.read_bytes()[:200]):
        stored.write_bytes(data)
        assert index_shard(path, "cls").names[0] == "a.png"


def test_the_index_goes_to_the_cache_where_the_shard_cannot_be_written_beside(tmp_path, shard, monkeypatch):
    path = shard(tmp_path / "x.tar", {"a": 1})
    store = tars._store

    def refuse(place, stamp, index):
        if place.parent == tmp_path:
            raise FileError("Cannot write here.")
        store(place, stamp, index)

    monkeypatch.setattr(tars, "_store", refuse)
    index_shard(path, "cls")
    assert len(list((tmp_path / "cache" / "tars").glob("*.npz"))) == 1
    monkeypatch.setattr(tars, "_scan", None)  # not needed any more
    assert index_shard(path, "cls").names[0] == "a.png"
