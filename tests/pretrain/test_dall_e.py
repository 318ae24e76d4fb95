import math
import os
import sys
import types

import pytest
import torch
from torch import nn

from vitrail.cli.main import main
from vitrail.errors import FileError
from vitrail.pretrain.dall_e import DallEEncoder
from vitrail.pretrain.tokenizers import TokenizerConfig

# By the package of the published encoder, DALL-E 0.1: its number of parameters, and of the small one below with the
# weights below, after `map_pixels`, the logits of three words and the words of largest logits.
PUBLISHED = 53_786_240
LOGITS = [
    [-3.44864, -1.94061, -2.48172, -1.93189, -1.23896, -1.87129],
    [8.02041, 9.31883, 8.5169, 8.64771, 5.37218, 6.13483],
    [-4.90609, -3.26095, -4.85011, -3.8189, -4.46091, -5.4897],
]
WORDS = [318, 318, 318, 318, 510, 380]
MEAN, DEVIATION = (torch.tensor(x).view(-1, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def noise(count: int, number: int) -> torch.Tensor:
    """Values in -0.5..0.5 by integers alone, the same on every machine, float64."""
    values = torch.arange(count)
    values = (values * 1103515245 + 12345 * (number + 1)) % 2**31
    return (values * (values % 65521) + number) % (2**31 - 1) / (2**31 - 1) - 0.5


class Convolution(nn.Module):
    """In the file, weights are called `w` and `b`."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(outputs, inputs, side, side))
        self.b = nn.Parameter(torch.empty(outputs))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.id_path = Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.res_path = nn.ModuleDict({f"relu_{number}": nn.ReLU() for number in range(1, 5)})
        for number, before in enumerate((inputs, hidden, hidden, hidden), 1):
            last = number == 4
            self.res_path[f"conv_{number}"] = Convolution(before, outputs if last else hidden, 1 if last else 3)


class Encoder(nn.Module):
    """The layout of the published file."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"input": Convolution(3, width, 7)})
        channels = width
        for number in range(4):
            outputs = width * 2**number
            blocks = {"block_1": Block(channels, outputs), "block_2": Block(outputs, outputs)}
            self.blocks[f"group_{number + 1}"] = nn.ModuleDict(blocks)
            channels = outputs
        self.blocks["output"] = nn.ModuleDict({"relu": nn.ReLU(), "conv": Convolution(channels, words, 1)})


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A small encoder with weights by formula, pickled whole, whose classes nobody has any more."""
    encoder = Encoder(width=64, words=512)
    with torch.no_grad():
        for number, (_, value) in enumerate(sorted(encoder.named_parameters())):
            scale = 6 / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.2
            value.copy_(scale * noise(value.numel(), number).view_as(value))
    for name, classes in {"dall_e": (), "dall_e.encoder": (Encoder, Block), "dall_e.utils": (Convolution,)}.items():
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        for each in classes:
            setattr(module, each.__name__, each)
            monkeypatch.setattr(each, "__module__", name)
    torch.save(encoder, tmp_path / "encoder.pkl")
    monkeypatch.undo()
    return tmp_path / "encoder.pkl"


def test_parameters_of_the_published_encoder():
    with torch.device("meta"):
        assert sum(value.numel() for value in DallEEncoder().parameters()) == PUBLISHED


@pytest.fixture
def images() -> torch.Tensor:
    return (noise(3 * 16 * 24, 99) + 0.5).view(1, 3, 16, 24).float()


def test_a_pickled_encoder_gives_the_logits_of_its_own_package(file, images):
    encoder = DallEEncoder.from_file(file)
    with torch.no_grad():
        logits = encoder(images)
    assert logits.shape == (1, 512, 2, 3) and encoder.factor == 8
    torch.testing.assert_close(logits[0, :3].flatten(1), torch.tensor(LOGITS), rtol=1e-4, atol=1e-4)
    assert logits.argmax(dim=1).flatten().tolist() == WORDS


def test_its_words_are_a_tokenizers(file, images, tmp_path, capsys):
    """Pictures of twice the size, for a network with patches of 16."""
    program = tmp_path / "words.pt2"
    square = torch.nn.functional.pad(images, (0, 0, 0, 8))
    assert main(["pretrain", "tokenizer", str(file), "-o", str(program), "--size", "24"]) == 0
    assert "--tokenizer.words 512 --tokenizer.patch-size 8" in capsys.readouterr().out
    tokenizer = TokenizerConfig(kind="program", program=program, words=512).build(patch_size=16)
    large = square.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    found = tokenizer((large - MEAN) / DEVIATION)
    assert torch.equal(found, DallEEncoder.from_file(file)(square).argmax(dim=1))


def test_other_files_are_refused(tmp_path, capsys):
    path = tmp_path / "other.pkl"
    torch.save({"blocks.input.w": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(FileError, match=r"other\.pkl is not the file of DALL-E's encoder; take its encoder\.pkl\."):
        DallEEncoder.from_file(path)
    assert main(["pretrain", "tokenizer", str(tmp_path / "none.pkl"), "-o", str(tmp_path / "words.pt2")]) == 1
    assert "There is no file" in capsys.readouterr().err


def test_a_pickled_module_that_names_anything_else_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    encoder = nn.Linear(2, 2)
    encoder.more = Evil()
    torch.save(encoder, tmp_path / "evil.pkl")
    with pytest.raises(FileError, match=r"evil\.pkl needs posix\.mkdir to be read, which could run any program"):
        DallEEncoder.from_file(tmp_path / "evil.pkl")
    assert not (tmp_path / "made").exists()
