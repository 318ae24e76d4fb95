"""`vitrail compress` and `decompress`: pictures to few bytes, or a text, and back."""

import argparse
import codecs
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.errands import Errand, Outcome, attempt, expand, outcomes, plan
from vitrail.cli.inputs import add_device, device, positive, progress
from vitrail.errors import FileError, VitrailError

if TYPE_CHECKING:
    from PIL import Image

    from vitrail.compress import Codec, Report, Scheme

SUFFIX, TEXT_SUFFIX = ".vtr", ".txt"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_ORDERS = ("quincunx", "marginal", "raster", "confidence_linear", "confidence_doubling")
_OF_WRITING = ("output", "quality", "text", "background", "order", "stages", "force")
_LARGEST_FILE = 2**26  # bytes; no compressed picture comes near it

INPUTS_HELP = "files, folders, quoted patterns, or - for one on standard input"
OUTPUT_HELP = "a file, a folder where there are several inputs, or - for standard output (default: beside the input)"


def add_verbs(verbs: Any) -> None:
    """Adds the verbs of this file to the command line."""
    compress = verbs.add_parser("compress", help="make pictures very small, with the bundled codec or one of yours")
    compress.add_argument("inputs", nargs="+", metavar="PICTURE", help=INPUTS_HELP)
    _add_common(compress)
    compress.add_argument(
        "--quality",
        type=positive,
        metavar="Q",
        help="1 is the smallest; each codec says how far it goes (default: all)",
    )
    compress.add_argument("--text", action="store_true", help="write a text instead, such as a tweet can hold")
    compress.add_argument("--inspect", action="store_true", help="say what is in compressed pictures; writes nothing")
    compress.add_argument("--json", action="store_true", help="with --inspect: one JSON object a file")
    compress.add_argument("--background", default="white", metavar="COLOUR", help="behind transparent parts")
    compress.add_argument("--order", choices=_ORDERS, default="quincunx", help="in which the picture is sent")
    compress.add_argument("--stages", type=positive, metavar="S", help="parts that it is sent in (default: 5)")
    compress.set_defaults(run=run_compress, unsaid={name: compress.get_default(name) for name in _OF_WRITING})

    decompress = verbs.add_parser("decompress", help="get compressed pictures back")
    decompress.add_argument("inputs", nargs="+", metavar="FILE", help=INPUTS_HELP)
    _add_common(decompress)
    decompress.add_argument("--stages", type=positive, metavar="K", help="decode the first K stages, guess the rest")
    decompress.add_argument("--format", choices=("png", "jpg", "webp"), default="png", help="where OUT does not say it")
    decompress.set_defaults(run=run_decompress)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help=OUTPUT_HELP)
    parser.add_argument("--model", metavar="MODEL", help="a codec's file or run (default: the bundled one)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="files at once (default: 1)")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    add_device(parser)


@dataclass(frozen=True)
class Compression:
    """What `vitrail compress` does to one picture."""

    quality: int | None
    scheme: "Scheme"
    text: bool
    background: tuple[int, int, int]

    def check(self, codec: "Codec") -> None:
        """Refuses at once what no picture could be compressed with."""
        codec.check_quality(self.quality)

    def __call__(self, codec: "Codec", errand: Errand) -> Outcome:
        """Reads, compresses, writes."""
        from vitrail.compress.codec import MAX_PIXELS
        from vitrail.compress.coding.text import TWEET, to_text
        from vitrail.data.corrupt import CorruptSample
        from vitrail.data.images import read_picture

        source = BytesIO(sys.stdin.buffer.read()) if errand.source is None else errand.source
        try:
            picture = read_picture(source, name=errand.name, most=MAX_PIXELS, background=self.background)
        except CorruptSample as error:
            raise FileError(f"Cannot read {errand.name}: {error.reason}; mend it or leave it out.") from None
        data = codec.compress(picture.image, self.quality, self.scheme)
        notes = [f"{errand.name}: {note}" for note in picture.notes]
        size = f"{len(data):,} bytes"
        written = data
        if self.text:
            text = to_text(data)
            written, size = f"{text}\n".encode(), f"{len(text)} characters"
            if len(text) > TWEET:
                hint = "lower --quality, or make the picture smaller"
                notes.append(f"{errand.name}: {len(text)} characters are more than the {TWEET} of a tweet; {hint}")
        rate = 8 * len(data) / (picture.image.width * picture.image.height)
        return _deliver(errand, written, f"{size}  {rate:.3f} bits a pixel", notes)


@dataclass(frozen=True)
class Decompression:
    """What `vitrail decompress` does to one file."""

    stages: int | None
    format: str

    def check(self, codec: "Codec") -> None:
        """Every codec decompresses with every option."""

    def __call__(self, codec: "Codec", errand: Errand) -> Outcome:
        """Reads, decompresses, writes."""
        from vitrail.compress import DamageWarning

        decoded = codec.decode(_read_compressed(errand), self.stages)
        image, notes, status = decoded.image, [], 0
        if decoded.damage is not None:
            notes, status = [f"{errand.name}: {decoded.damage}"], DamageWarning.exit_code
        suffix = errand.target.suffix.lower() if errand.target else f".{self.format}"
        said = f"{image.width} x {image.height} pixels"
        if decoded.stages < decoded.total_stages:
            said += f", {decoded.stages} of {decoded.total_stages} stages"
        return _deliver(errand, _encoded(errand, image, suffix), said, notes, status)


def _deliver(errand: Errand, data: bytes, said: str, notes: Sequence[str], status: int = 0) -> Outcome:
    if errand.target is None:
        return Outcome(notes=tuple(notes), data=data, status=status)
    from vitrail.files import atomic_path

    with atomic_path(errand.target) as temporary:
        temporary.write_bytes(data)
    return Outcome(f"{errand.name} -> {errand.target}  {said}", tuple(notes), status=status)


def _encoded(errand: Errand, image: "Image.Image", suffix: str) -> bytes:
    buffer = BytesIO()
    try:
        image.save(buffer, _FORMATS[suffix], **({} if suffix == ".png" else {"quality": 95}))
    except (OSError, ValueError) as error:  # WebP has sides of at most 16,383 pixels
        raise FileError(f"The picture in {errand.name} cannot be written as {suffix} ({error}); take .png.") from None
    return buffer.getvalue()


def _read_compressed(errand: Errand) -> bytes:
    """The bytes of a compressed picture, whether the file holds them or their text.

    Raises:
        FileError: the file cannot be read, or is too large to be one.
    """
    from vitrail.compress.coding.text import from_text, is_text

    try:
        if errand.source is None:
            data = sys.stdin.buffer.read(_LARGEST_FILE + 1)
        else:
            with errand.source.open("rb") as file:
                data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise FileError(f"Cannot read {errand.name}: {error.strerror}; check its path and its rights.") from None
    if len(data) > _LARGEST_FILE:
        raise FileError(f"{errand.name} is too large for a compressed picture; check that it is the right file.")
    text = _as_utf8(data)
    # What is no UTF-8 is named like any other wrong character; half a character at the end is left out.
    return from_text(codecs.getincrementaldecoder("utf-8")("replace").decode(text)) if is_text(text) else data


def _as_utf8(data: bytes) -> bytes:
    """Without the mark that editors put before a text, and from UTF-16, which some shells write."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="ignore").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def run_compress(arguments: argparse.Namespace) -> int:
    """`vitrail compress`; the status of the one that failed, 1 when several failed differently."""
    if arguments.inspect:
        return _inspect(arguments)
    if arguments.json:
        raise VitrailError("--json is for --inspect; leave it out, or add --inspect.")
    from PIL import ImageColor

    from vitrail.compress import Scheme

    try:
        background = ImageColor.getrgb(arguments.background)[:3]
    except ValueError:
        raise VitrailError(
            f"There is no colour {arguments.background}; name one (white, black, ...) or write #rrggbb."
        ) from None
    if arguments.stages and arguments.order in ("marginal", "raster"):
        raise VitrailError(f"--order {arguments.order} has no choice of --stages; leave out one of the two.")
    scheme = Scheme(arguments.order, arguments.stages or 5)
    work = Compression(arguments.quality, scheme, arguments.text, background)
    suffix = TEXT_SUFFIX if arguments.text else SUFFIX
    return _run(plan(arguments, _pictures, suffix), work, arguments, "Compressing")


def run_decompress(arguments: argparse.Namespace) -> int:
    """`vitrail decompress`; status 7 when a damaged file was shown in part, else as `run_compress`."""
    errands = plan(arguments, _compressed, f".{arguments.format}")
    for errand in errands:
        if errand.target and errand.target.suffix.lower() not in _FORMATS:
            raise VitrailError(f"Cannot write {errand.target}: its name must end in {', '.join(_FORMATS)}.")
    return _run(errands, Decompression(arguments.stages, arguments.format), arguments, "Decompressing")


def _pictures(folder: Path) -> list[Path]:
    from vitrail.data.images import list_images

    return list_images(folder, recursive=True)


def _compressed(folder: Path) -> list[Path]:
    from vitrail.data.images import walk

    files = (path for path in map(folder.joinpath, walk(folder)) if path.is_file())
    suffixes = {path: path.suffix.lower() for path in files}
    return [path for path, end in suffixes.items() if end == SUFFIX or (end == TEXT_SUFFIX and _holds_text(path))]


def _holds_text(path: Path) -> bool:
    """Whether a text file is a compressed picture rather than anything else."""
    from vitrail.compress.coding.text import is_text

    try:
        with path.open("rb") as file:
            return is_text(_as_utf8(file.read(4096)))
    except OSError:
        return False


def _run(
    errands: Sequence[Errand], work: "Compression | Decompression", arguments: argparse.Namespace, verb: str
) -> int:
    jobs = min(arguments.jobs, len(errands))
    codec = _load(arguments.model, arguments.device if jobs == 1 else "cpu")
    work.check(codec)  # what is wrong with the model and the options is said once
    take_codec = partial(_load, arguments.model, arguments.device) if jobs > 1 else lambda: codec
    statuses = []
    with outcomes(errands, work, take_codec, jobs) as results, progress() as bar:
        for outcome in bar.track(results, total=len(errands), description=verb):
            for note in outcome.notes:
                print(f"vitrail: {note}", file=sys.stderr)
            if outcome.data is not None:
                sys.stdout.buffer.write(outcome.data)
            elif outcome.said:
                print(outcome.said, flush=True)
            statuses.append(outcome.status)
    failed = [status for status in statuses if status]
    if len(statuses) > 1 and failed:
        print(f"vitrail: {len(failed)} of {len(statuses)} files were not done as they should be", file=sys.stderr)
    return failed[0] if len(set(failed)) == 1 else min(len(failed), 1)


def _load(model: str | None, device_name: str) -> "Codec":
    from vitrail.compress import Codec

    return Codec.load(model, device(device_name))


def _inspect(arguments: argparse.Namespace) -> int:
    for name, default in arguments.unsaid.items():
        if getattr(arguments, name) != default:
            raise VitrailError(f"--{name} is of no use to --inspect, which writes nothing; leave out one of the two.")
    codec = _load(arguments.model, "cpu")
    found = [item for name in arguments.inputs for item in expand(name, _compressed)]
    if not found:
        raise FileError(f"There is no {SUFFIX} file in {', '.join(arguments.inputs)}; name one.")
    work = partial(_look, as_json=arguments.json)
    statuses = []
    for source, _ in found:
        outcome = attempt(codec, work, Errand(source, None))
        for note in outcome.notes:
            print(f"vitrail: {note}", file=sys.stderr)
        if outcome.said:
            print(outcome.said, flush=True)
        statuses.append(outcome.status)
    failed = {status for status in statuses if status}
    return failed.pop() if len(failed) == 1 else min(len(failed), 1)


def _look(codec: "Codec", errand: Errand, as_json: bool) -> Outcome:
    from vitrail.compress import DamageWarning

    report = codec.inspect(_read_compressed(errand))
    status = DamageWarning.exit_code if report.damage else 0
    notes = (f"{errand.name}: {report.damage}",) if report.damage else ()
    said = json.dumps(_as_json(codec, errand, report)) if as_json else _as_text(codec, errand, report)
    return Outcome(said, notes, status=status)


def _as_json(codec: "Codec", errand: Errand, report: "Report") -> dict[str, Any]:
    return {
        "path": errand.name,
        "model": codec.name,
        "width": report.header.width,
        "height": report.header.height,
        "quality": report.header.quality,
        "order": report.header.scheme.kind,
        "bytes": report.size,
        "bits_per_pixel": report.bits_per_pixel,
        "total_stages": report.total_stages,
        "stages": [{"positions": stage.positions, "bytes": stage.bits / 8} for stage in report.stages],
        "damage": report.damage,
    }


def _as_text(codec: "Codec", errand: Errand, report: "Report") -> str:
    header = report.header
    lines = [
        f"{errand.name}: {header.width} x {header.height} pixels, {report.size:,} bytes, "
        f"{report.bits_per_pixel:.3f} bits a pixel, quality {header.quality} of {codec.name}, {header.scheme.kind}"
    ]
    lines += [
        f"  stage {number} of {report.total_stages}: {stage.positions:,} positions, {stage.bits / 8:,.1f} bytes"
        for number, stage in enumerate(report.stages, start=1)
    ]
    return "\n".join(lines)
