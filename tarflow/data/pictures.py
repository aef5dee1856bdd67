"""A user's pictures as images of a model: files, folders, tables, NumPy archives, and arrays.

Legend: `N` images, `C` colour channels, `S` pixels along one side.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tarflow.data import codec
from tarflow.data.archives import first_label, read_archive
from tarflow.data.broken import Broken
from tarflow.data.folders import find_images
from tarflow.data.images import Images
from tarflow.data.tables import StoredImage, Table, find_table
from tarflow.errors import UserError
from tarflow.model_config import ModelConfig

Picture: TypeAlias = tuple[str, Callable[[], Image.Image], int]  # name, decoder, label or -1


def read_pictures(
    paths: Sequence[Path], model: ModelConfig, resize: bool = False, skip_broken: bool = False
) -> tuple[Images, list[str], list[str]]:
    """Read all pictures at some paths, in order.

    Tables and archives (`tarflow.data.archives` has the layouts) are read in full, whatever their
    splits. Only they have labels, and only tables vectors to condition on.

    Args:
        paths: Image files, Parquet files, .npz files, folders of images or of Parquet files.
        model: Architecture that decides the size and the channels of the images.
        resize: Resize pictures of another size (shorter side, then centre) and convert those of
            other colours, instead of refusing them.
        skip_broken: Leave out pictures that cannot be decoded instead of refusing them.

    Returns:
        Images, with label -1 where it is unknown; a name for each; lines about what was left out.

    Raises:
        UserError: If pictures cannot be decoded (names them all), or one does not fit the model.
    """
    pixels, labels, names = [], [], []
    broken = Broken(skip_broken)
    kept: list[bool] = []  # of all pictures, those that can be decoded
    for path in paths:
        for name, decode, label in _pictures(path):
            kept.append(False)
            try:
                picture = decode()
            except UserError as error:
                broken.reasons.append(str(error))
                continue
            pixels.append(_model_pixels(picture, name, model, resize))
            labels.append(label)
            names.append(name)
            kept[-1] = True
    broken.check(len(names) + len(broken.reasons))
    if not names:
        raise UserError(f"no images in {', '.join(map(str, paths))}")
    vectors = _vectors(paths)[kept] if model.condition_tokens and _all_tables(paths) else None
    images = Images(np.stack(pixels), np.array(labels, np.int64), model.classes, vectors)
    return images, names, broken.notes


def _all_tables(paths: Sequence[Path]) -> bool:
    """Tell whether all paths are image tables with conditions."""
    return all(_is_table(path) and any(find_table(str(path)).condition_shape) for path in paths)


def _vectors(paths: Sequence[Path]) -> NDArray[np.float32]:
    """Return the conditions of all rows of image tables, (N, P, E)."""
    tables = [find_table(str(path)) for path in paths]
    return np.concatenate(
        [table.conditions_of(np.ones(len(table.codes), bool)) for table in tables]
    )


def _is_table(path: Path) -> bool:
    return path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet")))


def pixels_of(given: Any, model: ModelConfig) -> NDArray[np.uint8]:
    """Return images that are in memory as the (N, C, S, S) bytes that the model takes.

    Args:
        given: Images of the size and the channels of the model: a picture of PIL, a list of them,
            or an array (N, C, S, S), (N, S, S, C), of grey also (N, S, S), or one such image. Its
            values are 8-bit pixels, or floats in [-1, 1], which are rounded to pixels.
        model: Architecture that decides the size and the channels of the images.

    Raises:
        UserError: If the images do not fit the model, or the values are neither.
    """
    pictures = [given] if isinstance(given, Image.Image) else given
    if isinstance(pictures, Sequence) and all(isinstance(one, Image.Image) for one in pictures):
        shown = [codec.standardize(one, f"image {index}") for index, one in enumerate(pictures)]
        if len({codec.to_pixels(one).shape for one in shown}) > 1:
            raise UserError("the pictures differ in size or colours")
        given = np.array([codec.to_pixels(one) for one in shown])
    array = np.asarray(given)
    channels, side = model.image_channels, model.image_size
    planes, pixels, grey = (channels, side, side), (side, side, channels), (side, side)
    if array.shape in (planes, pixels) or (channels == 1 and array.shape == grey):
        array = array[None]
    if array.shape[1:] == pixels and pixels != planes:
        array = array.transpose(0, 3, 1, 2)
    elif channels == 1 and array.shape[1:] == grey:
        array = array[:, None]
    if array.shape[1:] != planes or not len(array):
        wanted = f"(N, {channels}, {side}, {side}) or (N, {side}, {side}, {channels})"
        raise UserError(f"images of shape {array.shape} do not fit the model: it takes {wanted}")
    return _bytes(array)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels, or floats in [-1, 1], as bytes."""
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating) or not -1.001 <= low <= high <= 1.001:
        raise UserError(
            f"pixels from {low} to {high} ({array.dtype}): give integers from 0 to 255, or floats "
            "from -1 to 1"
        )
    if low >= 0:
        raise UserError(
            f"floats from {low:g} to {high:g} look like images in [0, 1]: give 2 * images - 1, or "
            "integers from 0 to 255"
        )
    return np.rint((array.clip(-1, 1).astype(np.float64) + 1) * 127.5).astype(np.uint8)


def _pictures(path: Path) -> Iterator[Picture]:
    if path.suffix == ".npz":
        yield from _archive(path)
    elif _is_table(path):
        yield from _table(path)
    else:
        for file in find_images(path).paths if path.is_dir() else [path]:
            yield str(file), partial(codec.decode, file, str(file)), -1


def _table(path: Path) -> Iterator[Picture]:
    table = find_table(str(path))
    labels = table.labels if table.classes else np.full(len(table.codes), -1)
    for row, image in table.stored(np.ones(len(table.codes), bool)):
        yield f"{path}#{row}", partial(_decode_row, table, image, row), int(labels[row])


def _decode_row(table: Table, image: StoredImage, row: int) -> Image.Image:
    return codec.to_image(table.decode(image, row, None))


def _archive(path: Path) -> Iterator[Picture]:
    parts = list(read_archive(path, first_label([path])))
    for part in parts:
        name = part.name if len(parts) > 1 else str(path)
        labels = [-1] * len(part.images) if part.labels is None else part.labels.tolist()
        for row, (pixels, label) in enumerate(zip(part.images, labels, strict=True)):
            yield f"{name}#{row}", partial(codec.to_image, pixels), label


def _model_pixels(
    picture: Image.Image, name: str, model: ModelConfig, resize: bool
) -> NDArray[np.uint8]:
    """Return a picture as the (C, S, S) bytes that the model takes."""
    side = model.image_size
    if not resize and picture.size != (side, side):
        width, height = picture.size
        raise UserError(
            f"{name} is {width}x{height} pixels, the model takes {side}x{side}; "
            "add --resize to resize and crop it"
        )
    if not resize and model.image_channels == 1 and not codec.is_grey(picture):
        raise UserError(
            f"{name} is in colour, the model takes grey images; add --resize to convert it"
        )
    converted = codec.convert(picture, model.image_channels)
    return codec.to_pixels(codec.resize_and_crop(converted, side))
