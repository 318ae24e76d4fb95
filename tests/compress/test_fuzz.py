"""Thousands of damaged files: an answer of `vitrail.compress`, or the right picture; never a traceback or a hang."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.compress import CodecError, Scheme
from vitrail.errors import VitrailError


def mutate(generator, data):
    """A few bytes changed, cut, inserted, removed, exchanged, or all replaced."""
    wrong = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        at = int(generator.integers(0, len(wrong) + 1))
        size = int(generator.integers(1, 9))
        noise = generator.bytes(size)
        match int(generator.integers(0, 7)):
            case 0:
                wrong[at : at + size] = noise[: len(wrong[at : at + size])]
            case 1:
                wrong[at : at + 1] = bytes(byte ^ (1 << size - 1) for byte in wrong[at : at + 1])
            case 2:
                del wrong[at:]
            case 3:
                wrong[at:at] = noise
            case 4:
                del wrong[at : at + size]
            case 5:
                wrong[at : at + size] = bytes(len(wrong[at : at + size]))
            case 6:
                wrong[:8] = wrong[:2] + generator.bytes(6) if size < 3 else wrong[:8]
    return bytes(wrong)


def torture(codec, seed, limit=None, count=None):
    generator = np.random.default_rng(seed)
    files = []
    for scheme in (Scheme(), Scheme("quincunx", 3), Scheme("confidence_doubling", 3), Scheme("marginal", 1)):
        for size in ((40, 28), (9, 61), (1, 1)):
            pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            data = codec.compress(Image.fromarray(pixels), scheme=scheme)
            stages = codec.inspect(data).total_stages
            prefixes = [np.array(codec.decode(data, stages=stage).image) for stage in range(1, stages + 1)]
            files.append((data, prefixes))
    began, done, refused, partial, wrong = time.perf_counter(), 0, 0, 0, 0
    while (count is None or done < count) and (limit is None or time.perf_counter() - began < limit):
        data, prefixes = files[int(generator.integers(len(files)))]
        mutated = mutate(generator, data)
        begun = time.perf_counter()
        done += 1
        try:
            decoded = codec.decode(mutated)
        except CodecError as error:
            refused += 1
            assert str(error).count(". ") == 0
        else:
            shown = np.array(decoded.image)
            if decoded.damage is None:
                assert shown.shape == prefixes[-1].shape
                assert (shown == prefixes[-1]).all(), "silently wrong"
            else:
                partial += 1
                expected = prefixes[decoded.stages - 1]
                # An early check has 8 bits: 1 in 256 damaged stages passes, and the next one speaks.
                wrong += shown.shape != expected.shape or bool((shown != expected).any())
        assert time.perf_counter() - begun < 5
    return done, refused, partial, wrong


def test_damaged_files_are_refused_or_partly_decoded(make_codec):
    done, refused, partial, wrong = torture(make_codec(2, 16, 4), seed=0, limit=10, count=3000)
    assert done >= 300
    assert refused > done / 20
    assert partial > done / 20
    assert wrong <= 3 + 2 * partial / 256


@pytest.mark.slow
def test_ten_thousand_damaged_files(make_codec):
    done, _, partial, wrong = torture(make_codec(2, 16, 4), seed=1, count=10_000)
    assert done == 10_000
    assert wrong <= 3 + 2 * partial / 256


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 8))
def test_random_bytes_are_refused(make_codec, data, kept):
    """The more of a true header, the deeper they come."""
    codec = make_codec()
    data = codec.compress(Image.new("RGB", (40, 40)))[:kept] + data
    try:
        codec.decode(data)
    except VitrailError as error:
        assert isinstance(error, CodecError)
