"""The files and the table of an evaluation."""

import csv
from dataclasses import replace

import pytest
from PIL import Image

from vitrail.compress.evaluation.evaluate import Evaluation, Measurement, Summary
from vitrail.compress.evaluation.report import as_markdown, is_kodak, published_kodak, write_report
from vitrail.metrics.reconstruction import to_decibels

MEASUREMENT = Measurement("a.png", "jpeg", 10, 8, 4, 40, 10.0, 21.5, None)
SUMMARIES = tuple(
    Summary(codec, quality, 1, factor * rate, psnr, 0.5, to_decibels(0.5), None, None)
    for codec, factor in (("jpeg", 1.0), ("ours, $5", 0.75))
    for quality, rate, psnr in ((10, 0.2, 25.0), (20, 0.4, 28.0))
)
EVALUATION = Evaluation((MEASUREMENT,), SUMMARIES, None)


def test_files_hold_every_number(tmp_path):
    write_report(EVALUATION, tmp_path / "new")
    with (tmp_path / "new" / "images.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "image": "a.png",
        "codec": "jpeg",
        "quality": "10",
        "width": "8",
        "height": "4",
        "bytes": "40",
        "bpp": "10.0",
        "psnr": "21.5",
        "ms_ssim": "",
    }
    with (tmp_path / "new" / "means.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["codec"], row["quality"], float(row["bpp"])) for row in rows] == [
        (one.codec, str(one.quality), one.bpp) for one in SUMMARIES
    ]
    assert rows[0]["fid"] == rows[0]["features"] == ""
    for name in ("psnr.png", "ms_ssim.png"):
        with Image.open(tmp_path / "new" / name) as drawn:
            assert drawn.size == (840, 600)


def test_the_table_and_bd_rates_in_markdown():
    text = as_markdown(EVALUATION)
    assert text.splitlines()[:3] == [
        "| codec | quality | bpp | PSNR (dB) | MS-SSIM | MS-SSIM (dB) |",
        "| --- | --- | --- | --- | --- | --- |",
        "| jpeg | 10 | 0.2000 | 25.00 | 0.5000 | 3.01 |",
    ]
    assert "| ours, $5 | -25.0 % | no overlap |" in text.splitlines()
    assert "FID" not in text and "BD-rate" not in as_markdown(replace(EVALUATION, summaries=SUMMARIES[2:]))


def test_fid_and_kid_say_whose_features_they_are(tmp_path):
    summaries = tuple(replace(row, fid=3.25, kid=1.5e-4, ms_ssim=None, ms_ssim_db=None) for row in SUMMARIES)
    evaluation = Evaluation((MEASUREMENT,), summaries, "timm:resnet18=weights.pth")
    text = as_markdown(evaluation)
    assert "| jpeg | 10 | 0.2000 | 25.00 | — | — | 3.250 | 1.50e-04 |" in text
    assert text.rstrip().endswith("by the features of timm:resnet18=weights.pth.")
    write_report(evaluation, tmp_path)
    with (tmp_path / "means.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["fid"], row["kid"], row["features"]) == ("3.25", "0.00015", "timm:resnet18=weights.pth")


def test_published_curves_rise():
    points = published_kodak()
    codecs = {point.codec for point in points}
    assert len(codecs) == 7 and all(point.source for point in points)
    for codec in codecs:
        curve = [point for point in points if point.codec == codec]
        assert [point.bpp for point in curve] == sorted(point.bpp for point in curve)
        assert [point.psnr for point in curve] == sorted(point.psnr for point in curve)
    assert points[0].ms_ssim_db == pytest.approx(8.1248, abs=1e-4)


def test_published_curves_are_drawn_on_the_whole_of_kodak_alone(tmp_path, monkeypatch):
    kodak = Evaluation(
        tuple(replace(MEASUREMENT, image=f"k/kodim{number:02}.png") for number in range(1, 25)), SUMMARIES, None
    )
    assert is_kodak(kodak)
    assert not is_kodak(replace(kodak, measurements=kodak.measurements[1:]))
    assert not is_kodak(replace(kodak, measurements=(*kodak.measurements, MEASUREMENT)))
    drawn = []
    monkeypatch.setattr("vitrail.compress.evaluation.report.save_figure", lambda figure, path: drawn.append(figure))
    for evaluation, published in ((kodak, [7, 6]), (EVALUATION, [0, 0])):
        write_report(evaluation, tmp_path)
        labels = [[line.get_label() for line in figure.axes[0].lines] for figure in drawn[-2:]]
        assert [sum("(published)" in label for label in one) for one in labels] == published
        assert [len(one) for one in labels] == [2 + number for number in published]
    line = drawn[0].axes[0].lines[-1]
    assert list(zip(*line.get_data(), strict=True)) == [(0.1075, 29.16), (0.1747, 30.71), (0.2721, 32.33)]
