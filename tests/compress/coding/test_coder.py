import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.compress import DamageError
from vitrail.compress.coding.coder import Decoder, Encoder
from vitrail.compress.coding.frequencies import OFFSETS, choose_offset, frequencies, levels, normalize


def random_tables(generator, count, symbols, scale):
    logits = generator.normal(scale=scale, size=(count, symbols))
    return logits, frequencies(levels(logits, 0))


def draw(generator, tables):
    """Symbols that follow their tables."""
    ends = (tables + 1).cumsum(axis=1)
    return (generator.integers(0, 2**24, size=(len(tables), 1)) >= ends).sum(axis=1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    symbols=st.sampled_from([2, 3, 16, 255, 256, 257, 1000]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    likely=st.booleans(),
    length=st.integers(1, 4),
)
def test_whatever_is_encoded_is_decoded(seed, count, symbols, scale, likely, length):
    generator = np.random.default_rng(seed)
    _, tables = random_tables(generator, count, symbols, scale)
    common = normalize(generator.integers(0, 100, size=symbols) + 1)
    given_symbols = draw(generator, tables) if likely else generator.integers(0, symbols, size=count)
    offsets = generator.integers(0, OFFSETS, size=3)

    def go(stream):
        first = stream.symbols(given_symbols if isinstance(stream, Encoder) else np.zeros(count), tables)
        stream.check(1)
        second = stream.symbols(given_symbols if isinstance(stream, Encoder) else np.zeros(count), common)
        third = [stream.offset(int(offset) if isinstance(stream, Encoder) else 0) for offset in offsets]
        stream.check(length)
        return first.tolist(), second.tolist(), third, stream.bits

    encoder = Encoder(b"known")
    encoded = go(encoder)
    data = encoder.finish()
    decoder = Decoder(data, b"known")
    assert go(decoder) == encoded
    assert decoder.size == encoder.size == len(data)
    assert encoded[:3] == (given_symbols.tolist(), given_symbols.tolist(), offsets.tolist())
    # The coder itself rounds: at most 1/177 bit a symbol, in practice far less.
    assert encoder.bits - 1e-6 <= 8 * len(data) <= encoder.bits + 1e-3 * (2 * count + 8) + 8


def test_the_stream_never_changes():
    """Files written yesterday depend on every bit: of ours, and of constriction's coder."""
    below = (np.arange(640) * 37 % 101).reshape(40, 16).astype(np.int16)
    below[:, 5] = 0
    encoder = Encoder(b"golden")
    encoder.symbols(np.arange(40) % 16, frequencies(below))
    encoder.check(1)
    encoder.offset(9)
    encoder.symbols(np.arange(16), normalize(np.arange(16)))
    encoder.check(3)
    assert encoder.finish().hex() == (
        "00c5b1f48188f882783ec03e284cc5d1cc89c3cb6fb767c22fc04366f50e42328cadc82768eee89f2c21870246"
    )


@pytest.mark.parametrize("symbols", [2, 3, 16, 255, 256, 1000])
def test_the_table_of_the_coder_is_ours_to_the_last_count(symbols):
    """constriction scales and rounds; of integers that sum to 2^24 - V it must leave every one as it is.

    The interval after a first symbol is the sum of the counts before it and its own count, in units of 2^40 - 1.
    """
    _, tables = random_tables(np.random.default_rng(symbols), 1, symbols, 2.0)
    counts = [int(count) + 1 for count in tables[0]]
    assert sum(counts) == 2**24
    for symbol in range(symbols):
        encoder = Encoder()
        encoder.symbols(np.array([symbol]), tables)
        words, (lower, width) = encoder._coder.pos()
        unit = 2**40 - 1 << 32 * words
        assert (lower, width) == (sum(counts[:symbol]) * unit % 2**64, counts[symbol] * unit)


def test_the_rate_is_the_models_own():
    """Rounding of logits and tables, and the coder: together below 0.1% of the ideal code length."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(20000, 64))
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    drawn = (generator.random((20000, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(0, 63)
    ideal = -np.log2(np.take_along_axis(probabilities, drawn[:, None], axis=1)).sum()
    encoder = Encoder()
    encoder.symbols(drawn, frequencies(levels(logits, choose_offset(logits))))
    assert 8 * len(encoder.finish()) == pytest.approx(ideal, rel=1e-3)


def test_symbols_that_are_certain_cost_nothing():
    tables = frequencies(np.array([[0, 278, 278]], dtype=np.int16).repeat(10000, axis=0))
    encoder = Encoder()
    encoder.symbols(np.zeros(10000, dtype=np.int64), tables)
    assert len(encoder.finish()) == 1
    assert (Decoder(b"").symbols(np.zeros(10000), tables) == 0).all()


def encoded(generator, known=b""):
    _, tables = random_tables(generator, 50, 32, 2.0)
    symbols = draw(generator, tables)
    encoder = Encoder(known)
    encoder.symbols(symbols, tables)
    encoder.check(3)
    return symbols, tables, encoder.finish()


def test_every_wrong_bit_is_found_or_changes_nothing():
    symbols, tables, data = encoded(np.random.default_rng(3))
    found = 0
    for bit in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        decoder = Decoder(bytes(wrong))
        try:
            decoded = decoder.symbols(np.zeros(50), tables)
            decoder.check(3)
            assert (decoded == symbols).all()
        except DamageError:
            found += 1
    assert found >= 8 * len(data) - 8  # only the unused bits of the last byte may change nothing


def test_other_knowledge_is_found():
    _, tables, data = encoded(np.random.default_rng(4), b"one model")
    decoder = Decoder(data, b"another")
    decoder.symbols(np.zeros(50), tables)
    with pytest.raises(DamageError, match="check does not agree"):
        decoder.check(3)


def test_an_end_before_the_check_is_found_by_the_length():
    generator = np.random.default_rng(6)
    _, tables = random_tables(generator, 200, 32, 2.0)
    symbols = draw(generator, tables)
    encoder = Encoder()
    encoder.symbols(symbols, tables)
    encoder.check(1)
    encoder.symbols(symbols, tables)
    encoder.check(3)
    data = encoder.finish()
    for kept in range(len(data) // 2 - 2):
        decoder = Decoder(data[:kept])
        with pytest.raises(DamageError, match="data"):
            decoder.symbols(np.zeros(200), tables)
            decoder.check(1)


def test_an_end_is_found_at_once():
    """Ten bytes are ten symbols of 256, up to the last bit that rounded logarithms leave open."""
    decoder, table = Decoder(bytes(10)), normalize(np.ones(256, dtype=np.int64))
    decoder.symbols(np.zeros(10), table)
    with pytest.raises(DamageError, match="the data end there"):
        decoder.symbols(np.zeros(1), table)


def test_a_stream_is_never_shorter_than_its_code_length():
    """Not even where it ends in zeros: else a decoder could not tell that it was cut."""
    table = normalize(np.ones(256, dtype=np.int64))
    encoder = Encoder()
    encoder.symbols(np.zeros(100, dtype=np.int64), table)
    assert encoder.finish() in (bytes(100), bytes(101))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_random_bytes_decode_to_symbols_or_are_refused(data, count):
    tables = frequencies(np.arange(20, dtype=np.int16)[None].repeat(count, axis=0) * 5)
    decoder = Decoder(data)
    try:
        decoded = decoder.symbols(np.zeros(count), tables)
    except DamageError:
        return
    assert decoded.min() >= 0
    assert decoded.max() < 20
