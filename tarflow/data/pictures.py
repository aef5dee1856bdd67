"""Read a user's pictures as images of a model: image files, folders, tables, NumPy archives.

Legend: `N` images, `C` colour channels, `S` pixels along one side.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tarflow.config import ModelConfig
from tarflow.data import codec
from tarflow.data.archives import first_label, read_archive
from tarflow.data.folders import find_images
from tarflow.data.images import Images
from tarflow.data.tables import find_table
from tarflow.errors import UserError

Picture: TypeAlias = tuple[str, Image.Image, int]  # name, picture, label or -1


def read_pictures(
    paths: Sequence[Path], model: ModelConfig, resize: bool = False
) -> tuple[Images, list[str]]:
    """Read all pictures at some paths, in order.

    Tables and archives (`tarflow.data.archives` has the layouts) are read in full, whatever their
    splits. Only they have labels.

    Args:
        paths: Image files, Parquet files, .npz files, folders of images or of Parquet files.
        model: Architecture that decides the size and the channels of the images.
        resize: Resize pictures of another size (shorter side, then centre) and convert those of
            other colours, instead of refusing them.

    Returns:
        Images, with label -1 where it is unknown, and a name for each.

    Raises:
        UserError: If a picture cannot be read or does not fit the model; names the picture.
    """
    pixels, labels, names = [], [], []
    for path in paths:
        for name, picture, label in _pictures(path):
            pixels.append(_model_pixels(picture, name, model, resize))
            labels.append(label)
            names.append(name)
    if not names:
        raise UserError(f"no images in {', '.join(map(str, paths))}")
    return Images(np.stack(pixels), np.array(labels, np.int64), model.classes), names


def _pictures(path: Path) -> Iterator[Picture]:
    if path.suffix == ".npz":
        yield from _archive(path)
    elif path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        yield from _table(path)
    elif path.is_dir():
        for file in find_images(path).paths:
            yield str(file), codec.decode(file, str(file)), -1
    else:
        yield str(path), codec.decode(path, str(path)), -1


def _table(path: Path) -> Iterator[Picture]:
    table = find_table(str(path))
    labels = table.labels if table.classes else np.full(len(table.codes), -1)
    images = table.images(np.ones(len(table.codes), bool))
    for row, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        yield f"{path}#{row}", codec.to_image(pixels), int(label)


def _archive(path: Path) -> Iterator[Picture]:
    parts = list(read_archive(path, first_label([path])))
    for part in parts:
        name = part.name if len(parts) > 1 else str(path)
        labels = [-1] * len(part.images) if part.labels is None else part.labels.tolist()
        for row, (pixels, label) in enumerate(zip(part.images, labels, strict=True)):
            yield f"{name}#{row}", codec.to_image(pixels), label


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
