"""An evaluation of codecs as files of numbers, as plots and as a table in Markdown."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from vitrail.compress.evaluation.evaluate import Evaluation, Measurement, Summary, bd_rates
from vitrail.metrics.reconstruction import to_decibels
from vitrail.plots import new_figure, plain, save_figure
from vitrail.tables import markdown_table, write_rows

REFERENCE = "jpeg"  # of BD-rates
KODAK = frozenset(f"kodim{number:02}" for number in range(1, 25))


@dataclass(frozen=True)
class PublishedPoint:
    """One point of a curve that others measured on the Kodak suite."""

    codec: str
    """As its authors call it."""
    bpp: float
    """Of most learned codecs without headers, as CompressAI counts."""
    psnr: float
    """dB."""
    ms_ssim: float | None
    """0..1; None: not published."""
    source: str
    """Where the point was published."""

    @property
    def ms_ssim_db(self) -> float | None:
        """-10 log10(1 - MS-SSIM)."""
        return None if self.ms_ssim is None else to_decibels(self.ms_ssim)


def published_kodak() -> list[PublishedPoint]:
    """The published points beside this file."""
    with Path(__file__).with_name("published_kodak.csv").open(newline="", encoding="utf-8") as file:
        return [
            PublishedPoint(
                row["codec"],
                float(row["bpp"]),
                float(row["psnr"]),
                float(row["ms_ssim"]) if row["ms_ssim"] else None,
                row["source"],
            )
            for row in csv.DictReader(file)
        ]


def is_kodak(evaluation: Evaluation) -> bool:
    """Whether the pictures are, by their names, the whole Kodak suite and no other."""
    paths = {Path(measurement.image) for measurement in evaluation.measurements}
    return len(paths) == len(KODAK) and {path.stem for path in paths} == KODAK


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Writes `images.csv`, `means.csv`, `psnr.png` and `ms_ssim.png` into a folder.

    On the Kodak suite the published curves are in the plots.

    Raises:
        VitrailError: a file cannot be written, or matplotlib is not installed.
    """
    write_rows(
        folder / "images.csv", [field.name for field in fields(Measurement)], map(astuple, evaluation.measurements)
    )
    header = [*(field.name for field in fields(Summary)), "features"]
    write_rows(folder / "means.csv", header, ([*astuple(row), evaluation.features] for row in evaluation.summaries))
    published = published_kodak() if is_kodak(evaluation) else []
    _plot(evaluation.summaries, published, "psnr", "PSNR (dB)", folder / "psnr.png")
    _plot(evaluation.summaries, published, "ms_ssim_db", "MS-SSIM (dB)", folder / "ms_ssim.png")


def _plot(
    summaries: Sequence[Summary], published: Sequence[PublishedPoint], measure: str, label: str, path: Path
) -> None:
    """Draws a measure against the rate, one curve a codec, the published ones dashed."""
    figure = new_figure(7, 5)
    axis = figure.subplots()
    curves: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for rows, theirs in ((summaries, False), (published, True)):
        for row in rows:
            if (value := getattr(row, measure)) is not None:
                curves.setdefault((row.codec, theirs), []).append((row.bpp, value))
    for number, ((codec, theirs), points) in enumerate(curves.items()):
        style = {"linestyle": "--", "marker": ".", "linewidth": 1} if theirs else {"marker": "o"}
        name = f"{codec} (published)" if theirs else codec
        colour = f"C{number % 10}" if number < 10 else f"{0.2 + 0.06 * (number % 10)}"
        axis.plot(*zip(*sorted(points), strict=True), label=plain(name), color=colour, **style)
    axis.set_xscale("log")
    axis.set_xlabel("bits per pixel")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3, which="both")
    if curves:
        axis.legend(fontsize=8)
    save_figure(figure, path)


def as_markdown(evaluation: Evaluation) -> str:
    """The means as a table, then BD-rates against JPEG where it took part, then which network made the features."""
    measured = evaluation.features is not None
    header = ["codec", "quality", "bpp", "PSNR (dB)", "MS-SSIM", "MS-SSIM (dB)", *(["FID", "KID"] if measured else [])]
    rows = []
    for row in map(asdict, evaluation.summaries):
        cells = [row["codec"], str(row["quality"]), f"{row['bpp']:.4f}", f"{row['psnr']:.2f}"]
        cells += ["—" if row["ms_ssim"] is None else f"{row['ms_ssim']:.4f}"]
        cells += ["—" if row["ms_ssim"] is None else f"{row['ms_ssim_db']:.2f}"]
        rows.append([*cells, *([f"{row['fid']:.3f}", f"{row['kid']:.2e}"] if measured else [])])
    parts = [markdown_table(header, rows)]
    if any(summary.codec == REFERENCE for summary in evaluation.summaries):
        deltas = bd_rates(evaluation.summaries, REFERENCE)
        cells = [[codec, *(_percent(delta) for delta in pair)] for codec, pair in deltas.items()]
        parts.append(markdown_table(["BD-rate against JPEG", "by PSNR", "by MS-SSIM (dB)"], cells))
    if measured:
        parts.append(f"FID and KID compare patches of 256 x 256 pixels by the features of {evaluation.features}.\n")
    return "\n".join(parts)


def _percent(delta: float | None) -> str:
    return "no overlap" if delta is None else f"{delta:+.1f} %"
