import pickle

import pytest

from vitrail.data.paths import PathIndex


def test_round_trip():
    paths = ["a/b.jpg", "", "ü/日本.png", "broken\udcff.jpg", "c"]
    index = PathIndex.build(iter(paths))
    for copy in (index, pickle.loads(pickle.dumps(index))):
        assert len(copy) == 5
        assert [copy[number] for number in range(5)] == paths
        assert copy[-1] == "c"
        with pytest.raises(IndexError):
            copy[5]


def test_a_million_paths_are_compact():
    index = PathIndex.build(f"n{number % 1000:08}/image_{number:08}.jpg" for number in range(1_000_000))
    assert index[654_321] == "n00000321/image_00654321.jpg"
    length = len("n00000321/image_00654321.jpg")
    assert len(pickle.dumps(index, protocol=5)) < 1_000_000 * (length + 8) + 1000  # all that workers are given
