"""Pictures of many images: a grid that people can see, and the words a PNG file keeps about it.

Legend: `N` images, `c` colour channels, `H` height and width.
"""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from tarflow import __version__
from tarflow.config import SamplerConfig
from tarflow.config_files import to_dict
from tarflow.model.noise import to_pixels
from tarflow.record import environment, replacing

GAP = 2  # white pixels between images, before enlarging
LONGER_SIDE = 512  # pixels that the longer side of a picture has at least
COUNT = 64  # images of a picture
COLUMNS = 8  # images in a row, unless classes decide
MOST_CLASSES = 20  # that have a row each


def usual_count(classes: int) -> int:
    """Return how many images a picture of a number of classes shows: equally many of each.

    >>> usual_count(0), usual_count(10), usual_count(1000)
    (64, 60, 64)
    """
    return COUNT // classes * classes if 0 < classes <= MOST_CLASSES else COUNT


def image_grid(
    images: Tensor, labels: Tensor | None = None, columns: int | None = None
) -> Image.Image:
    """Lay out images as one picture, enlarged by a whole factor if it would be small.

    With labels and no number of columns every class has a row, as long as the classes are few and
    most have several images; all other images are laid out row by row.

    Args:
        images: (N, c, H, H) in [-1, 1], or 8-bit pixels.
        labels: (N,) int64 classes, or `None`.
        columns: Images in a row.

    Returns:
        A grey or RGB picture. Its `info` says how to read it: the factor, `scale`; the `side` of
        an image before enlarging; and `rows`, which are classes or images.

    >>> image_grid(torch.zeros(5, 1, 200, 200), columns=3).size
    (608, 406)
    >>> image_grid(torch.zeros(4, 1, 8, 8), torch.tensor([1, 0, 1, 1])).info
    {'scale': '16', 'side': '8', 'rows': 'classes'}
    """
    count, colours, height, width = images.shape
    by_class = columns is None and labels is not None and _has_rows(labels)
    if by_class and labels is not None:
        cells = list(_by_class(labels))
    else:
        columns = max(1, min(columns or COLUMNS, count))
        cells = [divmod(index, columns) for index in range(count)]
    rows, columns = (1 + max(cell[axis] for cell in cells) for axis in (0, 1))
    canvas = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, colours), 255, np.uint8
    )
    pixels = images if images.dtype == torch.uint8 else to_pixels(images)
    for (row, column), picture in zip(
        cells, pixels.permute(0, 2, 3, 1).cpu().numpy(), strict=True
    ):
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        canvas[top : top + height, left : left + width] = picture
    grid = Image.fromarray(canvas[:, :, 0] if colours == 1 else canvas)
    scale = -(-LONGER_SIDE // max(grid.size))
    grid = grid.resize((scale * grid.width, scale * grid.height), Image.Resampling.NEAREST)
    kind = "classes" if by_class else "images"
    grid.info = {"scale": str(scale), "side": str(width), "rows": kind}
    return grid


def _has_rows(labels: Tensor) -> bool:
    classes = len(labels.unique())
    return classes <= MOST_CLASSES and 2 * classes <= len(labels)


def _by_class(labels: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the row and column of each image if every class has a row, in order of the classes."""
    classes = labels.unique()  # sorted
    seen = [0] * len(classes)
    for row in torch.searchsorted(classes, labels).tolist():
        yield row, seen[row]
        seen[row] += 1


def captions(model: str, seed: int, sampler: SamplerConfig, labels: str = "") -> dict[str, str]:
    """Return the words that say where a picture of samples comes from.

    Args:
        model: Name of the model.
        seed: Seed of the noise.
        sampler: How the images were sampled.
        labels: Classes of the images, empty without classes.
    """
    return {
        "model": model,
        "seed": str(seed),
        "guidance": f"{sampler.guidance:g}",
        "labels": labels,
        "sampler": json.dumps(to_dict(sampler)),
        "version": __version__,
        "git": environment()["git"],
    }


def png_of(grid: Image.Image, words: Mapping[str, str]) -> bytes:
    """Return a picture from `image_grid` as a PNG file, with words that image viewers show."""
    text, written = PngInfo(), io.BytesIO()
    for keyword, value in (("Software", "tarflow"), *grid.info.items(), *words.items()):
        text.add_text(str(keyword), value)
    grid.save(written, format="PNG", pnginfo=text)
    return written.getvalue()


def save_grid(path: Path, grid: Image.Image, words: Mapping[str, str]) -> None:
    """Write a picture as PNG, whole or not at all, with words that image viewers show.

    Args:
        path: File to write.
        grid: Picture from `image_grid`.
        words: Text by keyword, such as those of `captions`.

    Raises:
        UserError: If the file cannot be written.
    """
    content = png_of(grid, words)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
