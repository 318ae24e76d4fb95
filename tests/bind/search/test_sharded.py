"""Tars, embedded by two processes of Ray: the same index as of the files themselves, and nothing done twice."""

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vitrail.bind.search.sharded
from vitrail.bind import ImageBind, ImageBindConfig
from vitrail.bind.modalities.text import Text
from vitrail.bind.search.index import Index
from vitrail.bind.search.sharded import list_shards
from vitrail.cli.main import main
from vitrail.errors import VitrailError

pytest.importorskip("pyarrow")

TEXTS = {
    f"part-{shard}.tar/{shard}{number}.txt": f"words {shard} {number}" for shard in range(3) for number in range(4)
}


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    for shard in range(3):
        name = f"part-{shard}.tar"
        files = {key.split("/")[1]: text.encode() for key, text in TEXTS.items() if key.startswith(name)}
        write_tar(tmp_path / "tars" / name, files | {"about.json": b"{}"})
    return tmp_path / "tars"


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    ImageBindConfig(8, {"text": Text(width=16, depth=1, heads=2)}).build().save(path)
    return path


def test_what_is_in_tars(folder, tmp_path):
    sources = list_shards(folder)
    assert [(source.name, source.modality) for source in sources] == [(name, "text") for name in TEXTS]
    assert {source.path for source in sources} == {folder / f"part-{shard}.tar" for shard in range(3)}
    assert list_shards(folder, {"*/about.json": "imu"})[0].modality == "text"
    assert sum(source.modality == "imu" for source in list_shards(folder, {"*/about.json": "imu"})) == 3
    (tmp_path / "links").mkdir()
    with pytest.raises(VitrailError, match=r"There is no \.tar in .*; name a folder that holds some\.$"):
        list_shards(tmp_path / "links")
    (tmp_path / "links" / "there").symlink_to(folder)
    assert [source.name for source in list_shards(tmp_path / "links")] == [f"there/{name}" for name in TEXTS]
    (folder / "bad.tar").write_bytes(b"no tar at all")
    with pytest.raises(VitrailError, match=r"bad\.tar \(13 bytes\) is truncated, damaged or not a plain tar file; "):
        list_shards(folder)


def test_ray_may_be_missing(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main(["bind", "index", str(folder), "-o", str(tmp_path / "i"), "--model", str(model), "--workers", "2"]) == 1
    assert "Many processes need Ray, which is missing; pip install 'vitrail[bulk]'." in capsys.readouterr().err


def test_a_pattern_that_fits_nothing_in_tars_is_named(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vitrail.bind.search.sharded, "_load_ray", OneProcess)
    patterns = ["--as", "depth=*.png", "--as", "text=part-1.tar/*.txt"]
    assert main([*bind_index(folder, tmp_path / "index", model), *patterns]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("vitrail: no file fits --as depth=*.png; ")


class OneProcess:
    """What is used of Ray, in this process, and the tars that went through it."""

    def __init__(self):
        self.tars = []
        self.data = self
        self.ActorPoolStrategy = SimpleNamespace
        self.DataContext = SimpleNamespace(get_current=lambda: SimpleNamespace(execution_options=SimpleNamespace()))

    def is_initialized(self):
        return True

    def from_items(self, items, override_num_blocks):
        assert override_num_blocks == len(items)
        self.items = items
        return self

    def map_batches(self, work, fn_constructor_args, **options):
        self.work = work(*fn_constructor_args)
        return self

    def iter_rows(self):
        for item in self.items:
            self.tars.append(item["path"].rpartition("/")[2])
            yield from ({"made": one} for one in self.work({name: [value] for name, value in item.items()})["made"])


def check_index(command, index, folder, model, capsys):
    """Makes the index, changes the tars, and brings the index up to date, twice."""
    assert main(command) == 0
    assert capsys.readouterr().out == f"{index}: 12 embedded, 0 unchanged, 0 forgotten, 0 that cannot be read\n"
    entries, vectors = Index.open(index).read()
    assert [entry.name for entry in entries] == list(TEXTS)
    expected = ImageBind.load(model).embed({"text": list(TEXTS.values())})["text"].numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)

    write_tar(folder / "part-1.tar", {"10.txt": b"other words", "19.txt": b"\xff\xfe\xff"})
    (folder / "part-2.tar").unlink()
    assert main(command) == 1
    said = capsys.readouterr()
    assert said.out == f"{index}: 1 embedded, 4 unchanged, 7 forgotten, 1 that cannot be read\n"
    assert "vitrail: Cannot read part-1.tar/19.txt: it is not text in UTF-8; mend it or leave it out.\n" in said.err
    entries, vectors = Index.open(index).read()
    assert [entry.name for entry in entries] == [*list(TEXTS)[:4], "part-1.tar/10.txt"]
    (other,) = ImageBind.load(model).embed({"text": ["other words"]})["text"].numpy()
    np.testing.assert_allclose(vectors[-1], other, atol=1e-6)


def bind_index(folder, index, model):
    command = ["bind", "index", str(folder), "-o", str(index), "--model", str(model), "--device", "cpu"]
    return [*command, "--workers", "2"]


def test_finished_tars_are_left_alone(folder, model, tmp_path, capsys, monkeypatch):
    stand_in = OneProcess()
    monkeypatch.setattr(vitrail.bind.search.sharded, "_load_ray", lambda: stand_in)
    command = bind_index(folder, tmp_path / "index", model)
    check_index(command, tmp_path / "index", folder, model, capsys)
    assert stand_in.tars == ["part-0.tar", "part-1.tar", "part-2.tar", "part-1.tar"]


def test_what_was_killed_goes_on(folder, model, tmp_path, capsys, monkeypatch):
    stand_in = OneProcess()
    monkeypatch.setattr(vitrail.bind.search.sharded, "_load_ray", lambda: stand_in)
    command = bind_index(folder, tmp_path / "index", model)
    update = Index.update

    def killed(self, sources, embed, every=6, **options):
        def embed_once(given):
            if given[0].name != "part-0.tar/00.txt":
                raise KeyboardInterrupt
            return embed(given)

        return update(self, sources, embed_once, every=every, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "update", killed)
        assert main(command) == 130
    assert len(Index.open(tmp_path / "index").read()[0]) == 6
    stand_in.tars.clear()
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("6 embedded, 6 unchanged, 0 forgotten, 0 that cannot be read\n")
    assert stand_in.tars == ["part-1.tar", "part-2.tar"]
    expected = ImageBind.load(model).embed({"text": list(TEXTS.values())})["text"].numpy()
    np.testing.assert_allclose(Index.open(tmp_path / "index").read()[1], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of Ray's own settings
def test_two_processes(folder, model, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    command = bind_index(folder, tmp_path / "index", model)
    check_index(command, tmp_path / "index", folder, model, capsys)
    assert not ray.is_initialized()
    write_tar(folder / "part-1.tar", {"10.txt": b"other words"})
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("1 embedded, 4 unchanged, 0 forgotten, 0 that cannot be read\n")
