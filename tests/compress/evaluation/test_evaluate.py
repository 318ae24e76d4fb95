"""An evaluation: files' bytes, figures against numpy, means, BD-rates, FID and KID by a tiny network."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.compress.evaluation.classical import CLASSICAL
from vitrail.compress.evaluation.embedding import Embedding
from vitrail.compress.evaluation.evaluate import Contender, Summary, bd_rates, classical_contenders, evaluate, measure
from vitrail.errors import VitrailError
from vitrail.metrics.frechet import frechet_distance, hific_patches, kernel_distance
from vitrail.metrics.reconstruction import ms_ssim


@pytest.fixture(scope="module")
def pictures(photos, tmp_path_factory):
    """Two photos of different sizes, the second with a transparent part."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.open(photos / "test" / "banana" / "00.webp").convert("RGB").crop((0, 0, 61, 44)).save(folder / "a.png")
    other = Image.open(photos / "test" / "lemon" / "00.webp").convert("RGBA").crop((0, 0, 32, 90))
    other.putalpha(Image.new("L", other.size, 128))
    other.save(folder / "b.png")
    return [folder / "a.png", folder / "b.png"]


def test_figures_are_those_of_the_files(pictures, make_codec):
    codec = make_codec(parts=2)
    seen = []
    result = evaluate(
        [Contender("tiny", codec, (1, 2)), Contender("jpeg", CLASSICAL["jpeg"], (10, 90))],
        pictures,
        done=lambda: seen.append(1),
    )
    assert len(seen) == 2 and len(result.measurements) == 8 and result.features is None
    original = Image.open(pictures[0])
    for one in result.measurements[:4]:
        maker = codec if one.codec == "tiny" else CLASSICAL["jpeg"]
        data = maker.compress(original, one.quality)
        assert (one.image, one.bytes, one.width, one.height) == (str(pictures[0]), len(data), 61, 44)
        assert one.bpp == pytest.approx(8 * len(data) / (61 * 44), rel=1e-12)
        arrays = [np.asarray(image, dtype=np.float64) for image in (original, maker.decompress(data))]
        assert one.psnr == pytest.approx(10 * math.log10(255**2 / np.square(arrays[0] - arrays[1]).mean()), rel=1e-9)
        expected = ms_ssim(*(torch.from_numpy(array / 255).permute(2, 0, 1)[None] for array in arrays))
        assert one.ms_ssim == pytest.approx(expected.item(), abs=1e-6)
    assert [(row.codec, row.quality) for row in result.summaries] == [
        ("tiny", 1),
        ("tiny", 2),
        ("jpeg", 10),
        ("jpeg", 90),
    ]
    for row in result.summaries:
        group = [one for one in result.measurements if (one.codec, one.quality) == (row.codec, row.quality)]
        assert row.images == 2
        for name in ("bpp", "psnr", "ms_ssim"):
            assert getattr(row, name) == pytest.approx(sum(getattr(one, name) for one in group) / 2, rel=1e-12)
        assert row.ms_ssim_db == pytest.approx(-10 * math.log10(1 - row.ms_ssim), rel=1e-12)
        assert row.fid is None and row.kid is None


def test_transparency_lies_on_white_before_it_is_compressed(pictures):
    (one,) = evaluate([Contender("jpeg", CLASSICAL["jpeg"], (95,))], pictures[1:]).measurements
    assert one.psnr > 30


def test_ms_ssim_is_right_where_pictures_are_bright_and_flat():
    generator = np.random.default_rng(0)
    arrays = [np.uint8(254) - generator.integers(0, 2, (200, 200, 3), dtype=np.uint8) for _ in range(2)]
    one = measure("a", "b", 1, Image.fromarray(arrays[0]), b"", Image.fromarray(arrays[1]))
    expected = ms_ssim(*(torch.from_numpy(array / 255).permute(2, 0, 1)[None] for array in arrays))
    assert one.ms_ssim == pytest.approx(expected.item(), abs=1e-6)


def test_pictures_without_ms_ssim(pictures, tmp_path):
    Image.open(pictures[0]).resize((10, 40)).save(tmp_path / "narrow.png")
    result = evaluate(classical_contenders(["jpeg"]), [*pictures, tmp_path / "narrow.png"])
    assert result.measurements[-1].ms_ssim is None and result.measurements[0].ms_ssim is not None
    assert {(row.ms_ssim, row.ms_ssim_db) for row in result.summaries} == {(None, None)}


def test_fid_and_kid_compare_patches_by_the_network(photos, tmp_path):
    photo = Image.open(photos / "test" / "banana" / "00.webp").convert("RGB").resize((530, 515))
    photo.save(tmp_path / "large.png")
    photo.resize((200, 200)).save(tmp_path / "small.png")
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 8, stride=8)
    embedding = Embedding("tiny", network, lambda images: network(images).mean(dim=(2, 3)), 64, [0.5] * 3, [0.2] * 3)
    jpeg = Contender("jpeg", CLASSICAL["jpeg"], (5, 80))
    result = evaluate([jpeg], [tmp_path / "small.png", tmp_path / "large.png"], embedding)
    assert result.features == "tiny"
    for row in result.summaries:
        decoded = jpeg.codec.decompress(jpeg.codec.compress(photo, row.quality))
        images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in (photo, decoded)]
        first, second = (embedding(hific_patches(image)) for image in images)
        assert len(first) == 5
        assert row.fid == pytest.approx(frechet_distance(first, second), rel=1e-4, abs=1e-9)
        assert row.kid == pytest.approx(kernel_distance(first, second), rel=1e-4, abs=1e-6)
    assert result.summaries[0].fid > 2 * result.summaries[1].fid


def test_pictures_too_small_for_patches_are_refused(pictures):
    network = torch.nn.Identity()
    embedding = Embedding("none", network, lambda images: images.mean(dim=(2, 3)), 8, [0.5] * 3, [0.5] * 3)
    with pytest.raises(VitrailError, match="patches of 256 x 256 pixels, and the pictures hold fewer than two"):
        evaluate(classical_contenders(["jpeg"]), pictures, embedding)


def test_names_must_differ_and_there_must_be_pictures(pictures):
    with pytest.raises(VitrailError, match="Two codecs are called jpeg"):
        evaluate(classical_contenders(["jpeg", "webp", "jpeg"]), pictures)
    with pytest.raises(VitrailError, match="no picture to evaluate on"):
        evaluate(classical_contenders(["jpeg"]), [])


def summary(codec: str, rate: float, psnr: float, similarity: float | None) -> Summary:
    return Summary(codec, 1, 1, rate, psnr, similarity, None if similarity is None else 30 * similarity, None, None)


def test_bd_rates_are_against_the_reference_or_absent():
    jpeg = [summary("jpeg", rate, psnr, rate) for rate, psnr in ((0.1, 20.0), (0.2, 25.0), (0.4, 28.0))]
    half = [summary("half", row.bpp / 2, row.psnr, row.ms_ssim) for row in jpeg]
    far = [summary("far", row.bpp, row.psnr + 30, None) for row in jpeg]
    rates = bd_rates([*jpeg, *half, *far, summary("single", 0.1, 22.0, 0.2)], "jpeg")
    assert list(rates) == ["half", "far", "single"]
    assert rates["half"] == (pytest.approx(-50), pytest.approx(-50))
    assert rates["far"] == (None, None) and rates["single"] == (None, None)
