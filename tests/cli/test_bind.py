"""`vitrail bind`, with a tiny model of texts alone: what one sense does, all do."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.modalities.text import Text
from vitrail.bind.search.index import MANIFEST, Index
from vitrail.cli.main import main

TEXTS = {"a.txt": "a dog barks", "b.txt": "a cat sleeps", "deep/c.txt": "rain on a roof"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    ImageBindConfig(8, {"text": Text(width=16, depth=1, heads=2)}).build().save(path)
    return path


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    (folder / "notes.xyz").write_text("of no sense")
    (folder / ".hidden.txt").write_text("not to be found")
    return folder


@pytest.fixture
def index(model, files, tmp_path):
    folder = tmp_path / "index"
    assert main(["bind", "index", str(files), "-o", str(folder), "--model", str(model), "--device", "cpu"]) == 0
    return folder


def embedded(model, texts):
    return ImageBind.load(model).embed({"text": texts})["text"].numpy()


def test_embed_writes_a_table(model, files, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "vectors.parquet"
    assert main(["bind", "embed", str(files), "-o", str(output), "--model", str(model), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.out == f"3 vectors of 8 dimensions in {output}\n"
    assert said.err == f"vitrail: 1 files in {files} are of no known sense and left out\n"
    table = parquet.read_table(output)
    assert table.column_names == ["name", "modality", "start", "seconds", "vector"]
    assert table["name"].to_pylist() == [f"{files}/{name}" for name in TEXTS]
    assert table["modality"].to_pylist() == ["text"] * 3
    np.testing.assert_allclose(table["vector"].to_pylist(), embedded(model, list(TEXTS.values())), atol=1e-6)


def test_a_name_that_is_not_in_utf8_keeps_no_others(model, files, tmp_path, capsys):
    (files / "notes.xyz").unlink()
    (files / os.fsdecode(b"b\xff.txt")).write_text("a dog barks")
    said = r"b\udcff.txt' is not in UTF-8, as tables keep names; rename the file."
    for command in (["embed", "-o", str(tmp_path / "v.parquet")], ["index", "-o", str(tmp_path / "index")]):
        assert main(["bind", *command, str(files), "--model", str(model), "--device", "cpu"]) == 1
        found = capsys.readouterr()
        assert found.err.endswith(f"{said}\n") and found.out.split(": ")[-1].startswith("3 ")
    command = ["bind", "classify", str(files), "--labels", "dog", "cat", "--template", "{}", "--json"]
    assert main([*command, "--model", str(model), "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_advice_on_a_file_of_no_known_sense_helps(model, files, tmp_path, capsys):
    command = ["bind", "embed", str(files / "notes.xyz"), "-o", str(tmp_path / "v.parquet"), "--model", str(model)]
    assert main([*command, "--device", "cpu"]) == 1
    pattern = capsys.readouterr().err.partition("Say it by --as SENSE='")[2].partition("'")[0]
    assert main([*command, "--device", "cpu", "--as", f"text={pattern}"]) == 0


def test_an_index_is_brought_up_to_date(model, files, index, capsys):
    command = ["bind", "index", str(files), "-o", str(index), "--model", str(model), "--device", "cpu"]
    (files / "a.txt").write_text("a wolf howls")
    (files / "b.txt").unlink()
    (files / "d.txt").write_bytes(b"\xff\xfe\xff")
    capsys.readouterr()
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == f"{index}: 1 embedded, 1 unchanged, 1 forgotten, 1 that cannot be read\n"
    assert f"vitrail: Cannot read {files / 'd.txt'}: it is not text in UTF-8; mend it or leave it out.\n" in said.err


def test_a_pattern_that_fits_no_file_is_named(model, files, tmp_path, capsys):
    (files / "notes.xyz").unlink()
    patterns = ["--as", "depth=depths/*.png", "--as", "text=deep/*", "--as", "text=*"]
    advice = "patterns are compared with whole paths below the folder, or of files as they are named"
    said = f"vitrail: no file fits --as depth=depths/*.png; {advice}\n"
    for command in (["embed", "-o", str(tmp_path / "v.parquet")], ["index", "-o", str(tmp_path / "index")]):
        words = ["bind", *command, str(files), *patterns, "--model", str(model), "--device", "cpu"]
        assert main(words) == 0
        assert capsys.readouterr().err == said


def test_an_index_is_of_one_folder(model, files, index, tmp_path, capsys):
    def bring(folder, status=0):
        capsys.readouterr()
        command = ["bind", "index", str(folder), "-o", str(index), "--model", str(model), "--device", "cpu"]
        assert main(command) == status
        return capsys.readouterr()

    other = tmp_path / "other"
    shutil.copytree(files, other)
    refused = (
        f"vitrail: The index in {index} is of the files in {{}}, and would forget them for those in {other}; choose "
        "another folder for an index of these.\n"
    )
    assert bring(other, 1) == ("", refused.format(files.resolve()))
    assert len(Index.open(index).read()[0]) == 3
    moved = files.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(moved)
    for same in (moved, tmp_path / "link"):
        assert bring(same).out == f"{index}: 0 embedded, 3 unchanged, 0 forgotten, 0 that cannot be read\n"
    assert bring(other, 1) == ("", refused.format(moved.resolve()))

    about = json.loads((index / MANIFEST).read_text())  # as an index of before folders were written down
    del about["root"]
    (index / MANIFEST).write_text(json.dumps(about))
    assert bring(other).out.startswith(f"{index}: ")
    assert Index.open(index).root == other.resolve()


def test_an_index_keeps_its_patterns_until_others_are_given(model, files, tmp_path, capsys):
    (files / "other.abc").write_text("of no sense either")
    command = ["bind", "index", str(files), "-o", str(tmp_path / "index"), "--model", str(model), "--device", "cpu"]
    for options, said in (
        (["--as", "text=*.xyz"], "4 embedded, 0 unchanged, 0 forgotten"),
        ([], "0 embedded, 4 unchanged, 0 forgotten"),
        (["--as", "text=*.abc"], "1 embedded, 3 unchanged, 1 forgotten"),
        ([], "0 embedded, 4 unchanged, 0 forgotten"),
    ):
        assert main([*command, *options]) == 0
        found = capsys.readouterr()
        assert found.out == f"{tmp_path / 'index'}: {said}, 0 that cannot be read\n"
    about = json.loads((tmp_path / "index" / MANIFEST).read_text())
    assert about.pop("patterns") == {"*.abc": "text"}
    (tmp_path / "index" / MANIFEST).write_text(json.dumps(about))  # as an index of before they were kept
    assert main(command) == 0
    assert "0 embedded, 3 unchanged, 1 forgotten" in capsys.readouterr().out


def test_an_index_within_its_folder_is_left_aside(model, files, capsys):
    (files / "notes.xyz").unlink()
    command = ["bind", "index", str(files), "-o", str(files / "index"), "--model", str(model), "--device", "cpu"]
    for said in ("3 embedded, 0 unchanged", "0 embedded, 3 unchanged"):
        assert main(command) == 0
        assert capsys.readouterr() == (f"{files / 'index'}: {said}, 0 forgotten, 0 that cannot be read\n", "")


def search(index, capsys, *options):
    capsys.readouterr()
    assert main(["bind", "search", str(index), "--json", "--device", "cpu", *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_approximate_search_says_what_it_finds(index, capsys, monkeypatch):
    pytest.importorskip("faiss")
    exact = search(index, capsys, "--text", "a cat sleeps")
    monkeypatch.setattr("vitrail.bind.search.searcher.EXACT_BELOW", 1)
    command = ["bind", "search", str(index), "--json", "--device", "cpu", "--text", "a cat sleeps"]
    for option, said in (
        ([], "vitrail: an approximate search, which finds about 100% of the nearest; --exact finds all\n"),
        (["--exact"], ""),
    ):
        assert main([*command, *option]) == 0
        found = capsys.readouterr()
        assert found.err == said
        assert [json.loads(line) for line in found.out.splitlines()] == exact
    assert main([*command, "--only", "audio"]) == 0  # among few, all are looked at
    assert capsys.readouterr() == ("", "")


def test_search_by_a_text_and_by_sums(model, index, capsys):
    (hit, *_) = hits = search(index, capsys, "--text", "a cat sleeps")
    assert hit == {"similarity": pytest.approx(1, abs=1e-5), "name": "b.txt", "modality": "text"} | {
        "start": None,
        "seconds": None,
    }
    assert len(hits) == 3
    dog, cat, rain = embedded(model, list(TEXTS.values()))
    query = dog - 0.5 * rain
    query /= np.linalg.norm(query)
    expected = {"a.txt": query @ dog, "b.txt": query @ cat, "deep/c.txt": query @ rain}
    hits = search(index, capsys, "--text", "a dog barks", "--text=rain on a roof", "--weights", "1", "-0.5")
    assert {hit["name"]: hit["similarity"] for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert [hit["name"] for hit in hits] == sorted(expected, key=lambda name: -expected[name])
    for weights in (["1", "-5e-1"], ["2E2", "-1.E+2"], ["+.1", "-.05"]):
        again = search(index, capsys, "--text", "a dog barks", "--text=rain on a roof", "--weights", *weights)
        assert {hit["name"]: hit["similarity"] for hit in again} == pytest.approx(expected, abs=1e-5)
    assert search(index, capsys, "--text", "a", "--count", "1", "--only", "audio", "image") == []
    assert main(["bind", "search", str(index), "--text", "a", "--only", "sound"]) == 1
    assert "There is no sense sound for --only; choose among " in capsys.readouterr().err
    assert main(["bind", "search", str(index), "--text", "a dog barks", "--count", "1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "similarity  sense  seconds  file\n     1.000  text            a.txt\n"


def test_another_model_is_refused(files, index, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    ImageBindConfig(8, {"text": Text(width=16, depth=1, heads=2)}).build().save(other)
    assert main(["bind", "search", str(index), "--text", "a", "--model", str(other)]) == 1
    assert f"{other} is not the model that made {index}" in capsys.readouterr().err
    assert main(["bind", "index", str(files), "-o", str(index), "--model", str(other)]) == 1
    assert "cannot be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([], "There is nothing to search by"),
        (["--text"], "--text is followed by nothing"),
        (["--smell", "rose"], "There is no --smell to search by"),
        (["rose"], "There is no rose to search by"),
        (["--text", ""], "The text to search by is empty; say something"),
        (["--text= "], "The text to search by is empty"),
        (["--text", "a", "--weights", "1", "2"], "1 things to search by have 2 weights"),
    ],
)
def test_queries_that_are_none(index, capsys, fields, sentence):
    assert main(["bind", "search", str(index), "--device", "cpu", *fields]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["index", "{files}/nothing", "-o", "{tmp}/new"], "There is no folder"),
        (["index", "{files}", "-o", "{tmp}/new", "--as", "smell=*.xyz"], "--as smell=*.xyz is not SENSE=PATTERN"),
        (["index", "{files}/deep", "-o", "{files}"], "holds other things than an index"),
        (["embed", "{files}/notes.xyz", "-o", "{tmp}/v.parquet"], "What sense is"),
        (["embed", "{files}/none.txt", "-o", "{tmp}/v.parquet"], "There is no file"),
        (["embed", "{files}/a.txt", "-o", "{tmp}/v.csv"], "its name must end in .parquet"),
        (["embed", "{files}/a.txt", "-o", "{files}/a.txt/v.parquet"], "a file stands where its folder should be"),
        (["search", "{files}", "--text", "a"], "There is no index in"),
        (["search", "--text", "rain", "{files}"], "There is no index in rain; name one before what to search by, or"),
    ],
)
def test_mistakes(model, files, tmp_path, capsys, words, sentence):
    words = [word.format(files=files, tmp=tmp_path) for word in words]
    assert main(["bind", *words, "--model", str(model), "--device", "cpu"]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "v.parquet").exists() and not (tmp_path / "new").exists()
