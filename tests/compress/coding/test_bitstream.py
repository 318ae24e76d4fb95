from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.compress import CodecError, DamageError, FormatError, Scheme
from vitrail.compress.coding.bitstream import MAX_SIDE, Header

schemes = st.one_of(
    st.builds(Scheme, st.sampled_from(["quincunx", "confidence_linear", "confidence_doubling"]), st.integers(1, 32)),
    st.sampled_from([Scheme("raster", 1), Scheme("marginal", 1)]),
)
headers = st.builds(
    Header,
    model=st.binary(min_size=2, max_size=2),
    width=st.integers(1, MAX_SIDE),
    height=st.integers(1, MAX_SIDE),
    quality=st.integers(1, 16),
    scheme=schemes,
)


@settings(max_examples=300)
@given(headers, st.binary(max_size=5))
def test_headers_make_the_round_trip(header, rest):
    assert Header.unpack(header.pack() + rest) == (header, rest)


@pytest.mark.parametrize(
    ("width", "height", "quality", "scheme", "expected"),
    [
        (256, 256, 4, Scheme(), "d710abcd" + "388ffff0"),
        (1, 1, 1, Scheme(), "d710abcd" + "0000"),
        (768, 512, 6, Scheme(), "d710abcd" + "5a9bfffe"),
        (3, 2, 2, Scheme("quincunx", 7), "d71306abcd" + "121a"),
        (32768, 1, 16, Scheme("raster", 1), "d712abcd" + "ff0fffe0"),
        (1, 1, 1, Scheme("marginal", 1), "d711abcd" + "0000"),
        (1, 1, 1, Scheme("confidence_linear", 5), "d71404abcd" + "0000"),
        (1, 1, 1, Scheme("confidence_doubling", 32), "d7151fabcd" + "0000"),
    ],
)
def test_the_bytes_of_the_documented_format(width, height, quality, scheme, expected):
    assert Header(bytes.fromhex("abcd"), width, height, quality, scheme).pack().hex() == expected


@settings(max_examples=200)
@given(headers)
def test_a_cut_header_is_damage(header):
    packed = header.pack()
    for kept in range(1, len(packed)):
        with pytest.raises(DamageError, match=f"ends within its header, after {kept} bytes"):
            Header.unpack(packed[:kept])


@settings(max_examples=500)
@given(st.binary(max_size=30), st.booleans())
def test_random_bytes_are_a_header_or_refused(data, magic):
    data = b"\xd7" + data if magic else data
    try:
        header, rest = Header.unpack(data)
    except CodecError:
        return
    assert header.pack() + rest == data


def test_other_files_are_refused():
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        with pytest.raises(FormatError, match="no picture that Vitrail has compressed"):
            Header.unpack(data)


def test_other_versions_are_refused():
    packed = bytearray(Header(b"ab", 10, 10, 1).pack())
    for second in (0x20, 0x00, 0x16, 0x1F):
        packed[1] = second
        with pytest.raises(FormatError, match="newer Vitrail"):
            Header.unpack(bytes(packed))


def test_what_does_not_fit_is_refused():
    header = Header(b"ab", 10, 10, 1)
    for change in ({"width": 0}, {"height": MAX_SIDE + 1}):
        with pytest.raises(FormatError, match="1 to 32,768"):
            replace(header, **change)
    with pytest.raises(FormatError, match="choose 1 to 16"):
        replace(header, quality=17)
