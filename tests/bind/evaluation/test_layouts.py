"""Data sets in their published layouts, small ones of the same kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vitrail.bind.evaluation.datasets import Item
from vitrail.bind.evaluation.layouts import LAYOUTS, MissingFilesWarning, sun_rgbd_scenes
from vitrail.bind.prompts import LLVIP, NYU_D, SUN_D
from vitrail.cli.evaluate import LAYOUTS as NAMED
from vitrail.errors import FileError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_knows_them():
    assert tuple(sorted(LAYOUTS)) == NAMED  # written twice, since help must not load torch


def test_esc50(tmp_path):
    header = "filename,fold,target,category,esc10,src_file,take"
    rows = ["1-100032-A.wav,1,0,dog,True,100032,A", "2-7-B.wav,2,17,pouring_water,False,7,B"]
    write(tmp_path / "meta/esc50.csv", "\n".join([header, *rows]))
    for name in ("1-100032-A", "2-7-B"):
        write(tmp_path / f"audio/{name}.wav")
    data = LAYOUTS["esc50"](tmp_path)
    assert data.sense == "audio" and data.classes == {"dog": ("dog",), "pouring_water": ("pouring water",)}
    assert data.items[1] == Item(tmp_path / "audio/2-7-B.wav", ("pouring_water",), fold="2")
    assert [item.path.name for item in LAYOUTS["esc10"](tmp_path).items] == ["1-100032-A.wav"]
    (tmp_path / "audio/2-7-B.wav").unlink()
    with pytest.warns(MissingFilesWarning, match="1 of the 2 files"):
        assert len(LAYOUTS["esc50"](tmp_path).items) == 1


def test_esc10_as_published_alone(tmp_path):
    write(tmp_path / "001 - Dog bark/1-100032-A.ogg")
    write(tmp_path / "003 - Sea waves/5-2-A.ogg")
    data = LAYOUTS["esc10"](tmp_path)
    assert data.classes == {"dog bark": ("dog bark",), "sea waves": ("sea waves",)}
    assert [(item.labels, item.fold) for item in data.items] == [(("dog bark",), "1"), (("sea waves",), "5")]
    write(tmp_path / "004/x.ogg")
    with pytest.raises(FileError, match="is not of ESC-10"):
        LAYOUTS["esc10"](tmp_path)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the real data are not here")
def test_esc10_itself():
    data = LAYOUTS["esc10"](SHARED / "esc10")
    assert len(data.items) == 400 and len(data.classes) == 10 and "fire crackling" in data.classes
    folds = [item.fold for item in data.items]
    assert {fold: folds.count(fold) for fold in "12345"} == dict.fromkeys("12345", 80)


def test_vggsound(tmp_path):
    rows = ["-0jeONf82dE,21,horse clip-clop,test", '-a,5,"people eating, crisps",train', "b,100,skiing,test"]
    write(tmp_path / "vggsound.csv", "\n".join(rows))
    write(tmp_path / "clips/-0jeONf82dE_000021.mp4")
    write(tmp_path.with_name("elsewhere") / "b_000100.wav")
    (tmp_path / "clips/link").symlink_to(tmp_path.with_name("elsewhere"))
    data = LAYOUTS["vggsound"](tmp_path)
    assert list(data.classes) == ["horse clip-clop", "people eating, crisps", "skiing"]  # of both parts
    assert [(item.path.name, item.labels) for item in data.items] == [
        ("-0jeONf82dE_000021.mp4", ("horse clip-clop",)),
        ("b_000100.wav", ("skiing",)),
    ]
    write(tmp_path / "vggsound.csv", "id,label\na,b")
    with pytest.raises(FileError, match="is not VGGSound's"):
        LAYOUTS["vggsound"](tmp_path)


def test_audiocaps(tmp_path):
    rows = ["audiocap_id,youtube_id,start_time,caption", "1,ab,30,A dog", '2,ab,30,"Dog, barks"', "3,cd,0,Rain"]
    write(tmp_path / "test.csv", "\n".join(rows))
    write(tmp_path / "wavs/ab_30.wav")
    write(tmp_path / "wavs/Ycd.flac")
    data = LAYOUTS["audiocaps"](tmp_path)
    assert data.classes is None and data.partner == "text"
    assert data.items == (
        Item(tmp_path / "wavs/ab_30.wav", matches=("A dog", "Dog, barks")),
        Item(tmp_path / "wavs/Ycd.flac", matches=("Rain",)),
    )


def test_clotho(tmp_path):
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    write(tmp_path / "clotho_captions_evaluation.csv", f"{header}\nRain on a roof.wav,a,b,c,d,e\n")
    write(tmp_path / "evaluation/Rain on a roof.wav")
    (item,) = LAYOUTS["clotho"](tmp_path).items
    assert item == Item(tmp_path / "evaluation/Rain on a roof.wav", matches=("a", "b", "c", "d", "e"))


def test_msrvtt(tmp_path):
    about = {
        "videos": [{"video_id": "video1", "split": "test"}, {"video_id": "video0", "split": "train"}],
        "sentences": [{"video_id": f"video{n % 2}", "caption": f"caption {n}", "sen_id": n} for n in range(4)],
    }
    write(tmp_path / "MSRVTT_data.json", json.dumps(about))
    for number in (0, 1, 7010):
        write(tmp_path / f"videos/all/video{number}.mp4")
    data = LAYOUTS["msrvtt"](tmp_path)
    assert data.sense == "image"
    assert data.items == (Item(tmp_path / "videos/all/video1.mp4", matches=("caption 1", "caption 3")),)
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr7010,video7010,a cook\n")
    assert LAYOUTS["msrvtt"](tmp_path).items == (Item(tmp_path / "videos/all/video7010.mp4", matches=("a cook",)),)


def scene(folder, label, name="depth_bfx", focal_length=529.5):
    write(folder / "scene.txt", label)
    write(folder / "intrinsics.txt", f"{focal_length} 0 365 0 {focal_length} 265 0 0 1 ")
    write(folder / name / "0001.png")


def test_sun_rgbd(tmp_path):
    names = ["kv2/kinect2data/0001", "xtion/sun3d/a/0002", "kv1/b/0003"]
    for name, label in zip(names, ("dining_area", "living_room", "idk"), strict=True):
        scene(tmp_path / "SUNRGBD" / name, label, focal_length=570.25)
    write(tmp_path / "SUNRGBD/kv2/kinect2data/0001/depth/0001.png")
    cells = np.empty((1, 3), dtype=object)
    cells[0] = [f"/n/fs/sun3d/data/SUNRGBD/{name}" for name in names]
    (tmp_path / "SUNRGBDtoolbox/traintestSUNRGBD").mkdir(parents=True)
    splits = {"alltest": cells, "alltrain": cells[:, 2:]}
    savemat(tmp_path / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat", splits)
    assert [item.labels for item in sun_rgbd_scenes(tmp_path, "alltrain")] == [("idk",)]
    data = LAYOUTS["sun_rgbd"](tmp_path)
    assert data.sense == "depth" and data.classes == SUN_D
    assert [item.labels for item in data.items] == [("dining area",), ("living room",)]
    assert data.items[0].path == tmp_path / "SUNRGBD" / names[0] / "depth_bfx/0001.png"
    assert data.items[1].settings["depth"] == {"encoding": "sunrgbd", "sensor": "xtion", "focal_length": 570.25}
    (tmp_path / "SUNRGBD" / names[0] / "scene.txt").unlink()
    with pytest.raises(FileError, match=r"has no intrinsics\.txt and scene.txt"):
        LAYOUTS["sun_rgbd"](tmp_path)


def test_nyu_d(tmp_path):
    for number, label in ((1, "home_office"), (2, "kitchen"), (1449, "student_lounge")):
        scene(tmp_path / f"NYUdata/NYU{number:04}", label, name="depth")
    savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[1], [1449]]), "trainNdxs": np.array([[2]])})
    data = LAYOUTS["nyu_d"](tmp_path)
    assert data.classes == NYU_D and [item.labels for item in data.items] == [("home office",), ("other",)]
    assert data.items[0].settings["depth"]["sensor"] == "kv1"


def test_llvip(tmp_path):
    (tmp_path / "infrared/test").mkdir(parents=True)
    Image.new("L", (1280, 1024)).save(tmp_path / "infrared/test/190001.jpg")
    boxes = [(100, 200, 160, 380), (1270, 1000, 1300, 1050), (500, 500, 500, 600)]
    parts = "".join(
        "<object><name>person</name><bndbox>"
        f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for left, top, right, bottom in boxes
    )
    write(tmp_path / "Annotations/190001.xml", f"<annotation>{parts}</annotation>")
    data = LAYOUTS["llvip"](tmp_path)
    assert data.sense == "thermal" and data.classes == LLVIP
    people, background = (
        [item.box for item in data.items if item.labels == (name,)] for name in ("person", "background")
    )
    assert people == [(100, 200, 160, 380), (1270, 1000, 1280, 1024)]
    assert [(r - left, b - top) for left, top, r, b in background] == [(60, 180), (10, 24)]
    for left, top, right, bottom in background:
        assert 0 <= left < right <= 1280 and 0 <= top < bottom <= 1024
        assert all(left >= r or le >= right or top >= b or t >= bottom for le, t, r, b in people)
    assert LAYOUTS["llvip"](tmp_path) == data
    write(tmp_path / "Annotations/190001.xml", "<annotation>")
    with pytest.raises(FileError, match="is no annotation of LLVIP"):
        LAYOUTS["llvip"](tmp_path)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_wrong_folder_is_refused_in_one_sentence(name, tmp_path):
    with pytest.raises(FileError) as raised:
        LAYOUTS[name](tmp_path)
    assert str(raised.value).count(". ") == 0 and str(tmp_path) in str(raised.value)
    with pytest.raises(FileError):
        LAYOUTS[name](tmp_path / "nothing")
