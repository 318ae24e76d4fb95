import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from vitrail.data.corrupt import CorruptSample
from vitrail.data.images import image_size, list_images, natural_key, read_image, read_picture, read_values
from vitrail.errors import FileError


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def read(image, kind, **options):
    """The pixels of an image that was stored and read."""
    return np.asarray(read_image(stored(image, kind, **options)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    upright = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 13)
    # What a camera that is held so stores: the inverse of what the viewer must do.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    held = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    held.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), upright)


def test_damaged_exif_leaves_the_picture(photo):
    file = stored(photo, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    np.testing.assert_array_equal(read_image(file), photo)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey(kind):
    values = np.array([[0, 1, 128, 129, 257, 32896, 65406, 65407, 65535]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(read(Image.fromarray(values), kind), expected)


def test_16_bit_grey_big_endian(tmp_path):
    header = b"MM\x00*" + (8).to_bytes(4, "big")
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 110), (277, 3, 1), (279, 4, 4)]
    entries = b"".join(
        tag.to_bytes(2, "big")
        + kind.to_bytes(2, "big")
        + (1).to_bytes(4, "big")
        + (value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big"))
        for tag, kind, value in tags
    )
    body = (header + len(tags).to_bytes(2, "big") + entries + bytes(4)).ljust(110, b"\0") + bytes([255, 255, 1, 1])
    (tmp_path / "grey.tif").write_bytes(body)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.tif"), [[[255] * 3, [1] * 3]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[-10, 0, 40]], dtype=np.float32), [0, 51, 255]),
        (np.array([[7, 7]], dtype=np.float32), [0, 0]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[-100000, 0, 400000]], dtype=np.int32), [0, 51, 255]),
    ],
)
def test_32_bit(values, expected):
    np.testing.assert_array_equal(read(Image.fromarray(values), "TIFF")[0, :, 0], expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", [[0] * 3, [255] * 3, [0] * 3]),
        ("L", [[123] * 3, [251] * 3, [18] * 3]),  # 0.299 R + 0.587 G + 0.114 B
        ("CMYK", [[255, 80, 0], [250, 252, 251], [10, 20, 30]]),
        ("RGB", [[255, 80, 0], [250, 252, 251], [10, 20, 30]]),
    ],
)
def test_modes(mode, expected):
    colours = Image.fromarray(np.array([[[255, 80, 0], [250, 252, 251], [10, 20, 30]]], dtype=np.uint8))
    image = colours.convert(mode, dither=Image.Dither.NONE)
    np.testing.assert_array_equal(read(image, "TIFF")[0], expected)


def test_lab(photo):
    to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(photo, *to_lab, outputMode="LAB")
    assert np.abs(read(lab, "TIFF").astype(int) - np.asarray(photo)).mean() < 2


def test_cmyk_jpeg(photo):
    difference = read(photo.convert("CMYK"), "JPEG", quality=95).astype(int) - np.asarray(photo)
    assert np.abs(difference).mean() < 4  # an inverted picture would be off by about 100


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 200, 100, 50])
    image.putdata([1, 0])
    for kind in ("PNG", "GIF", "TIFF"):
        np.testing.assert_array_equal(read(image, kind), [[[200, 100, 50], [9, 8, 7]]])


def test_transparency_is_laid_over_the_background():
    image = Image.new("RGBA", (3, 1), (100, 0, 0, 255))
    image.putpixel((1, 0), (100, 0, 0, 0))
    image.putpixel((2, 0), (100, 0, 0, 51))
    np.testing.assert_array_equal(read(image, "PNG"), [[[100, 0, 0], [255] * 3, [224, 204, 204]]])
    black = read_image(stored(image, "PNG"), background=(0, 0, 0))
    np.testing.assert_array_equal(black, [[[100, 0, 0], [0] * 3, [20, 0, 0]]])
    grey = Image.new("LA", (2, 1), (10, 255))
    grey.putpixel((1, 0), (10, 0))
    np.testing.assert_array_equal(read(grey, "PNG"), [[[10] * 3, [255] * 3]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putdata([1, 0])
    np.testing.assert_array_equal(read(palette, "PNG", transparency=1), [[[255] * 3, [9, 8, 7]]])
    colour_key = Image.new("RGB", (2, 1), (1, 2, 3))
    colour_key.putpixel((1, 0), (4, 5, 6))
    np.testing.assert_array_equal(read(colour_key, "PNG", transparency=(1, 2, 3)), [[[255] * 3, [4, 5, 6]]])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(file), np.full((2, 2, 3), [255, 0, 0]))


def test_at_least_decodes_a_fraction(photo):
    large = photo.resize((800, 640))
    assert read_image(stored(large, "JPEG"), at_least=150).size == (200, 160)
    assert read_image(stored(large, "JPEG"), at_least=161).size == (400, 320)
    assert read_image(stored(large, "JPEG")).size == (800, 640)
    assert read_image(stored(large, "PNG"), at_least=150).size == (800, 640)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_truncated(kind, photo, tmp_path):
    data = stored(photo, kind).getvalue()
    path = tmp_path / "half.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptSample) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"Cannot read {path}: ")
    assert "\n" not in str(caught.value)


def test_not_an_image(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(CorruptSample, match=r"text.jpg: it is not an image that Pillow can read;"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(CorruptSample, match=r"empty.jpg: "):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(CorruptSample, match=r"none.jpg: there is no such file;"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(CorruptSample, match="Is a directory"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(CorruptSample, match=r"pipe.jpg: it is a pipe, not a file;"):
        read_image(tmp_path / "pipe.jpg")


def test_decompression_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(stored(Image.new("RGB", (15, 10)), "PNG")).size == (15, 10)  # above, but Pillow only warns
    with pytest.raises(CorruptSample, match=r"shard/x.png: it has more than 200 pixels, the limit of Pillow"):
        read_image(stored(Image.new("RGB", (30, 10)), "PNG"), name="shard/x.png")


WHITE = (0.9642, 1.0, 0.8249)  # of profiles: D50
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)


def fixed(values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space, tags, connection=b"XYZ "):
    """An ICC profile, version 2, of a device with these tags."""
    description = struct.pack(">4s4xI", b"desc", 5) + b"test\0" + bytes(78)
    tags = {
        "desc": description,
        "cprt": b"text" + bytes(4) + b"CC0\0",
        "wtpt": b"XYZ " + bytes(4) + fixed(WHITE),
    } | tags
    table, body, begin = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name.encode(), begin + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", begin + len(body), 0x02400000, b"prtr", space, connection, b"acsp")
    return (head + bytes(28) + fixed(WHITE)).ljust(128, b"\0") + table + body


def gamma(exponent):
    return struct.pack(">4s4xIHxx", b"curv", 1, round(exponent * 256))


def wide_gamut():
    """Display P3's primaries with a gamma of 2."""
    columns = {f"{name}XYZ": b"XYZ " + bytes(4) + fixed(P3[:, i]) for i, name in enumerate("rgb")}
    return profile(b"RGB ", columns | {f"{name}TRC": gamma(2) for name in "rgb"})


def ink():
    """CMYK whose black alone makes darker: L = 100 (1 - K)."""
    ramp = bytes(range(256))
    grid = b"".join(bytes([255 * (1 - node % 2), 128, 128]) for node in range(16))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(np.eye(3).ravel()) + 4 * ramp + grid + 3 * ramp
    return profile(b"CMYK", {"A2B0": table}, b"Lab ")


def srgb(linear):
    """sRGB's transfer function, 0..1 to 0..255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def colour(picture):
    return np.asarray(picture.image)[0, 0].astype(float)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "YCbCr"])
def test_colours_of_another_profile_become_srgb(mode):
    image = Image.new("RGB", (4, 4), (200, 100, 50)).convert(mode, palette=Image.Palette.ADAPTIVE)
    file = stored(image, "TIFF", icc_profile=wide_gamut())
    picture = read_picture(file)
    expected = srgb(XYZ_TO_SRGB @ P3 @ (np.array([200, 100, 50]) / 255) ** 2)
    np.testing.assert_allclose(colour(picture), expected, atol=2.5 if mode == "YCbCr" else 1)
    assert picture.notes == ()
    if mode == "RGB":
        np.testing.assert_array_equal(np.asarray(read_image(file))[0, 0], [200, 100, 50])


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_linear_grey_becomes_srgb(mode):
    grey = Image.new("L", (2, 2), 55)
    image = Image.fromarray(np.full((2, 2), 55 * 257, dtype=np.uint16)) if mode == "I;16" else grey.convert(mode)
    picture = read_picture(stored(image, "PNG", icc_profile=profile(b"GRAY", {"kTRC": gamma(1)})))
    np.testing.assert_allclose(colour(picture), srgb(55 / 255), atol=1)
    assert picture.notes == (("its 16 bits a pixel became 8",) if mode == "I;16" else ())


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_with_its_profile(kind):
    picture = read_picture(stored(Image.new("CMYK", (8, 8), (0, 0, 0, 128)), kind, icc_profile=ink()))
    lightness = 100 * (1 - 128 / 255)
    np.testing.assert_allclose(colour(picture), srgb(((lightness + 16) / 116) ** 3), atol=2)
    assert picture.notes == ()


def test_srgb_stays_as_it_is(photo):
    srgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read_picture(stored(photo, "PNG", icc_profile=srgb_profile))
    np.testing.assert_array_equal(picture.image, photo)


@pytest.mark.parametrize("odd", [b"no profile", wide_gamut()[:200], ink()], ids=["text", "cut", "of CMYK"])
def test_a_profile_of_no_use_is_noted(odd, photo):
    picture = read_picture(stored(photo, "PNG", icc_profile=odd))
    assert picture.notes == ("its colour profile cannot be used and was left out",)
    np.testing.assert_array_equal(picture.image, photo)


def test_no_damage_of_a_profile_stops_a_picture(photo):
    small, good = photo.resize((2, 2)), wide_gamut()
    for at in range(0, len(good), 5):
        damaged = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
        assert read_picture(stored(small, "PNG", icc_profile=damaged)).image.size == (2, 2)


def test_what_was_lost_is_noted(photo):
    clear = photo.convert("RGBA")
    assert read_picture(stored(clear, "PNG")).notes == ()  # all of it opaque
    clear.putpixel((0, 0), (0, 0, 0, 0))
    picture = read_picture(stored(clear, "PNG"), background=(16, 32, 48))
    assert picture.notes == ("its transparent parts were laid over the colour #102030",)
    assert picture.image.getpixel((0, 0)) == (16, 32, 48) and picture.image.getpixel((9, 9)) == photo.getpixel((9, 9))
    frames = stored(photo, "GIF", save_all=True, append_images=[photo.rotate(90), photo.rotate(180)])
    assert read_picture(frames).notes == ("of its 3 frames the first was taken",)


def test_pictures_above_a_limit_are_refused_before_they_are_decoded(photo):
    data = stored(photo, "PNG").getvalue()[:200]  # the header alone
    with pytest.raises(CorruptSample, match=rf"it has {photo.width} x {photo.height} pixels, and 99 is the limit"):
        read_picture(io.BytesIO(data), most=99)
    assert read_picture(stored(photo, "PNG"), most=photo.width * photo.height).image.size == photo.size


def test_avif(photo):
    difference = np.asarray(read_picture(stored(photo, "AVIF", quality=95)).image, dtype=float) - np.asarray(photo)
    assert np.abs(difference).mean() < 4


def png_of_16_bits(values, kind, transparent=()):
    """A row of two pixels; `kind` is 0 for grey, 2 for colour, 6 for colour with its opacity."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, kind, 0, 0, 0))]
    if transparent:
        parts.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    row = b"\0" + struct.pack(f">{len(values)}H", *values)
    parts += [(b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_16_bit_colour_keeps_its_upper_bits_and_says_so():
    values = [65535, 256, 0, 128, 32768, 257]
    picture = read_picture(png_of_16_bits(values, 2))
    assert picture.notes == ("its 16 bits a channel became 8",)
    np.testing.assert_array_equal(np.asarray(picture.image).ravel(), [value >> 8 for value in values])
    np.testing.assert_array_equal(read_image(png_of_16_bits(values, 2)), picture.image)
    assert read_picture(png_of_16_bits([0, 0, 0, 65535] * 2, 6)).notes == ("its 16 bits a channel became 8",)
    pixels = io.BytesIO(b"P6 1 1 65535 " + struct.pack(">3H", 65535, 257, 0))
    assert read_picture(pixels) == (read_image(pixels), ("its 16 bits a channel became 8",))


def test_16_bits_for_all_channels_together_are_no_more_than_8_each():
    header = struct.pack("<IiiHHIIiiII3I", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    data = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + header + struct.pack("<2H", 0xF800, 0x1F)
    picture = read_picture(io.BytesIO(data))
    assert picture.notes == () and np.asarray(picture.image).tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("value", [0, 200, 1000, 65535])
def test_one_value_of_16_bit_grey_is_transparent(value):
    other = 30 * 257
    picture = read_picture(png_of_16_bits([value, other], 0, (value,)), background=(1, 2, 3))
    assert picture.notes == (
        "its transparent parts were laid over the colour #010203",
        "its 16 bits a pixel became 8",
    )
    np.testing.assert_array_equal(np.asarray(picture.image)[0], [[1, 2, 3], [30, 30, 30]])
    assert read_picture(png_of_16_bits([other, other], 0, (value,))).notes == ("its 16 bits a pixel became 8",)
    image = read_image(png_of_16_bits([value, other], 0, (value,)))
    np.testing.assert_array_equal(image, [[[255] * 3, [30] * 3]])


def test_no_profile_is_made_for_floats():
    values = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    picture = read_picture(stored(values, "TIFF", icc_profile=profile(b"GRAY", {"kTRC": gamma(1)})))
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 128, 255] and picture.notes == ()


def test_pages_cut_behind_the_first_keep_nobody_from_it(photo):
    pages = stored(photo, "TIFF", save_all=True, append_images=[photo.rotate(90), photo.rotate(180)]).getvalue()
    assert read_picture(io.BytesIO(pages)).notes == ("of its 3 frames the first was taken",)
    first = len(stored(photo, "TIFF").getvalue())
    for kept in range(first, len(pages), 5000):
        np.testing.assert_array_equal(read_picture(io.BytesIO(pages[:kept])).image, photo)


def test_natural_order():
    names = ["img10.jpg", "IMG9.jpg", "10", "9", "a", "B", "09", "img9b.jpg"]
    assert sorted(names, key=natural_key) == ["09", "9", "10", "a", "B", "IMG9.jpg", "img9b.jpg", "img10.jpg"]
    long = ["0" * 5000 + "7", "000", "1" + "0" * 5000, "9" * 5000]
    assert sorted(long, key=natural_key) == [long[1], long[0], long[3], long[2]]


def test_list_images(tmp_path, write_image):
    for name in ("b/2.png", "b/10.png", "a/c/1.JPG", "x.webp", ".hidden/1.png", "b/.hidden.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert list_images(tmp_path) == [tmp_path / "x.webp"]
    expected = ["x.webp", "a/c/1.JPG", "b/2.png", "b/10.png", "linked/c/1.JPG"]
    assert list_images(tmp_path, recursive=True) == [tmp_path / name for name in expected]
    with pytest.raises(FileError, match=r"Cannot read the folder .*missing: No such file"):
        list_images(tmp_path / "missing")


def test_no_link_leads_back_up_the_tree(tmp_path, write_image):
    for name in ("banana/1.png", "tomato/1.png"):
        write_image(tmp_path / name)
    (tmp_path / "tomato" / "up").symlink_to("..")
    (tmp_path / "tomato" / "same").symlink_to(".")
    (tmp_path / "tomato" / "beside").symlink_to("../banana")
    found = list_images(tmp_path / "tomato", recursive=True)
    assert found == [tmp_path / "tomato" / "1.png", tmp_path / "tomato" / "beside" / "1.png"]


def test_values_are_those_of_the_file(tmp_path):
    for name, dtype in (("a.png", np.uint8), ("b.png", np.uint16), ("c.tiff", np.int32), ("d.tiff", np.float32)):
        values = np.arange(6, dtype=dtype).reshape(2, 3) * 41
        Image.fromarray(values).save(tmp_path / name)
        found = read_values(tmp_path / name)
        assert found.dtype == dtype
        assert found.tolist() == values.tolist()
    (tmp_path / "e.pgm").write_bytes(b"P5 2 1 65535 \x01\x02\xff\x00")  # high bytes first
    assert read_values(tmp_path / "e.pgm").tolist() == [[0x0102, 0xFF00]]
    Image.new("RGB", (2, 1), (10, 10, 10)).save(tmp_path / "f.png")
    assert read_values(tmp_path / "f.png").tolist() == [[10, 10]]
    with pytest.raises(CorruptSample, match="there is no such file"):
        read_values(tmp_path / "none.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_picture(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").size[::-1]
    with pytest.raises(CorruptSample, match="there is no such file"):
        image_size(tmp_path / "none.jpg")
