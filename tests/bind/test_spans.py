"""Parts of recordings."""

import math

import pytest

from vitrail.bind.spans import check_span, known_span, row_span
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import FileError


def test_what_a_row_says():
    assert row_span({"start": "1.5", "seconds": 2}, "Row 1") == (1.5, 2.0)
    start, seconds = row_span({"start": "", "other": 3}, "Row 1")
    assert math.isnan(start) and math.isnan(seconds)
    for cell in ("soon", "-1", "inf", [1]):
        with pytest.raises(FileError, match=r"^Row 7 of t\.csv has the start .*; it must be seconds, at least 0"):
            row_span({"start": cell}, "Row 7 of t.csv")


def test_what_is_not_said():
    assert known_span(math.nan, math.nan) is None and known_span(0.0, math.nan) is None
    assert known_span(2.0, math.nan) == (2.0, math.inf)
    assert known_span(math.nan, 3.0) == (0.0, 3.0)


def test_parts_begin_before_the_end():
    check_span("a.wav", (2.9, 9.0), 3.0)
    check_span("a.wav", (0.0, 1.0), 0.0)
    with pytest.raises(CorruptSample, match=r"it lasts 3 s, and a part is to begin at 3 s"):
        check_span("a.wav", (3.0, 1.0), 3.0)
