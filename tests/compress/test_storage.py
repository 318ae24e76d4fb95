"""A codec's file: the same codec for everyone who loads it, or one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from vitrail.cli.main import main
from vitrail.compress import Codec, storage
from vitrail.compress.coding.frequencies import integer_histogram
from vitrail.compress.storage import DEFAULT_MODEL, METADATA, is_codec
from vitrail.errors import FileError, VitrailError


@pytest.fixture(scope="module")
def codec(tiny_autoencoder, tiny_prior) -> Codec:
    torch.manual_seed(3)
    autoencoder = tiny_autoencoder.build()
    prior = tiny_prior.build(autoencoder.parts, autoencoder.centroids)
    shares = np.random.default_rng(0).dirichlet(np.ones(autoencoder.centroids), autoencoder.parts)
    return Codec(autoencoder, prior, integer_histogram(shares), "fresh")


@pytest.fixture(scope="module")
def file(codec, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "stored.safetensors"
    codec.save(path, facts={"licence": "CC0"})
    return path


@pytest.fixture(scope="module")
def contents(file) -> tuple[dict, dict]:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()[METADATA])


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((41, 30), Image.Resampling.BICUBIC)


def test_everyone_who_loads_a_file_has_the_same_codec(codec, file, picture, tmp_path):
    first, second = Codec.load(file), Codec.load(str(file))
    assert first.name == "stored" and first.fingerprint == second.fingerprint != codec.fingerprint
    data = first.compress(picture)
    assert data == second.compress(picture)
    assert first.decompress(data).tobytes() == second.decompress(data).tobytes()
    first.save(tmp_path / "again.safetensors")
    assert Codec.load(tmp_path / "again.safetensors").fingerprint == first.fingerprint


def test_full_precision_keeps_the_codec_itself(codec, picture, tmp_path):
    codec.save(tmp_path / "full.safetensors", half=False)
    loaded = Codec.load(tmp_path / "full.safetensors")
    assert loaded.fingerprint == codec.fingerprint and loaded.compress(picture) == codec.compress(picture)


def test_what_a_file_holds(codec, contents):
    tensors, about = contents
    assert set(about) == {"name", "autoencoder", "prior", "facts"} and about["facts"] == {"licence": "CC0"}
    np.testing.assert_array_equal(tensors["marginals"], codec.histogram)
    for name, value in tensors.items():
        if value.is_floating_point():
            assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32), name
    weight = codec.autoencoder.decoder.expand.weight
    assert tensors["autoencoder.decoder.expand.weight"].equal(weight.half())


def test_values_that_half_precision_cannot_hold_are_refused(tiny_autoencoder, tiny_prior, codec, tmp_path):
    autoencoder = tiny_autoencoder.build()
    torch.nn.init.constant_(autoencoder.decoder.expand.weight, 1e6)
    wide = Codec(autoencoder, codec.prior, codec.histogram, "wide")
    with pytest.raises(VitrailError, match=r"decoder\.expand\.weight has values that float16 cannot hold"):
        wide.save(tmp_path / "wide.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(VitrailError, match=r"must end in \.safetensors"):
        codec.save(tmp_path / "codec.pt")


@pytest.fixture(scope="module")
def trained(tiny_training, tmp_path_factory) -> Path:
    from vitrail.engine.loop import fit

    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(tiny_training(), folder)
    return folder


def test_a_run_and_what_is_exported_of_it_are_the_same_codec(trained, picture, tmp_path, capsys):
    target = tmp_path / "mine.safetensors"
    assert main(["export", str(trained), "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"Wrote {target}\n"
    run, exported = Codec.load(trained), Codec.load(target)
    assert run.fingerprint == exported.fingerprint
    assert exported.compress(picture) == run.compress(picture)
    assert main(["export", str(trained), "-o", str(tmp_path / "mine.onnx")]) == 1
    assert "its name must end in .safetensors" in capsys.readouterr().err


def test_what_is_a_codec(file, trained, run, tmp_path):
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert is_codec(file) and is_codec(str(trained)) and is_codec(trained / "checkpoints" / "last.safetensors")
    for other in (run, "nowhere", tmp_path, tmp_path / "text.safetensors", tmp_path / "foreign.safetensors"):
        assert not is_codec(other)


def test_an_autoencoder_without_prior_is_no_codec(autoencoder_run):
    with pytest.raises(VitrailError, match="has an autoencoder without a masked image model; train one"):
        Codec.load(autoencoder_run)


def test_shipped_codecs_are_found_by_name(file, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_SHIPPED", tmp_path / "none")
    with pytest.raises(FileError, match=f"There is no codec {DEFAULT_MODEL}; name a shipped one"):
        Codec.load()
    (tmp_path / f"{DEFAULT_MODEL}.safetensors").write_bytes(file.read_bytes())
    monkeypatch.setattr(storage, "_SHIPPED", tmp_path)
    assert Codec.load().fingerprint == Codec.load(DEFAULT_MODEL).fingerprint == Codec.load(file).fingerprint
    assert storage.shipped_codecs() == [DEFAULT_MODEL] and is_codec(DEFAULT_MODEL)
    with pytest.raises(FileError, match=f"There is no codec nonsense; name a shipped one \\({DEFAULT_MODEL}\\)"):
        Codec.load("nonsense")


def test_a_folder_is_not_taken_for_the_file_beside_it(file, trained, tmp_path):
    beside = trained.with_suffix(".safetensors")
    beside.write_bytes(file.read_bytes())
    assert Codec.load(trained).fingerprint != Codec.load(beside).fingerprint


def less(tensors, about):
    del tensors["marginals"]


def more(tensors, about):
    tensors["extra"] = torch.zeros(1)


def another_shape(tensors, about):
    tensors["marginals"] = tensors["marginals"][:, 1:].contiguous()


def not_finite(tensors, about):
    broken = tensors["autoencoder.quantizer.codebook"] = tensors["autoencoder.quantizer.codebook"].clone()
    broken[1, 2, 3] = float("nan")


def wider(tensors, about):
    about["autoencoder"]["width"] = 2**20  # its convolutions alone would take terabytes


def no_number(tensors, about):
    about["autoencoder"]["width"] = "wide"


def too_many_parts(tensors, about):
    about["autoencoder"]["parts"] = 17


def no_prior(tensors, about):
    del about["prior"]


def swapped(tensors, about):
    about["prior"] = about["autoencoder"]


def future(tensors, about):
    about["prior"]["sharpness"] = 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (less, "does not fit its own configuration (marginals is one of 1)"),
        (more, "does not fit its own configuration (extra is one of 1)"),
        (another_shape, "does not fit its own configuration (marginals is one of 1)"),
        (not_finite, "holds numbers that are not finite (in autoencoder.quantizer.codebook), so it shows nothing;"),
        (wider, "does not fit its own configuration ("),
        (no_number, "does not describe a codec: AutoencoderConfig.width is wide; it must be a"),
        (
            too_many_parts,
            "odd.safetensors does not describe a codec: AutoencoderConfig.parts is 17; it must be",
        ),
        (no_prior, "does not describe a codec that this version of Vitrail can build"),
        (swapped, "does not describe a codec that this version of Vitrail can build"),
        (future, "sets sharpness of compress.prior.PriorConfig, which this version of Vitrail does not have"),
    ],
)
def test_files_that_are_not_as_they_say_are_refused(contents, tmp_path, change, sentence):
    tensors, about = dict(contents[0]), json.loads(json.dumps(contents[1]))
    change(tensors, about)
    save_file(tensors, tmp_path / "odd.safetensors", {METADATA: json.dumps(about)})
    with pytest.raises(VitrailError) as refused:
        Codec.load(tmp_path / "odd.safetensors")
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_foreign_files_are_refused(file, tmp_path):
    damaged, foreign, text = (tmp_path / f"{name}.safetensors" for name in ("damaged", "foreign", "text"))
    damaged.write_bytes(file.read_bytes()[:-1])
    save_file({"a": torch.zeros(1)}, foreign)
    save_file({"a": torch.zeros(1)}, text, {METADATA: "{"})
    for path, sentence in (
        (damaged, "is not a whole safetensors file"),
        (foreign, "is a safetensors file, but not a checkpoint"),
        (text, "does not describe a codec"),
    ):
        with pytest.raises(FileError, match=sentence):
            Codec.load(path)
