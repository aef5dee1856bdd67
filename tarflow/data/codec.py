"""Single images: decode and encode files, resize, and convert between PIL images and bytes.

Legend: `N` images, `C` colour channels, `H` and `W` pixels, `S` pixels along one side.
"""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from tarflow.errors import UserError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}  # of image files

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "RGB", "RGBA", "CMYK", "YCbCr")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # between the levels of a PNG with 2 or 4 bits per pixel


def decode(source: Path | bytes, name: str) -> Image.Image:
    """Decode an image file as `standardize` describes.

    Args:
        source: The file, or its content.
        name: How an error names the image.

    Raises:
        UserError: If the file cannot be read, or is not an image of 8 bits per channel.
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as file:
            _match_transparent_colour(file)
            file.load()
            return standardize(file, name)
    except UserError:
        raise
    except Exception as error:  # each decoder raises its own types for a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot decode {name}: {reason}") from None


def standardize(image: Image.Image, name: str) -> Image.Image:
    """Return a loaded image upright, on white where it is transparent, as grey (mode L) or RGB.

    Deeper images are refused, not scaled: files of 16 bits often hold 10 or 12 and do not say so.

    Raises:
        UserError: If the image has more than 8 bits per channel.
    """
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise UserError(
            f"{name} is not an 8-bit image (mode {image.mode}); convert it to 8 bits per channel"
        )
    return _on_white(_upright(image)).convert("L" if image.mode in _GREY_MODES else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Compose an image on white, as the colours under transparent pixels are arbitrary."""
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white


def _match_transparent_colour(file: Image.Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits, which Pillow does with the pixels alone."""
    if not isinstance(file, PngImageFile) or "transparency" not in file.info or not file.tile:
        return
    colour, samples = file.info["transparency"], file.tile[0].args
    if samples in _GREY_STEPS:
        file.info["transparency"] = colour * _GREY_STEPS[samples]
    elif samples == "RGB;16B":
        file.info["transparency"] = tuple(value >> 8 for value in colour)


def _upright(image: Image.Image) -> Image.Image:
    """Turn or mirror an image as the orientation in its EXIF or XMP metadata says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata raises anything, and says nothing about the pixels
        return image


def encode_png(image: Image.Image) -> bytes:
    """Return the content of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def is_grey(image: Image.Image) -> bool:
    """Tell whether a decoded image has one channel rather than colours."""
    return image.mode == "L"


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image to grey (one channel) or to RGB (three)."""
    return image.convert("L" if channels == 1 else "RGB")


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels, bilinear, and cut out the centre.

    This is how Zhai et al. (2025) prepare their images.

    >>> resize_and_crop(Image.new("L", (40, 20)), 10).size
    (10, 10)
    """
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_square_png(image: Image.Image, size: int, grey: bool) -> bytes:
    """Return a PNG file of an image, converted to grey or RGB, of `size` pixels on each side."""
    return encode_png(resize_and_crop(convert(image, 1 if grey else 3), size))


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the (C, H, W) bytes of a grey or RGB image."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return (C, H, W) bytes as a grey or RGB image."""
    plane = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(plane))


def unflatten(rows: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Reshape rows of planes, one for grey images or red, green and blue, to square images.

    No number of bytes fits both. MNIST is often stored so, and ImageNet64 and CIFAR are.

    Args:
        rows: (N, C * S * S) bytes, where C is 1 or 3.

    Returns:
        The images, (N, C, S, S), or None if the array holds anything else.

    >>> [unflatten(np.zeros((2, row), np.uint8)) is None for row in (784, 3 * 784, 785)]
    [False, False, True]
    """
    if rows.ndim != 2 or rows.dtype != np.uint8 or not rows.shape[1]:
        return None
    for channels in (1, 3):
        side = math.isqrt(rows.shape[1] // channels)
        if channels * side**2 == rows.shape[1]:
            return rows.reshape(len(rows), channels, side, side)
    return None
