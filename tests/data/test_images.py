import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from vitrail.data.corrupt import CorruptSample
from vitrail.data.images import list_images, natural_key, read_image
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


def test_decompression_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(stored(Image.new("RGB", (15, 10)), "PNG")).size == (15, 10)  # above, but Pillow only warns
    with pytest.raises(CorruptSample, match=r"shard/x.png: it has more than 200 pixels, the limit of Pillow"):
        read_image(stored(Image.new("RGB", (30, 10)), "PNG"), name="shard/x.png")


def test_natural_order():
    names = ["img10.jpg", "IMG9.jpg", "10", "9", "a", "B", "09", "img9b.jpg"]
    assert sorted(names, key=natural_key) == ["09", "9", "10", "a", "B", "IMG9.jpg", "img9b.jpg", "img10.jpg"]


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
