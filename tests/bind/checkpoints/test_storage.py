"""Models to files and back, in fewer bits, in part, by name."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vitrail.bind.checkpoints import storage
from vitrail.bind.checkpoints.official import PUBLISHED, to_official
from vitrail.bind.modalities import MODALITIES
from vitrail.bind.model import ImageBind, ImageBindConfig
from vitrail.download import RemoteFile
from vitrail.errors import FileError, VitrailError
from vitrail.layers.low_rank import add_low_rank

SIZES = {"width": 32, "depth": 2, "heads": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ImageBindConfig(16, {name: MODALITIES[name](**SIZES) for name in ("text", "depth")}).build().eval()


@pytest.fixture
def path(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


INPUTS = {
    "text": torch.randint(1, 49408, (4, 77), generator=torch.Generator().manual_seed(0)),
    "depth": torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)),
}


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@torch.inference_mode()
def test_round_trip(model, path):
    loaded = ImageBind.load(path)
    assert loaded.config == model.config
    assert not loaded.training
    same(loaded.state_dict(), model.state_dict())
    same(loaded.encode(INPUTS), model.encode(INPUTS))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_loaded_models_learn_and_leave_their_file_alone(path):
    before = path.read_bytes()
    loaded = ImageBind.load(path).train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.encode(INPUTS)["depth"].sum().backward()
    optimizer.step()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("weights", "tolerance", "share"), [("int8", 1e-3, 0.32), ("bfloat16", 1e-4, 0.55)])
@torch.inference_mode()
def test_fewer_bits(model, path, tmp_path, weights, tolerance, share):
    """1 - cosine with the vectors of float32; such a model can be saved, and is what it was."""
    loaded = ImageBind.load(path, weights=weights)
    expected = model.encode(INPUTS)
    small = loaded.encode(INPUTS)
    for name, vectors in small.items():
        assert (1 - (vectors * expected[name]).sum(dim=1)).max() < tolerance
    loaded.save(tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < share * path.stat().st_size
    again = ImageBind.load(tmp_path / "small.safetensors")
    same(again.encode(INPUTS), small)
    same(ImageBind.load(tmp_path / "small.safetensors", weights=weights).encode(INPUTS), small)
    with pytest.raises(VitrailError, match=f"holds weights in {weights}, which cannot become float32; load them as "):
        ImageBind.load(tmp_path / "small.safetensors", weights="float32")


def test_some_senses(model, path):
    loaded = ImageBind.load(path, modalities=["depth"])
    assert list(loaded.config.modalities) == list(loaded.encoders) == ["depth"]
    same(loaded.encoders["depth"].state_dict(), model.encoders["depth"].state_dict())
    with pytest.raises(VitrailError, match=r"has no modality 'audio' but text, depth; choose among these\.$"):
        ImageBind.load(path, modalities=["depth", "audio"])


def test_nothing_is_built_in_memory_before_the_file_is_read(path, monkeypatch):
    """Weights are born on the meta device: no initialization runs on real memory."""
    devices = []
    real = torch.nn.init.trunc_normal_
    monkeypatch.setattr(
        torch.nn.init, "trunc_normal_", lambda tensor, **how: devices.append(tensor.device.type) or real(tensor, **how)
    )
    loaded = ImageBind.load(path)
    assert set(devices) == {"meta"}
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}


def test_by_name(model, tmp_path, monkeypatch):
    torch.save(to_official(model), tmp_path / "imagebind_huge.pth")
    asked = []
    monkeypatch.setattr(storage, "fetch", lambda file: asked.append(file) or tmp_path / "imagebind_huge.pth")
    loaded = ImageBind.load("imagebind_huge", settings={name: {"heads": 4} for name in ("text", "depth")})
    same(loaded.state_dict(), model.state_dict())
    assert asked == [PUBLISHED["imagebind_huge"]]
    assert isinstance(asked[0], RemoteFile)
    assert asked[0].url == "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"
    assert "CC BY-NC-SA 4.0: not for commercial use" in asked[0].notice


def test_checkpoints_of_training(model, path, tmp_path, monkeypatch):
    opened = []

    def open_task(path):
        opened.append(path)
        return None, SimpleNamespace(**task)

    monkeypatch.setattr("vitrail.engine.checkpoint.open_task", open_task)
    save_file({"model.a": torch.zeros(1)}, tmp_path / "last.safetensors", {"vitrail": "{}"})
    task = {"model": model}
    for source in (tmp_path, tmp_path / "last.safetensors"):
        same(
            ImageBind.load(source, modalities=["text"]).encoders["text"].state_dict(),
            model.encoders["text"].state_dict(),
        )
    assert opened == [tmp_path, tmp_path / "last.safetensors"]
    task = {"backbone": model}
    with pytest.raises(FileError, match="is of a NoneType, which has no ImageBind; take one that has"):
        ImageBind.load(tmp_path)


@torch.inference_mode()
def test_low_rank_changes_are_merged(model, tmp_path, monkeypatch):
    changed = copy.deepcopy(model)
    add_low_rank(changed, rank=2)
    for name, parameter in changed.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    expected = changed.encode(INPUTS)
    assert not torch.allclose(expected["depth"], model.encode(INPUTS)["depth"], atol=1e-2)
    changed.save(tmp_path / "merged.safetensors")
    monkeypatch.setattr("vitrail.engine.checkpoint.open_task", lambda path: (None, SimpleNamespace(model=changed)))
    for source in (tmp_path / "merged.safetensors", tmp_path):  # the model itself, and a checkpoint of its training
        loaded = ImageBind.load(source)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(loaded.encode(INPUTS), expected, rtol=1e-4, atol=1e-5)


def test_initialize(model, path):
    config = ImageBindConfig(16, {name: MODALITIES[name](**SIZES) for name in ("depth", "text", "thermal")})
    fresh = config.build()
    thermal = {key: tensor.clone() for key, tensor in fresh.encoders["thermal"].state_dict().items()}
    fresh.initialize(path, ["depth", "text"])
    same(fresh.encoders["depth"].state_dict(), model.encoders["depth"].state_dict())
    same(fresh.encoders["text"].state_dict(), model.encoders["text"].state_dict())
    same(fresh.scales["text"].state_dict(), model.scales["text"].state_dict())
    same(fresh.encoders["thermal"].state_dict(), thermal)
    other = ImageBindConfig(16, {"depth": MODALITIES["depth"](**SIZES, norm_epsilon=1e-5)}).build()
    with pytest.raises(
        VitrailError, match="has norm_epsilon = 1e-06, and that of this model 1e-05; set it to the same"
    ):
        other.initialize(path, ["depth"])
    other = ImageBindConfig(8, {"depth": MODALITIES["depth"](**SIZES)}).build()
    with pytest.raises(VitrailError, match=r"depth encoder of .* is for inputs or embeddings of another size"):
        other.initialize(path, ["depth"])


def test_what_is_no_model(model, path, tmp_path):
    with pytest.raises(
        FileError, match=r"^There is no model none.pth; name a file, the folder of a run, or imagebind_"
    ):
        ImageBind.load("none.pth")
    with pytest.raises(VitrailError, match="cannot be kept as int4; choose among float32, bfloat16, int8"):
        ImageBind.load(path, weights="int4")
    with pytest.raises(VitrailError, match=r"its name must end in .safetensors\.$"):
        model.save(tmp_path / "model.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match=r"is neither an ImageBind nor a CLIP with a ViT; check which file it is\.$"):
        ImageBind.load(tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="holds no checkpoint"):
        ImageBind.load(tmp_path)
    with pytest.raises(FileError, match="is not a readable file of weights"):
        (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
        ImageBind.load(tmp_path / "cut.safetensors")


def test_files_that_contradict_themselves(path, tmp_path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no mapping
    odd = tmp_path / "odd.safetensors"

    def said(tensors, about):
        save_file(tensors, odd, {storage.METADATA: about})
        with pytest.raises(VitrailError) as caught:
            ImageBind.load(odd)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    about = json.loads(metadata[storage.METADATA])
    fewer = {key: tensor for key, tensor in tensors.items() if key != "encoders.text.norm.bias"}
    assert "encoders.text.norm.bias is one of 1 tensors that are missing" in said(fewer, json.dumps(about))
    wrong = tensors | {"encoders.text.norm.bias": torch.zeros(3)}
    assert "encoders.text.norm.bias is one of 1 tensors" in said(wrong, json.dumps(about))
    for damaged in ("", "[]", "{}", json.dumps(about | {"weights": "int4"}), json.dumps(about | {"config": 3})):
        assert "does not describe a model that this version" in said(tensors, damaged)
    newer = about | {"config": about["config"] | {"colour": "red"}}
    assert "sets colour of bind.model.ImageBindConfig" in said(tensors, json.dumps(newer))


def test_fingerprints_tell_models_apart(path, tmp_path):
    data = bytearray(path.read_bytes()) + bytes(2**23)
    names = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for name, value in zip(names, (0, 1, 0), strict=True):
        data[-(2**22) - 1] = value  # one byte, far from both ends
        name.write_bytes(data)
    first, second, third = map(storage.fingerprint, names)
    assert first == third != second
