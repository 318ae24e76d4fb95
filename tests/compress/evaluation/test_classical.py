"""JPEG, JPEG 2000, WebP and AVIF: real files with the settings that they should have."""

import io

import numpy as np
import pytest
from PIL import Image

from vitrail.compress.errors import CodecError
from vitrail.compress.evaluation.classical import CLASSICAL


@pytest.fixture(scope="module")
def photo(photos) -> Image.Image:
    return Image.open(photos / "test" / "banana" / "00.webp").convert("RGB").crop((0, 0, 97, 64))


@pytest.mark.parametrize("name", CLASSICAL)
def test_files_are_of_their_format_and_grow_with_quality(name, photo):
    codec = CLASSICAL[name]
    sizes, errors = [], []
    for quality in (codec.qualities[0], codec.qualities[len(codec.qualities) // 2], codec.qualities[-1]):
        data = codec.compress(photo, quality)
        assert Image.open(io.BytesIO(data)).format == codec.format
        decoded = codec.decompress(data)
        assert (decoded.mode, decoded.size) == ("RGB", photo.size)
        errors.append(np.square(np.asarray(decoded, float) - np.asarray(photo, float)).mean())
        sizes.append(len(data))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2
    assert list(codec.qualities) == sorted(set(codec.qualities))


def test_jpeg_halves_colours_both_ways_and_has_its_own_huffman_tables(photo):
    data = CLASSICAL["jpeg"].compress(photo, 40)
    image = Image.open(io.BytesIO(data))
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    plain = io.BytesIO()
    photo.save(plain, "JPEG", quality=40, subsampling="4:2:0")
    assert len(data) < len(plain.getvalue())


def test_jpeg2000_takes_the_rate_that_was_asked_for_and_transforms_colours():
    noise = np.random.default_rng(0).normal(128, 40, (256, 256, 1))
    grey = Image.fromarray(noise.clip(0, 255).astype(np.uint8).repeat(3, axis=2))
    codec = CLASSICAL["jpeg2000"]
    for quality in (50, 100):
        assert 8 * len(codec.compress(grey, quality)) / 256**2 == pytest.approx(quality / 100, abs=0.06)
    # With the three colours coded apart, a grey picture would cost the same as three grey ones.
    apart = io.BytesIO()
    grey.save(apart, "JPEG2000", quality_mode="rates", quality_layers=[24], irreversible=True)
    errors = [
        np.square(np.asarray(Image.open(io.BytesIO(data)), float) - np.asarray(grey, float)).mean()
        for data in (codec.compress(grey, 100), apart.getvalue())
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5)])
def test_tiny_pictures(name, size, photo):
    codec = CLASSICAL[name]
    assert codec.decompress(codec.compress(photo.resize(size), codec.qualities[0])).size == size


def test_a_picture_that_the_format_cannot_hold_is_refused_in_a_sentence():
    with pytest.raises(CodecError, match="webp cannot compress a picture of 16384 x 1 pixels at quality 5"):
        CLASSICAL["webp"].compress(Image.new("RGB", (16384, 1)), 5)
