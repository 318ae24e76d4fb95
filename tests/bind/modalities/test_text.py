"""CLIP's tokens, and the errors around them."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.bind.modalities import text as module
from vitrail.bind.modalities.text import Text, TruncationWarning
from vitrail.data.corrupt import CorruptSample
from vitrail.errors import FileError, VitrailError

PARITY = Path(__file__).parents[3].parent / "shared" / "parity" / "imagebind"

BEGIN, END = 49406, 49407


@pytest.fixture
def text():
    return Text(width=16, depth=2, heads=2)


def test_tokens_are_clips(text):
    # "a photo of a cat" as CLIP's own documentation has it
    expected = [BEGIN, 320, 1125, 539, 320, 2368, END] + [0] * 70
    tokens = text.read("a photo of a cat")
    assert tokens.tolist() == [expected]
    assert tokens.dtype == torch.int64
    assert text.read("  A photo  of a CAT\n").tolist() == [expected]
    assert text.read("").tolist() == [[BEGIN, END] + [0] * 75]


def test_long_texts_are_cut_aloud(text):
    with pytest.warns(TruncationWarning, match=r"^The text \('a a a .* has 76 tokens, and the encoder reads 75"):
        tokens = text.read("a " * 76)
    assert tokens.tolist() == [[BEGIN] + [320] * 75 + [END]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text.read("a " * 75).tolist() == tokens.tolist()


def test_files_hold_text(text, tmp_path):
    path = tmp_path / "caption.txt"
    path.write_text("a photo of a cat", encoding="utf-8")
    assert torch.equal(text.read(path), text.read("a photo of a cat"))
    assert torch.equal(text.sample(path, torch.Generator()), text.read("a photo of a cat")[0])
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CorruptSample, match=r"it is not text in UTF-8"):
        text.read(path)
    path.write_text(" \n")
    with pytest.raises(CorruptSample, match="it holds no text"):
        text.read(path)
    with pytest.raises(FileError, match="No such file"):
        text.read(tmp_path / "none.txt")


def test_encoder_reads_up_to_the_end_and_no_further(text):
    encoder = text.build(8).eval()
    tokens = text.read("a photo of a cat")
    later = tokens.clone()
    later[0, 7:] = 320  # causal: what comes after the end changes nothing
    other = tokens.clone()
    other[0, 5] = 320
    vectors = encoder(torch.cat([tokens, later, other]))
    assert vectors.shape == (3, 8)
    torch.testing.assert_close(vectors[0], vectors[1])
    assert (vectors[0] - vectors[2]).abs().max() > 1e-3
    with pytest.raises(VitrailError, match=r"shape \[1, 76\] do not fit the encoder, which takes \[B, 77\]"):
        encoder(tokens[:, :76])


def test_missing_package_says_what_to_install(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip.tokenizer", None)
    module._tokenizer.cache_clear()
    with pytest.raises(VitrailError, match=r"pip install 'vitrail\[bind\]'"):
        text.read("a")


def test_length_is_checked():
    with pytest.raises(VitrailError, match=r"Text.length is 2; it must be at least 3"):
        Text(length=2)


@pytest.mark.shared
@pytest.mark.skipif(not PARITY.exists(), reason="the reference outputs are not beside the repository")
@pytest.mark.filterwarnings("ignore::vitrail.bind.modalities.text.TruncationWarning")
def test_tokens_are_those_of_the_official_code(text):
    texts = json.loads((PARITY / "tiny.json").read_text(encoding="utf-8"))["texts"]
    expected = np.load(PARITY / "tiny_reference.npz")["tokens_int/text"]
    assert np.array_equal(torch.cat([text.read(one) for one in texts]).numpy(), expected)
