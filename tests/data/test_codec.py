"""Single images: decoding, resizing, and conversion to bytes and back."""

import io
import zlib

import numpy as np
import pytest
from image_files import noise_images, png
from PIL import ExifTags, Image

from tarflow.data import codec
from tarflow.errors import UserError


def split_image(mode, left, right):
    image = Image.new(mode, (8, 8), right)
    image.paste(left, (0, 0, 4, 8))
    return image


def raw_png(depth, kind, row, transparent):
    """Return a PNG of two pixels whose bit depth Pillow does not write."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    header = (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([depth, kind, 0, 0, 0])
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(b"\0" + row)}
    return (
        b"\x89PNG\r\n\x1a\n"
        + b"".join(chunk(*item) for item in chunks.items())
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_survive_a_png_file(channels):
    array = noise_images(1, channels=channels)[0]
    image = codec.decode(png(array), "image")
    assert codec.is_grey(image) == (channels == 1)
    pixels = codec.to_pixels(codec.convert(image, channels))
    np.testing.assert_array_equal(
        pixels, array[None] if channels == 1 else np.moveaxis(array, 2, 0)
    )
    again = codec.decode(codec.encode_png(codec.to_image(pixels)), "again")
    np.testing.assert_array_equal(np.asarray(again), array)


def test_an_image_that_cannot_be_decoded_is_one_line(tmp_path):
    deep = png(np.zeros((8, 8), np.uint16))
    for source, message in (
        (tmp_path / "absent.png", "cannot decode it: No such file or directory"),
        (b"text", "cannot decode it: cannot identify image file"),
        (deep[:-40], "cannot decode it: "),
        (deep, "it is not an 8-bit image"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            codec.decode(source, "it")
        assert "\n" not in str(caught.value)


def test_resizing_fits_the_shorter_side_and_cuts_the_centre():
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))  # 120 wide, 60 high
    resized = np.asarray(codec.resize_and_crop(Image.fromarray(ramp), 30))
    assert resized.shape == (30, 30)
    # The middle half of the ramp, 60..178, at half the resolution.
    np.testing.assert_allclose(resized[0], 61 + 4 * np.arange(30), atol=1)


def test_only_rows_of_three_square_planes_are_images():
    images = noise_images(2, size=4).transpose(0, 3, 1, 2)
    rows = images.reshape(2, -1)
    np.testing.assert_array_equal(codec.unflatten(rows), images)
    for other in (rows[:, :-3], rows.astype(int), images, np.empty(0, np.uint8)):
        assert codec.unflatten(other) is None


@pytest.mark.parametrize(
    ("array", "format"),
    [
        (np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64, "PNG"),  # mode I;16
        (np.arange(1024, dtype=np.uint16).reshape(32, 32) * 4, "PNG"),  # 12 bits of 16
        (np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64, "PPM"),  # mode I
        (np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64, "TIFF"),
        (np.arange(1024, dtype=">u2").reshape(32, 32) * 64, "TIFF"),  # mode I;16B
        (np.arange(1024, dtype=np.int32).reshape(32, 32) * 64, "TIFF"),
        (np.arange(1024, dtype=np.float32).reshape(32, 32) / 1024, "TIFF"),
    ],
)
def test_deep_images_are_refused(array, format):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=format)
    with pytest.raises(UserError, match=r"it is not an 8-bit image .*; convert it to 8 bits"):
        codec.decode(file.getvalue(), "it")
    with pytest.raises(UserError, match="it is not an 8-bit image"):
        codec.standardize(Image.fromarray(array), "it")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(format, orientation):
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # the top left corner
    stored = {
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(file, format=format, exif=exif)
    decoded = np.asarray(codec.decode(file.getvalue(), "it").convert("L"))
    np.testing.assert_allclose(decoded.astype(int), upright, atol=10)


def test_damaged_metadata_does_not_hide_an_image():
    array = noise_images(1)[0]
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", exif=b"Exif\0\0no TIFF header")
    np.testing.assert_array_equal(np.asarray(codec.decode(file.getvalue(), "it")), array)


def png_file(image, **options):
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def palette_image():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, 4, 8))
    return image


@pytest.mark.parametrize(
    ("file", "expected"),  # colours of the transparent left half and of the right half
    [
        (png_file(split_image("RGBA", (1, 2, 3, 0), (9, 8, 7, 255))), [[255] * 3, [9, 8, 7]]),
        (png_file(split_image("RGBA", (0, 0, 0, 0), (0, 0, 0, 255))), [[255] * 3, [0] * 3]),
        (
            png_file(split_image("RGBA", (0, 0, 0, 0), (255, 0, 0, 51))),
            [[255] * 3, [255, 204, 204]],
        ),
        (png_file(split_image("LA", (77, 0), (77, 255))), [255, 77]),
        (png_file(split_image("L", 5, 77), transparency=5), [255, 77]),
        (png_file(split_image("1", 0, 0), transparency=0), [255, 255]),
        (
            png_file(split_image("RGB", (1, 2, 3), (9, 8, 7)), transparency=(1, 2, 3)),
            [[255] * 3, [9, 8, 7]],
        ),
        (png_file(palette_image(), transparency=0), [[255] * 3, [40, 50, 60]]),
        (png_file(palette_image(), transparency=bytes([0, 255])), [[255] * 3, [40, 50, 60]]),
        (raw_png(2, 0, b"\x60", b"\0\1"), [255, 170]),
        (raw_png(4, 0, b"\x12", b"\0\1"), [255, 34]),
        (raw_png(16, 2, bytes(range(1, 13)), bytes(range(1, 7))), [[255] * 3, [7, 9, 11]]),
    ],
    ids=[
        "colour",
        "ink",
        "faint",
        "grey-alpha",
        "grey",
        "bit",
        "rgb",
        "palette",
        "alphas",
        "2-bit",
        "4-bit",
        "16-bit",
    ],
)
def test_transparent_pixels_are_white(file, expected):
    decoded = np.asarray(codec.decode(file, "it"))
    np.testing.assert_array_equal(decoded[0, [0, -1]], expected)


def test_transparent_webp_is_white():
    file = io.BytesIO()
    split_image("RGBA", (1, 2, 3, 0), (9, 8, 7, 255)).save(file, format="WEBP", lossless=True)
    decoded = np.asarray(codec.decode(file.getvalue(), "it"))
    assert decoded[0, [0, -1]].tolist() == [[255] * 3, [9, 8, 7]]
