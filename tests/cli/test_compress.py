"""`vitrail compress` and `decompress`, by a codec of a few weights in a file."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.cli.main import main
from vitrail.compress import Codec
from vitrail.compress.autoencoder import AutoencoderConfig
from vitrail.compress.coding.bitstream import Header
from vitrail.compress.coding.text import TWEET
from vitrail.compress.prior import PriorConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(
        width=16, depth=1, heads=2, factor=8, parts=3, centroids=16, part_width=4, nested=True
    ).build()
    prior = PriorConfig(width=16, depth=1, heads=2).build(3, 16)
    torch.nn.init.normal_(prior.heads.weight, std=0.5)
    path = tmp_path_factory.mktemp("codec") / "tiny.safetensors"
    Codec(autoencoder, prior, torch.randint(1, 100, (3, 16)), "tiny").save(path)
    return str(path)


@pytest.fixture
def folder(photos, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with one photo at its top and two deeper."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, source in (("in/a.png", "00"), ("in/deep/b.png", "01"), ("in/deep/c.png", "02")):
        opened(photos / "test" / "tomato" / f"{source}.webp").save(name)
    return tmp_path


def shell(*words: str, model: str) -> int:
    return main([words[0], *words[1:], "--model", model])


@pytest.fixture
def call(model):
    return lambda *words: shell(*words, model=model)


@pytest.fixture
def standard(monkeypatch):
    """Gives standard input some bytes, and takes what comes out."""

    def give(data: bytes) -> io.BytesIO:
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out, flush=lambda: None))
        return out

    return give


def opened(path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def pixels(path) -> np.ndarray:
    return np.asarray(opened(path))


def kind(path) -> str:
    with Image.open(path) as image:
        return image.format


def test_there_and_back(folder, call, model, capsys):
    assert call("compress", "in/a.png", "-o", "a.vtr", "--quality", "2") == 0
    out = capsys.readouterr().out
    size = Path("a.vtr").stat().st_size
    width, height = opened("in/a.png").size
    assert out == f"in/a.png -> a.vtr  {size:,} bytes  {8 * size / (width * height):.3f} bits a pixel\n"
    assert call("decompress", "a.vtr", "-o", "a.png") == 0
    codec = Codec.load(model)
    expected = codec.compress(opened("in/a.png"), 2)
    assert Path("a.vtr").read_bytes() == expected
    assert (pixels("a.png") == np.asarray(codec.decompress(expected))).all()


def test_names_of_outputs(folder, call):
    assert call("compress", "in/a.png") == 0
    assert call("decompress", "in/a.vtr", "-o", "here.webp") == 0
    assert kind("here.webp") == "WEBP"
    assert call("decompress", "in/a.vtr", "-o", "here.jpeg") == 0
    assert kind("here.jpeg") == "JPEG"
    assert call("compress", "in", "-o", "out") == 0
    assert sorted(str(path) for path in Path("out").rglob("*.vtr")) == ["out/a.vtr", "out/deep/b.vtr", "out/deep/c.vtr"]
    assert call("decompress", "out/**/*.vtr", "-o", "back", "--format", "jpg") == 0
    assert sorted(path.name for path in Path("back").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]


def test_several_processes_write_the_same(folder, call, capsys):
    assert call("compress", "in", "-o", "one") == 0
    said = capsys.readouterr().out
    assert call("compress", "in", "-o", "two", "--jobs", "2") == 0
    assert capsys.readouterr().out == said.replace("one/", "two/")
    for path in Path("one").rglob("*.vtr"):
        assert path.read_bytes() == Path("two", path.relative_to("one")).read_bytes()


def test_standard_input_and_output(folder, call, standard, model):
    out = standard(Path("in/a.png").read_bytes())
    assert call("compress", "-") == 0
    data = out.getvalue()
    assert data == Codec.load(model).compress(opened("in/a.png"))
    out = standard(data)
    assert call("decompress", "-", "-o", "-") == 0
    assert (pixels(io.BytesIO(out.getvalue())) == np.asarray(Codec.load(model).decompress(data))).all()


def test_text(folder, call, standard, model, capsys):
    opened("in/a.png").resize((64, 64)).save("small.png")
    assert call("compress", "small.png", "--text", "--quality", "1") == 0
    captured = capsys.readouterr()
    text = Path("small.txt").read_text(encoding="utf-8")
    assert f"{len(text) - 1} characters" in captured.out and not captured.err and len(text) <= TWEET
    wrapped = "\ufeff  " + "\r\n".join(text.strip()[place : place + 40] for place in range(0, len(text), 40)) + "\r\n"
    Path("copied.txt").write_bytes(wrapped.encode())
    expected = np.asarray(Codec.load(model).decompress(Codec.load(model).compress(opened("small.png"), 1)))
    assert call("decompress", "copied.txt", "-o", "copied.png") == 0
    assert (pixels("copied.png") == expected).all()
    out = standard(text.encode())
    assert call("decompress", "-") == 0
    assert (pixels(io.BytesIO(out.getvalue())) == expected).all()


def test_a_text_too_long_for_a_tweet_is_noted(folder, call, capsys):
    opened("in/a.png").resize((400, 400)).save("large.png")
    assert call("compress", "large.png", "--text") == 0
    error = capsys.readouterr().err
    assert "characters are more than the 280 of a tweet; lower --quality, or make the picture smaller" in error


def test_a_damaged_text_gives_what_can_be_had_or_says_what_is_wrong(folder, call, capsys):
    """However much is missing at its end."""
    opened("in/a.png").resize((64, 64)).save("small.png")
    assert call("compress", "small.png", "--text") == 0
    text = Path("small.txt").read_text(encoding="utf-8").strip()
    for kept in range(len(text) // 2, len(text) - 1):
        Path("cut.txt").write_text(text[:kept], encoding="utf-8")
        assert call("decompress", "cut.txt", "--force") == 7
    Path("cut.txt").write_bytes(text.encode()[:-1])  # in the middle of a letter
    assert call("decompress", "cut.txt", "--force") in (0, 7)
    for wrong in ("\u201c", "\u200b", "?"):
        for damaged in (wrong + text, text + wrong, text[:9] + wrong + text[9:]):
            Path("cut.txt").write_text(damaged, encoding="utf-8")
            capsys.readouterr()
            assert call("decompress", "cut.txt", "-o", "none.png") == 4
            said = f"vitrail: cut.txt: The text has {wrong!r}, which no compressed picture has; copy it anew.\n"
            assert capsys.readouterr().err == said
    Path("cut.txt").write_bytes(text.encode()[:99] + b"\xff" + text.encode()[99:])
    assert call("decompress", "cut.txt", "-o", "none.png") == 4
    assert "The text has '\ufffd', which" in capsys.readouterr().err


def test_inspect(folder, call, capsys):
    assert call("compress", "in/a.png", "-o", "a.vtr") == 0
    capsys.readouterr()
    assert call("compress", "--inspect", "--json", "a.vtr") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == Path("a.vtr").stat().st_size and report["quality"] == 3 and report["total_stages"] == 5
    width, height = opened("in/a.png").size
    assert sum(stage["positions"] for stage in report["stages"]) == -(-width // 8) * -(-height // 8)
    assert abs(sum(stage["bytes"] for stage in report["stages"]) - report["bytes"]) < 12
    assert call("compress", "--inspect", "a.vtr") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"a.vtr: {width} x {height} pixels, ") and "quality 3 of tiny, quincunx" in lines[0]
    assert len(lines) == 6 and lines[5].startswith("  stage 5 of 5: ")


def test_the_beginning_of_a_file_is_a_picture(folder, call, capsys, model):
    assert call("compress", "in/a.png", "-o", "a.vtr") == 0
    data = Path("a.vtr").read_bytes()
    Path("cut.vtr").write_bytes(data[: len(data) * 2 // 3])
    capsys.readouterr()
    assert call("decompress", "cut.vtr", "-o", "cut.png") == 7
    captured = capsys.readouterr()
    assert captured.err.startswith("vitrail: cut.vtr: Stage 5 of 5 cannot be read (the data end there)")
    assert call("decompress", "a.vtr", "-o", "four.png", "--stages", "4") == 0
    assert (pixels("cut.png") == pixels("four.png")).all()
    assert (pixels("four.png") != np.asarray(Codec.load(model).decompress(data))).any()


def test_two_files_in_one_are_the_first_and_a_note(folder, call, capsys):
    assert call("compress", "in/a.png", "-o", "a.vtr") == 0
    Path("two.vtr").write_bytes(2 * Path("a.vtr").read_bytes())
    capsys.readouterr()
    assert call("decompress", "two.vtr", "a.vtr", "-o", "out") == 7
    more = Path("a.vtr").stat().st_size
    said = f"vitrail: two.vtr: The compressed picture is whole, but the file goes on for {more:,} bytes behind its end"
    assert capsys.readouterr().err.startswith(said)
    assert (pixels("out/two.png") == pixels("out/a.png")).all()
    assert call("compress", "--inspect", "two.vtr") == 7


def test_nothing_is_lost(folder, call, capsys):
    Path("a.vtr").write_bytes(b"precious")
    for words, said in (
        (("compress", "in/a.png", "-o", "a.vtr"), "a.vtr is there already; write over it with --force"),
        (("compress", "in", "-o", "a.vtr"), "a.vtr is a file, and there are 3 inputs; name a folder."),
        (("compress", "in", "in/a.png", "-o", "out"), "in/a.png and in/a.png would both be written to out/a.vtr"),
        (("compress", "in/a.png", "-o", "in/a.png", "--force"), "would be written over itself"),
        (("compress", "in", "-o", "-"), "Standard input and output hold one file each"),
        (("compress", "-", "in/a.png"), "Standard input and output hold one file each"),
        (("decompress", "a.vtr", "-o", "a.gif"), "its name must end in .png, .jpg, .jpeg, .webp."),
    ):
        assert call(*words) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert Path("a.vtr").read_bytes() == b"precious" and not Path("out").exists()
    assert call("compress", "in/a.png", "-o", "a.vtr", "--force") == 0
    assert Path("a.vtr").read_bytes() != b"precious"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 4),
        (b"no picture at all", 4),
        (b"\xd7\x1f1234567890", 4),
        (Header(b"\0\0", 2**15, 2**15, 3).pack() + bytes(99), 4),  # claims a thousand million pixels
    ],
)
def test_hostile_files_get_one_sentence(data, status, folder, call, capsys):
    Path("bad.vtr").write_bytes(data)
    assert call("decompress", "bad.vtr", "-o", "bad.png") == status
    error = capsys.readouterr().err
    assert error.startswith("vitrail: bad.vtr: ") and error.count("\n") == 1
    assert not Path("bad.png").exists()


def test_every_kind_of_failure_has_its_status(folder, call, model, capsys):
    assert call("compress", "in/a.png", "-o", "a.vtr") == 0
    data = bytearray(Path("a.vtr").read_bytes())
    data[9] ^= 255
    Path("damaged.vtr").write_bytes(data)
    assert call("decompress", "damaged.vtr", "-o", "x.png") == 6
    data[2] ^= 255
    Path("foreign.vtr").write_bytes(data)
    assert call("decompress", "foreign.vtr", "-o", "x.png") == 5
    assert call("compress", "in/a.png", "-o", "b.vtr", "--quality", "9") == 3
    assert "tiny has no quality 9; choose 1 to 3" in capsys.readouterr().err
    assert call("decompress", "damaged.vtr", "a.vtr", "-o", "out") == 6
    assert [path.name for path in Path("out").iterdir()] == ["a.png"]
    assert "1 of 2 files were not done as they should be" in capsys.readouterr().err
    assert call("decompress", "damaged.vtr", "foreign.vtr", "-o", "out") == 1
    assert call("compress", "in/a.png", "-o", "c.vtr", "--background", "nonsense") == 1


def test_what_became_of_a_picture_is_said(folder, call, capsys):
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save("clear.png")
    assert call("compress", "clear.png", "--background", "#102030") == 0
    assert "clear.png: its transparent parts were laid over the colour #102030" in capsys.readouterr().err


def test_an_input_is_never_written_over(folder, call, capsys):
    before = Path("in/a.png").read_bytes()
    Path("also.png").symlink_to("in/a.png")
    for output in ("in/../in/a.png", "also.png"):
        assert call("compress", "in/a.png", "-o", output, "--force") == 1
        assert "in/a.png would be written over itself" in capsys.readouterr().err
    assert Path("in/a.png").read_bytes() == before


def test_a_name_that_ends_in_a_slash_is_a_folder(folder, call):
    assert call("compress", "in/a.png", "-o", "new/") == 0
    assert Path("new/a.vtr").is_file()


def test_options_are_refused_once_for_all_files(folder, call, capsys):
    assert call("compress", "in", "-o", "out", "--quality", "9", "--jobs", "2") == 3
    assert capsys.readouterr().err == "vitrail: tiny has no quality 9; choose 1 to 3.\n"
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--order", "raster", "--stages", "7"], "--order raster has no choice of --stages; leave out one of the two."),
        (
            ["--order", "marginal", "--stages", "1"],
            "--order marginal has no choice of --stages; leave out one of the two.",
        ),
        (
            ["--inspect", "-o", "x"],
            "--output is of no use to --inspect, which writes nothing; leave out one of the two.",
        ),
        (["--inspect", "--quality", "99"], "--quality is of no use to --inspect"),
        (["--inspect", "--text"], "--text is of no use to --inspect"),
        (["--inspect", "--order", "raster"], "--order is of no use to --inspect"),
    ],
)
def test_options_without_an_effect_are_refused(options, said, folder, call, capsys):
    assert call("compress", "in/a.png", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vitrail: {said}") and error.count("\n") == 1


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_done(folder, call, capsys):
    Path("in/bad.png").write_bytes(b"no picture")
    assert call("compress", "in", "-o", "out") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "vitrail: Cannot read in/bad.png: it is not an image that Pillow can read; mend it or leave it out.",
        "vitrail: 1 of 4 files were not done as they should be",
    ]
    assert len(captured.out.splitlines()) == 3


def test_folders_of_texts_come_back(folder, call):
    assert call("compress", "in", "-o", "texts", "--text") == 0
    Path("texts/readme.txt").write_text("These are pictures.")
    assert call("decompress", "texts", "-o", "back") == 0
    assert {str(path.relative_to("back")) for path in Path("back").rglob("*.png")} == {
        "a.png",
        "deep/b.png",
        "deep/c.png",
    }


def test_folders_of_files_are_searched_like_those_of_pictures(folder, call, capsys):
    assert call("compress", "in", "-o", "small") == 0
    (folder / "small" / ".hidden").mkdir()
    Path("small/.hidden/no.vtr").write_bytes(b"no picture")
    Path("small/.no.vtr").write_bytes(b"no picture")
    Path("small/deep/b.vtr").rename("small/deep/B.VTR")
    (folder / "small" / "deep" / "up").symlink_to("..")
    (folder / "small" / "linked").symlink_to("deep")
    assert call("decompress", "small", "-o", "back") == 0
    assert sorted(str(path.relative_to("back")) for path in Path("back").rglob("*.png")) == [
        "a.png",
        "deep/B.png",
        "deep/c.png",
        "linked/B.png",
        "linked/c.png",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be-with-mark"])
def test_texts_as_other_systems_write_them(encoding, folder, call):
    assert call("compress", "in/a.png", "--text", "-o", "a.txt") == 0
    text = Path("a.txt").read_text(encoding="utf-8")
    marked = ("\ufeff" + text).encode("utf-16-be") if encoding.endswith("mark") else text.encode(encoding)
    Path("other.txt").write_bytes(marked)
    assert call("decompress", "other.txt") == 0 and call("decompress", "a.txt", "-o", "a.png") == 0
    np.testing.assert_array_equal(pixels("other.png"), pixels("a.png"))


def test_a_format_that_cannot_hold_the_picture_keeps_nobody_else(folder, call, capsys):
    Image.new("RGB", (16400, 1)).save("wide.png")
    assert call("compress", "wide.png", "in/a.png", "-o", "out") == 0
    assert call("decompress", "out", "-o", "back", "--format", "webp") == 1
    error = capsys.readouterr().err
    assert "The picture in out/wide.vtr cannot be written as .webp (" in error and "); take .png." in error
    assert [path.name for path in Path("back").iterdir()] == ["a.webp"]


@pytest.fixture
def many(folder) -> Path:
    """More than workers get done before they are interfered with, however busy the machine."""
    Path("many").mkdir()
    for number in range(1000):
        Image.new("RGB", (9, 9), (number % 256, 0, 0)).save(f"many/{number}.png")
    return Path("many")


def when_workers_run(act) -> threading.Thread:
    """Calls `act` with a worker process of this one as soon as there is one."""

    def wait():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        act(workers[0])

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_is_one_sentence(many, call, capsys):
    thread = when_workers_run(lambda worker: worker.kill())
    assert call("compress", "many", "-o", "out", "--jobs", "2") == 1
    thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail: A worker process was killed, perhaps for want of memory")


def test_a_worker_killed_while_the_next_one_starts_is_one_sentence(many, call, capsys, monkeypatch):
    """The thread that watches the first looks at its workers while the second comes up."""
    start, terminate, looking = SpawnProcess.start, SpawnProcess.terminate, threading.Event()

    def start_late(process):
        first = multiprocessing.active_children()
        start(process)
        for worker in first:
            worker.kill()
            assert looking.wait(60)

    def look_long(process):
        looking.set()
        time.sleep(1)
        terminate(process)

    monkeypatch.setattr(SpawnProcess, "start", start_late)
    monkeypatch.setattr(SpawnProcess, "terminate", look_long)
    assert call("compress", "many", "-o", "out", "--jobs", "2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vitrail: A worker process was killed, perhaps for want of memory")


def test_interrupts_end_the_workers_soon(many, call, capsys, monkeypatch):
    """Also a second one, while the first is heeded."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    shutdown = ThreadPoolExecutor.shutdown

    def interrupted_shutdown(pool, **options):
        os.kill(os.getpid(), signal.SIGINT)
        shutdown(pool, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted_shutdown)

    def interrupt(worker):
        while not list(Path("out").glob("*.vtr")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = when_workers_run(interrupt)
    assert call("compress", "many", "-o", "out", "--jobs", "2") == 130
    thread.join()
    assert capsys.readouterr().err.endswith("vitrail: interrupted\n")
    assert not multiprocessing.active_children()
    assert all(path.suffix == ".vtr" and not path.name.startswith(".") for path in Path("out").iterdir())


def test_no_codec_no_traceback(folder, capsys):
    assert shell("compress", "in/a.png", model="nowhere") == 1
    error = capsys.readouterr().err
    assert error.startswith("vitrail: There is no codec nowhere; name a shipped one")
    Path("foreign.safetensors").write_bytes(os.urandom(64))
    assert shell("compress", "in/a.png", model="foreign.safetensors") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_as_a_command_of_its_own(folder, model):
    """Bytes through real pipes."""
    command = [sys.executable, "-m", "vitrail"]
    with Path("in/a.png").open("rb") as picture:
        made = subprocess.run(
            [*command, "compress", "-", "--model", model], stdin=picture, capture_output=True, check=True
        )
    back = subprocess.run(
        [*command, "decompress", "-", "--model", model], input=made.stdout, capture_output=True, check=True
    )
    assert Image.open(io.BytesIO(back.stdout)).size == opened("in/a.png").size
    assert not made.stderr and not back.stderr
