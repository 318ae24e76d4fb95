"""`vitrail pretrain`: probe, show, tokenizer, on runs of a step or two."""

from pathlib import Path

import pytest
from PIL import Image

from vitrail.cli.main import main

NETWORK = ["--backbone.width", "16", "--backbone.depth", "2", "--backbone.heads", "2", "--backbone.image-size", "32"]
RUN = ["--loop.steps", "1", "--loop.batch-size", "8", "--loop.accelerator", "cpu", "--loader.workers", "0"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    small = ["--view.size", "32", "--eval-transform.size", "32", "--tokenizer.words", "16", "--validation", "None"]
    assert main(["train", "splitmask_mini", "-o", str(folder), *NETWORK, *RUN, *small]) == 0
    return folder


def test_probe(pretrained, run, photos, tmp_path, capsys):
    data = ["--data", str(photos / "train"), "--validation", str(photos / "test"), "--device", "cpu"]
    plot = ["--plot", str(tmp_path / "layers.png")]
    assert main(["pretrain", "probe", str(pretrained), *data, "--layers", "0,1", "--knn", "5", *plot]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["linear, layer 0", "linear, layer 1", "linear, output", "5 nearest neighbours"]
    assert [name in line for name, line in zip(names, lines[1:5], strict=True)] == [True] * 4
    assert all(0 <= float(line.split()[-1]) <= 100 for line in lines[1:5])
    assert (tmp_path / "layers.png").exists()
    assert main(["pretrain", "probe", str(run), *data, "--knn"]) == 0  # a classifier's backbone
    assert "20 nearest neighbours" in capsys.readouterr().out
    command = ["pretrain", "probe", str(pretrained), *data]
    assert main([*command, "--layers", "1,1", "--knn", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(list((photos / "train").glob("*/*")))
    names = ["linear, layer 1", "linear, output", f"{count} nearest neighbours"]
    assert [name in line for name, line in zip(names, lines[1:], strict=True)] == [True] * 3
    assert main([*command, "--penalty", "nan", "--data", "nowhere"]) == 1  # said before anything is read
    assert "The penalty of a linear probe is nan; it must be a number" in capsys.readouterr().err
    for layers in ("first", "9" * 5000):
        assert main(["pretrain", "probe", str(pretrained), *data, "--layers", layers]) == 1
        assert f"--layers is '{layers}'; give numbers" in capsys.readouterr().err
    assert main(["pretrain", "probe", str(pretrained), *data, "--plot", str(tmp_path / "layers.png" / "a.png")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "a file stands where its folder should be" in said.err
    assert main(["pretrain", "probe", str(pretrained), *data, "--layers", "7"]) == 1
    assert "layers 0 to 1, but 7 was asked for" in capsys.readouterr().err


def test_exported_it_has_the_same_features(pretrained, photos, tmp_path, capsys):
    data = ["--data", str(photos / "train"), "--validation", str(photos / "test"), "--device", "cpu", "--knn"]
    exported = tmp_path / "features.safetensors"
    assert main(["export", str(pretrained), "-o", str(exported)]) == 0
    assert capsys.readouterr().out == f"Wrote {exported}\n"
    figures = []
    for model in (pretrained, exported):
        assert main(["pretrain", "probe", str(model), *data]) == 0
        figures.append([line.split()[-1] for line in capsys.readouterr().out.splitlines()])
    assert figures[0] == figures[1]
    assert main(["recognize", "classify", str(exported), "photo.jpg"]) == 1


def test_show(pretrained, run, photos, tmp_path, capsys):
    picture, output = str(next((photos / "test").glob("*/*.webp"))), tmp_path / "shown.png"
    assert main(["pretrain", "show", str(pretrained), picture, "-o", str(output)]) == 0
    with Image.open(output) as drawing:
        assert drawing.width > 3 * drawing.height  # five panels in a row
    assert main(["pretrain", "show", str(run), picture, "-o", str(output)]) == 1
    assert "hides no patches; take a run of SplitMask or BEiT" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(["pretrain", "show", str(pretrained), str(tmp_path / "broken.png"), "-o", str(output)]) == 1
    assert "Cannot read" in capsys.readouterr().err


def test_a_codec_becomes_a_tokenizer(photos, tmp_path, capsys):
    import torch

    from vitrail.compress.autoencoder import AutoencoderConfig
    from vitrail.compress.training.autoencoder import AutoencoderTraining
    from vitrail.compress.training.crops import Crops
    from vitrail.data.datasets import ImageData
    from vitrail.data.loader import LoaderConfig
    from vitrail.engine.checkpoint import open_task
    from vitrail.engine.experiment import Loop
    from vitrail.engine.loop import fit
    from vitrail.pretrain.tokenizers import TokenizerConfig

    def codec(parts: int) -> Path:
        network = AutoencoderConfig(width=32, depth=1, heads=2, factor=8, parts=parts, centroids=16)
        loop = Loop(steps=1, batch_size=4, accelerator="cpu")
        data, crops = ImageData(photos / "train"), Crops(size=32)
        experiment = AutoencoderTraining(
            data=data, crops=crops, autoencoder=network, loop=loop, loader=LoaderConfig(workers=0)
        )
        return fit(experiment, tmp_path / f"codec{parts}").folder

    path, one = tmp_path / "words.pt2", codec(1)
    assert main(["pretrain", "tokenizer", str(one), "-o", str(path), "--size", "32"]) == 0
    assert "--tokenizer.words 16 --tokenizer.patch-size 8" in capsys.readouterr().out
    tokenizer = TokenizerConfig(kind="program", program=path, words=16).build(patch_size=16)
    images = torch.rand(3, 3, 64, 64)
    mean, deviation = (torch.tensor(x).view(-1, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    half = torch.nn.functional.interpolate(images, (32, 32), mode="area")
    expected = open_task(one)[1].autoencoder.encode(half)[..., 0]
    found = tokenizer((images - mean) / deviation)
    assert found.shape == (3, 4, 4) and (found == expected).float().mean() > 0.95  # but for ties to rounding
    assert main(["pretrain", "tokenizer", str(codec(2)), "-o", str(path), "--size", "32"]) == 1
    assert "2 sub-vectors a token, so that a patch has no single word" in capsys.readouterr().err
