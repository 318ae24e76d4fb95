"""Data sets in the layouts that they were published in, as the thesis evaluates on them (Section 6.4.6)."""

import csv
import json
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from vitrail.bind.evaluation.datasets import EvaluationSet, Item, class_folders, labelled
from vitrail.bind.modalities.audio import Audio
from vitrail.bind.prompts import LLVIP, NYU_D, SUN_D
from vitrail.data.images import image_size, natural_key, walk
from vitrail.data.video import SUFFIXES
from vitrail.errors import FileError, VitrailError
from vitrail.tables import is_whole

_TRIES = 100  # to place a box of the background


class MissingFilesWarning(UserWarning):
    """Some files that a data set's lists name are not there, as of videos that the web has lost."""


def esc50(folder: str | Path) -> EvaluationSet:
    """ESC-50: `meta/esc50.csv` (filename, fold, target, category, ...) and `audio/`; 50 classes, called as categories
    are, in five folds of 400 sounds of 5 s."""
    rows = _table(Path(folder) / "meta" / "esc50.csv", "filename", "fold", "category")
    return _esc(Path(folder), rows)


def esc10(folder: str | Path) -> EvaluationSet:
    """ESC-10: ESC-50's sounds of ten classes, where `esc10` in its `meta/esc50.csv` is True; or as it was published
    alone, folders such as `001 - Dog bark`, the fold being what file names begin with (`1-100032-A.ogg`)."""
    folder = Path(folder)
    if (folder / "meta" / "esc50.csv").exists():
        rows = _table(folder / "meta" / "esc50.csv", "filename", "fold", "category", "esc10")
        return _esc(folder, [row for row in rows if row["esc10"] == "True"])
    items = []
    for item in class_folders(_folder(folder, "ESC-10"), "audio").items:
        title = re.fullmatch(r"\d+ - (.+)", item.labels[0])
        fold = re.match(r"(\d)-", item.path.name)
        if title is None or fold is None:
            raise FileError(f"{item.path} is not of ESC-10, as 001 - Dog bark/1-100032-A.ogg is; give its folder.")
        items.append(Item(item.path, (title[1].lower(),), fold=fold[1]))
    return labelled(items, "audio", None, folder)


def vggsound(folder: str | Path) -> EvaluationSet:
    """VGGSound, its test part: `vggsound.csv` without a header (YouTube id, start in seconds, label, split), and clips
    of 10 s anywhere below, `ID_SECONDS` with six digits (`-0jeONf82dE_000021.mp4`); classes as labelled, 309 in all."""
    table = Path(folder) / "vggsound.csv"
    rows = [row for row in _lines(table) if row]
    if any(len(row) != 4 or not is_whole(row[1]) for row in rows):
        raise FileError(f"{table} is not VGGSound's; it must have rows such as -0jeONf82dE,21,horse clip-clop,test.")
    clips = _by_stem(Path(folder))
    classes = {label: (label,) for label in sorted({row[2] for row in rows}, key=natural_key)}
    tested = [row for row in rows if row[3] == "test"]
    items = [
        Item(clips[name], (label,))
        for video, start, label, _ in tested
        if (name := f"{video}_{int(start):06}") in clips
    ]
    return labelled(_present(items, len(tested), table), "audio", classes, table)


def audiocaps(folder: str | Path) -> EvaluationSet:
    """AudioCaps, its test part: `test.csv` (audiocap_id, youtube_id, start_time, caption), five rows a clip, and clips
    of 10 s anywhere below, called `ID_START`, `ID` or `YID`. The thesis's 796 clips, without those of VGGSound, are
    those of a `test.csv` with the rows of these."""
    table = Path(folder) / "test.csv"
    clips = _by_stem(Path(folder))
    captions: dict[tuple[str, str], list[str]] = {}
    for row in _table(table, "youtube_id", "start_time", "caption"):
        captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row["caption"])
    items = []
    for (video, start), texts in captions.items():
        names = (f"{video}_{start}", video, f"Y{video}")
        items += [Item(clips[name], matches=tuple(texts)) for name in names if name in clips][:1]
    return EvaluationSet(_present(items, len(captions), table), "audio")


def clotho(folder: str | Path) -> EvaluationSet:
    """Clotho, its evaluation part: `clotho_captions_evaluation.csv` (file_name, caption_1 to caption_5) and the sounds
    in `evaluation/`, 1045 of them; each caption is a query of its own."""
    table = Path(folder) / "clotho_captions_evaluation.csv"
    columns = [f"caption_{number}" for number in range(1, 6)]
    rows = _table(table, "file_name", *columns)
    paths = [(Path(folder) / "evaluation" / row["file_name"].strip(), row) for row in rows]
    items = [Item(path, matches=tuple(row[name] for name in columns)) for path, row in paths if path.exists()]
    return EvaluationSet(_present(items, len(rows), table), "audio")


def msrvtt(folder: str | Path) -> EvaluationSet:
    """MSR-VTT, its videos (`video7010.mp4`, anywhere below): the 1k-A test, `MSRVTT_JSFUSION_test.csv` (video_id,
    sentence), a sentence for each of 1000; without that file the whole test, 2990 videos with twenty each, by
    `MSRVTT_data.json` or `test_videodatainfo.json` ("videos" with their "split", "sentences")."""
    folder = _folder(Path(folder), "MSR-VTT")
    captions: dict[str, list[str]] = {}
    table = folder / "MSRVTT_JSFUSION_test.csv"
    if table.exists():
        for row in _table(table, "video_id", "sentence"):
            captions.setdefault(row["video_id"], []).append(row["sentence"])
    else:
        names = ("MSRVTT_data.json", "test_videodatainfo.json")
        table = next((folder / name for name in names if (folder / name).exists()), table)
        about = _json(table)
        try:
            captions = {video["video_id"]: [] for video in about["videos"] if video["split"] == "test"}
            for sentence in about["sentences"]:
                if sentence["video_id"] in captions:
                    captions[sentence["video_id"]].append(sentence["caption"])
        except (KeyError, TypeError):
            raise FileError(f'{table} is not MSR-VTT\'s; it must have "videos" and "sentences".') from None
    clips = _by_stem(folder)
    items = [Item(clips[video], matches=tuple(texts)) for video, texts in captions.items() if video in clips]
    return EvaluationSet(_present(items, len(captions), table), "image")


def sun_rgbd(folder: str | Path) -> EvaluationSet:
    """SUN RGB-D, the depth of its test part: scenes in `SUNRGBD/`, the list in
    `SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat`. A scene has `depth_bfx/*.png` (in-filled), `intrinsics.txt` (the
    focal length) and `scene.txt`; the first folder of its path is its sensor. The 19 scenes that have pictures enough
    are the classes."""
    kept = [item for item in sun_rgbd_scenes(Path(folder), "alltest") if item.labels[0] in SUN_D]
    return labelled(kept, "depth", SUN_D, Path(folder))


def sun_rgbd_scenes(folder: Path, part: Literal["alltrain", "alltest"]) -> tuple[Item, ...]:
    """The depth of a part of SUN RGB-D, all scenes: see `sun_rgbd`.

    Raises:
        FileError: the folder holds no SUN RGB-D.
    """
    table = folder / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat"
    cells = _matlab(table, part).ravel()
    names = [str(cell.item()).split("SUNRGBD/")[-1].strip("/") for cell in cells]
    scenes = [folder / "SUNRGBD" / name for name in names]
    items = [_scene(scene, scene.relative_to(folder / "SUNRGBD").parts[0]) for scene in scenes if scene.is_dir()]
    return _present(items, len(names), table)


def nyu_d(folder: str | Path) -> EvaluationSet:
    """NYU-v2, the depth of its test part: `NYUdata/NYU0001/` to `NYU1449/`, as SUN RGB-D has them (`kv1/NYUdata`), and
    NYU's `splits.mat`, whose `testNdxs` are numbers of these. Nine scenes are classes, all others the tenth."""
    folder = Path(folder)
    numbers = [int(number) for number in _matlab(folder / "splits.mat", "testNdxs").ravel()]
    scenes = [folder / "NYUdata" / f"NYU{number:04}" for number in numbers]
    items = _present([_scene(one, "kv1") for one in scenes if one.is_dir()], len(numbers), folder / "splits.mat")
    named = [Item(one.path, _nyu_class(one.labels), settings=one.settings) for one in items]
    return labelled(named, "depth", NYU_D, folder)


def llvip(folder: str | Path, seed: int = 0) -> EvaluationSet:
    """LLVIP, the heat of its test part: `infrared/test/*.jpg` and `Annotations/*.xml` (Pascal VOC), of whose boxes
    those of people are the one class. For each, a box of the same size where there is nobody, placed at random, is the
    other; where a hundred tries find no such place, there is none."""
    folder = Path(folder)
    generator = torch.Generator().manual_seed(seed)
    items = []
    pictures = sorted((folder / "infrared" / "test").glob("*.jpg"))
    if not pictures:
        raise FileError(f"There is no picture in {folder / 'infrared' / 'test'}; give the folder of LLVIP.")
    for picture in pictures:
        height, width = image_size(picture)
        people = _people(folder / "Annotations" / f"{picture.stem}.xml", width, height)
        for left, top, right, bottom in people:
            items.append(Item(picture, ("person",), box=(left, top, right, bottom)))
            wide, high = right - left, bottom - top
            for _ in range(_TRIES):
                across, down = torch.rand(2, generator=generator).tolist()
                x, y = int(across * (width - wide + 1)), int(down * (height - high + 1))
                if not any(x < r and y < b and x + wide > le and y + high > t for le, t, r, b in people):
                    items.append(Item(picture, ("background",), box=(x, y, x + wide, y + high)))
                    break
    return labelled(items, "thermal", LLVIP, folder)


LAYOUTS: dict[str, Callable[[str | Path], EvaluationSet]] = {
    "audiocaps": audiocaps,
    "clotho": clotho,
    "esc10": esc10,
    "esc50": esc50,
    "llvip": llvip,
    "msrvtt": msrvtt,
    "nyu_d": nyu_d,
    "sun_rgbd": sun_rgbd,
    "vggsound": vggsound,
}
"""By name."""


def open_layout(name: str, folder: str | Path) -> EvaluationSet:
    """The data set called `name` in a folder.

    Raises:
        FileError: the folder is not that of the data set.
    """
    return LAYOUTS[name](folder)


def _esc(folder: Path, rows: list[dict[str, str]]) -> EvaluationSet:
    items = [Item(folder / "audio" / row["filename"], (row["category"],), fold=row["fold"]) for row in rows]
    found = [item for item in items if item.path.exists()]
    return labelled(_present(found, len(items), folder / "meta" / "esc50.csv"), "audio", None, folder)


def _scene(scene: Path, sensor: str) -> Item:
    """A scene's depth, in-filled where there is such a file."""
    pictures = [path for name in ("depth_bfx", "depth") for path in sorted((scene / name).glob("*.png"))]
    try:
        focal_length = float((scene / "intrinsics.txt").read_text().split()[0])
        label = (scene / "scene.txt").read_text().strip().replace("_", " ")
    except (OSError, ValueError, IndexError):
        raise FileError(f"{scene} has no intrinsics.txt and scene.txt of SUN RGB-D; get the data set anew.") from None
    if not pictures:
        raise FileError(f"There is no depth_bfx/*.png in {scene}; get the data set anew.")
    settings = {"encoding": "sunrgbd", "sensor": sensor, "focal_length": focal_length}
    return Item(pictures[0], (label,), settings={"depth": settings})


def _nyu_class(labels: tuple[str, ...]) -> tuple[str]:
    return (labels[0] if labels[0] in NYU_D else "other",)


def _people(annotation: Path, width: int, height: int) -> list[tuple[int, int, int, int]]:
    try:
        objects = ET.parse(annotation).getroot().iter("object")
        boxes = [
            [int(float(one.findtext(f"bndbox/{side}", ""))) for side in ("xmin", "ymin", "xmax", "ymax")]
            for one in objects
            if one.findtext("name") == "person"
        ]
    except (OSError, ET.ParseError, ValueError):
        raise FileError(f"{annotation} is no annotation of LLVIP; get the data set anew.") from None
    clipped = [(max(le, 0), max(t, 0), min(r, width), min(b, height)) for le, t, r, b in boxes]
    return [box for box in clipped if box[0] < box[2] and box[1] < box[3]]


def _present(items: Iterable[Item], expected: int, table: Path) -> tuple[Item, ...]:
    """The files that are there; a warning says how many are not."""
    found = tuple(items)
    if not found:
        raise FileError(f"None of the {expected} files that {table} names are below {table.parent}; put them there.")
    if len(found) < expected:
        missing = f"{expected - len(found)} of the {expected} files that {table} names are not there, and left out."
        warnings.warn(missing, MissingFilesWarning, stacklevel=3)
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    """Sounds and videos at any depth, by name without suffix."""
    known = Audio.suffixes | SUFFIXES
    paths = sorted(folder / name for name in walk(_folder(folder)))
    return {path.stem: path for path in paths if path.suffix.lower() in known}


def _folder(folder: Path, name: str = "the data set") -> Path:
    if not folder.is_dir():
        raise FileError(f"There is no folder {folder}; give that of {name}.")
    return folder


def _lines(table: Path) -> list[list[str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no table in UTF-8"
        raise FileError(f"Cannot read {table}: {reason}; give the folder of the data set as published.") from None


def _table(table: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a table in CSV, which has these columns."""
    header, *rows = _lines(table) or [[]]
    if missing := [name for name in columns if name not in header]:
        raise FileError(f"{table} has no column {missing[0]!r} but {', '.join(header)}; get the data set anew.")
    return [dict(zip(header, row, strict=False)) for row in rows if len(row) == len(header)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise FileError(f"Cannot read {path}: {reason}; give the folder of the data set as published.") from None


def _matlab(path: Path, name: str) -> Any:
    """A variable in a file of MATLAB's."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError:
        raise VitrailError("Files of MATLAB's need scipy; install it with: pip install scipy") from None
    try:
        return loadmat(str(path))[name]
    except (OSError, ValueError, KeyError, NotImplementedError):
        raise FileError(f"{path} does not tell {name!r}; give the folder of the data set as published.") from None
