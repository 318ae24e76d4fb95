import tracemalloc
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.compress import FormatError
from vitrail.compress.coding.text import ALPHABET, LAST, TWEET, from_text, is_text, to_text


@settings(max_examples=500)
@given(st.binary(max_size=400))
def test_bytes_make_the_round_trip(data):
    text = to_text(data)
    assert from_text(text) == data
    assert len(text) == -(-8 * len(data) // 10)
    assert unicodedata.normalize("NFC", text) == unicodedata.normalize("NFKC", text) == text


def test_a_tweet_holds_350_bytes():
    assert len(to_text(bytes(350))) == TWEET
    assert len(to_text(bytes(351))) > TWEET


def test_the_alphabet_counts_one_each_and_survives_copying():
    assert len(set(ALPHABET)) == len(ALPHABET) == 1024
    assert not set(LAST) & set(ALPHABET)
    for character in ALPHABET:
        assert ord(character) <= 0x10FF  # X counts code points up to here as one character, most others as two
        assert unicodedata.category(character) in {"Lu", "Ll", "Lt", "Lo"}
        assert unicodedata.bidirectional(character) == "L"
        assert unicodedata.normalize("NFKC", character) == character


def test_texts_of_yesterday_can_be_read():
    assert to_text(bytes(range(0, 250, 31))) == "A\u0293\u056d\u021c\u0408\u0583\u0418" + "0"
    assert ALPHABET[0] + ALPHABET[-1] == "A\u10f8"


@given(st.binary(min_size=1, max_size=60), st.data())
def test_white_space_does_not_matter(data, more):
    text = to_text(data)
    place = more.draw(st.integers(0, len(text)))
    assert from_text(" " + text[:place] + "\n \t" + text[place:] + "\n") == data


@settings(max_examples=100)
@given(st.text(max_size=20))
def test_other_texts_are_refused_or_have_their_bytes(text):
    try:
        data = from_text(text)
    except FormatError:
        return
    assert "".join(text.split()).startswith(to_text(data)[:-1])


@given(st.lists(st.sampled_from(ALPHABET), max_size=20).map("".join), st.sampled_from(["", *LAST]))
def test_all_bytes_that_are_whole_are_had(letters, last):
    bits = "".join(f"{ALPHABET.index(letter):010b}" for letter in letters) + (f"{int(last):02b}" if last else "")
    whole = len(bits) // 8
    assert from_text(letters + last) == bytes(int(bits[8 * place : 8 * place + 8], 2) for place in range(whole))


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_text_that_was_cut_has_the_bytes_before(data, more):
    text = to_text(data)
    kept = more.draw(st.integers(0, len(text) - 1))
    assert from_text(text[:kept]) == data[: 10 * kept // 8]


def test_a_wrong_character_is_named():
    with pytest.raises(FormatError, match="'!'"):
        from_text(to_text(b"abcdef") + "!")


def test_text_is_told_from_bytes():
    assert is_text(to_text(b"\xd7\x10 a picture").encode())
    assert not is_text(b"\xd7\x10\xff\xfe")
    assert not is_text(b"")
    assert not is_text(b"Once upon a time, a cat.")
    text = to_text(b"\xd7\x10 a picture")
    for damaged in (text[:1], f"\n \u201c{text}", f"\u200b{text}", f"{text}!", f"{text}\ufffd"):
        assert is_text(damaged.encode())
    assert is_text((40 * text).encode()[:63])  # half a character at the end
    assert not is_text(text[1:].encode())


def test_large_texts_take_little_memory():
    """A gene is no picture, and need not be read to know."""
    assert not is_text(b"ACGT" * 500_000)
    letters = ALPHABET[860] + "ACGT" * 500_000
    tracemalloc.start()
    try:
        assert len(from_text(letters)) == 10 * len(letters) // 8
        assert tracemalloc.get_traced_memory()[1] < 30 * len(letters)
    finally:
        tracemalloc.stop()
