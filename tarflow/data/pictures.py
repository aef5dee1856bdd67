"""Pictures that a user points at, brought to the form a model takes.

Folders of image files, image files, Parquet image tables and NumPy archives. Legend: `N` images,
`C` colour channels, `S` pixels along one side.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tarflow.config import ModelConfig
from tarflow.data.images import Images
from tarflow.data.importing import SUFFIXES, fit
from tarflow.data.splits import SPLITS
from tarflow.data.tables import find_table
from tarflow.errors import UserError
from tarflow.storage import cache_folder

_ARRAYS = ("data", "images", "arr_0")  # of pixels in an archive; the first is ImageNet64's
_LABELS = ("labels", "arr_1")

Picture: TypeAlias = tuple[str, Image.Image, int]  # name, picture, label or -1


def read_pictures(
    places: Sequence[Path], model: ModelConfig, resize: bool = False
) -> tuple[Images, list[str]]:
    """Read all pictures at some places, in order.

    Tables are read whole, whatever their splits. Archives hold (N, S, S, C), (N, C, S, S) or
    (N, S, S) bytes as `images` or `arr_0`, or the rows of an ImageNet64 batch as `data`. Only
    tables and archives have labels.

    Args:
        places: folders of images or of Parquet files, image files, Parquet files, .npz files.
        model: whose images they are to be.
        resize: turn pictures of another size or colour into the model's, the shorter side
            resized and the centre cut out, instead of refusing them.

    Returns:
        Images with label -1 where it is unknown, and a name for each.

    Raises:
        UserError: naming the picture that cannot be read or does not fit.
    """
    pixels, labels, names = [], [], []
    for place in places:
        for name, picture, label in _find(place):
            pixels.append(_fitted(picture, name, model, resize))
            labels.append(label)
            names.append(name)
    if not names:
        raise UserError(f"no images in {', '.join(str(place) for place in places)}")
    return Images(np.stack(pixels), np.array(labels, np.int64), model.classes), names


def _find(place: Path) -> Iterator[Picture]:
    if place.suffix == ".npz":
        yield from _archive(place)
    elif place.suffix == ".parquet" or (place.is_dir() and any(place.rglob("*.parquet"))):
        yield from _table(place)
    elif place.is_dir():
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield _file(path)
    else:
        yield _file(place)


def _file(path: Path) -> Picture:
    try:
        with Image.open(path) as opened:
            return str(path), opened.copy(), -1
    except (OSError, SyntaxError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot read the image {path}: {reason}") from None


def _table(place: Path) -> Iterator[Picture]:
    table = find_table(str(place), cache_folder() / "digests")
    labels = table.labels if table.classes else np.full(len(table.codes), -1)
    pixels = np.empty((len(table.codes), *table.shape), np.uint8)
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(table.codes == code)
        part = np.empty((len(rows), *table.shape), np.uint8)
        table.fill(split, part, np.empty(len(rows), np.int64))
        pixels[rows] = part
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        yield f"{place}#{row}", _image(image), int(label)


def _archive(path: Path) -> Iterator[Picture]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = next((name for name in _ARRAYS if name in arrays), "")
            found: NDArray[Any] = arrays[name] if name else np.empty(0)
            key = next((key for key in _LABELS if key in arrays), "")
            labels = arrays[key].reshape(-1).astype(np.int64) if key else None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"cannot read the archive {path}: {reason}") from None
    pixels = _planes(found) if found.dtype == np.uint8 else None
    if pixels is None:
        raise UserError(
            f"{path} holds no images: it needs an array of bytes, (N, S, S, C) and called "
            f"{' or '.join(_ARRAYS[1:])}, or an ImageNet64 batch"
        )
    if labels is None:
        labels = np.full(len(pixels), -1)
    elif found.ndim == 2:
        labels = labels - 1  # ImageNet64 counts its classes from 1
    if len(labels) != len(pixels):
        raise UserError(f"{path} has {len(labels)} labels for {len(pixels)} images")
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        yield f"{path}#{row}", _image(image), int(label)


def _planes(found: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the images of an archive as (N, C, H, W); None if they are not images."""
    if found.ndim == 2:
        side = int((found.shape[1] / 3) ** 0.5)
        return found.reshape(-1, 3, side, side) if 3 * side**2 == found.shape[1] else None
    if found.ndim == 3:
        return found[:, None]
    if found.ndim == 4 and found.shape[3] in (1, 3):
        return found.transpose(0, 3, 1, 2)
    return found if found.ndim == 4 and found.shape[1] in (1, 3) else None


def _image(planes: NDArray[np.uint8]) -> Image.Image:
    """Turn (C, H, W) bytes into a picture."""
    if len(planes) == 1:
        return Image.fromarray(np.ascontiguousarray(planes[0]))
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _fitted(
    picture: Image.Image, name: str, model: ModelConfig, resize: bool
) -> NDArray[np.uint8]:
    """Return the (C, S, S) bytes of a picture."""
    side = model.image_size
    grey = picture.mode in ("1", "L")
    if not grey and picture.mode not in ("P", "RGB", "RGBA", "CMYK", "YCbCr", "LA"):
        raise UserError(f"{name} is not an 8-bit image (mode {picture.mode})")
    if not resize:
        if picture.size != (side, side):
            width, height = picture.size
            raise UserError(
                f"{name} is {width}x{height} pixels, the model takes {side}x{side}; "
                "add --resize to resize and cut"
            )
        if model.image_channels == 1 and not grey:
            raise UserError(
                f"{name} is in colour, the model takes grey images; add --resize to convert"
            )
    fitting = fit(picture.convert("L" if model.image_channels == 1 else "RGB"), side)
    pixels = np.asarray(fitting)
    return pixels[None] if model.image_channels == 1 else pixels.transpose(2, 0, 1)
