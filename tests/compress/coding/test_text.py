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
def test_other_texts_are_refused_or_exact(text):
    try:
        data = from_text(text)
    except FormatError:
        return
    assert to_text(data) == "".join(text.split())


@given(st.lists(st.sampled_from(ALPHABET + LAST), max_size=20).map("".join))
def test_texts_in_the_alphabet_are_refused_or_exact(text):
    try:
        data = from_text(text)
    except FormatError:
        return
    assert to_text(data) == text


def test_a_wrong_character_is_named():
    with pytest.raises(FormatError, match="'!'"):
        from_text(to_text(b"abcdef") + "!")


def test_text_is_told_from_bytes():
    assert is_text(to_text(b"\xd7\x10 a picture").encode())
    assert not is_text(b"\xd7\x10\xff\xfe")
    assert not is_text(b"")
    assert not is_text(b"Once upon a time, a cat.")
