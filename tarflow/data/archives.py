"""Read images and labels from NumPy archives (.npz) in the usual layouts.

An archive holds one set of images, as `data` and `labels` (ImageNet64), `images` and `labels`, or
`arr_0` and `arr_1`; or one for each split, as `x_train` and `y_train` (MNIST) or `train_images`
and `train_labels` (MedMNIST). Images are bytes: (N, H, W), (N, H, W, C), (N, C, H, W), or
rows: of S S bytes for grey images, or of red, green and blue planes as in ImageNet64.

Legend: `N` images, `C` colour channels, `H` and `W` pixels, `S` pixels along one side.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarflow.data import codec
from tarflow.data.splits import Split, split_named
from tarflow.errors import UserError

_IMAGES = {"data", "image", "images", "x"}
_LABELS = {"label", "labels", "target", "targets", "y"}
_UNNAMED = {"arr_0": "images", "arr_1": "labels"}  # the names np.savez gives


@dataclass(frozen=True)
class ArchivePart:
    """The images of an archive, or of one split of it."""

    name: str
    split: Split | None  # None if the array is not named after one
    images: NDArray[np.uint8]  # (N, C, H, W)
    labels: NDArray[np.int64] | None  # (N,)


def split_in(name: str) -> Split | None:
    """Return the split that a word of the name calls, or None.

    Raises:
        UserError: If the words call two.

    >>> split_in("imagenet32_val"), split_in("x_test"), split_in("trains")
    ('validation', 'test', None)
    """
    splits = {split for word in _words(name) if (split := split_named(word))}
    if len(splits) > 1:
        raise UserError(f"'{name}' is named after two splits; rename it")
    return splits.pop() if splits else None


def read_archive(path: Path, first_label: int) -> Iterator[ArchivePart]:
    """Read the images of an archive, with labels that count from 0.

    Args:
        path: The .npz file.
        first_label: What the labels of the archive count from, as `first_label` returns.

    Raises:
        UserError: If the file is not such an archive.
    """
    with _open(path) as arrays:
        for split, keys in _parts(path, arrays).items():
            name = f"{path}:{keys['images']}"
            images = _planes(arrays[keys["images"]], name)
            labels = _labels(arrays, keys, path)
            if labels is not None:
                labels = labels - first_label
                if len(labels) != len(images):
                    raise UserError(f"{name} has {len(labels)} labels for {len(images)} images")
                if labels.min(initial=0) < 0:
                    raise UserError(f"{name} has the label {labels.min()}; remove those images")
            yield ArchivePart(name, split, images, labels)


def first_label(paths: Iterable[Path]) -> int:
    """Return what the labels of a set count from: 1 in ImageNet64, unless some label is 0.

    Raises:
        UserError: If a file is not such an archive.
    """
    lowest = []
    for path in paths:
        with _open(path) as arrays:
            for keys in _parts(path, arrays).values():
                labels = _labels(arrays, keys, path)
                if keys["images"] != "data" or labels is None:
                    return 0
                lowest.append(int(labels.min(initial=1)))
    return 1 if lowest and min(lowest) > 0 else 0


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        # NumPy leaves a file that it opened itself open if it is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"cannot read the archive {path}: {reason}") from None


def _parts(path: Path, arrays: Iterable[str]) -> dict[Split | None, dict[str, str]]:
    """Return the names of the arrays of images and of labels for each split."""
    parts: dict[Split | None, dict[str, str]] = {}
    for key in arrays:
        words = _words(key)
        role = _UNNAMED.get(key) or (
            "labels" if words & _LABELS else "images" if words & _IMAGES else None
        )
        if role is None:
            continue
        keys = parts.setdefault(split_in(key), {})
        if role in keys:
            raise UserError(f"{path} has the {role} '{keys[role]}' and '{key}'; keep one")
        keys[role] = key
    parts = {split: keys for split, keys in parts.items() if "images" in keys}
    if not parts:
        raise UserError(
            f"{path} holds no images, only the arrays {', '.join(arrays) or 'of nothing'}: it "
            "needs images or x_train, and labels or y_train"
        )
    return parts


def _labels(arrays: Any, keys: dict[str, str], path: Path) -> NDArray[np.int64] | None:
    if "labels" not in keys:
        return None
    labels: NDArray[Any] = arrays[keys["labels"]]
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: {keys['labels']} is {labels.dtype}; write integers")
    return labels.reshape(-1).astype(np.int64)


def _planes(stored: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return stored images as (N, C, H, W)."""
    if stored.dtype == np.uint8:
        if stored.ndim == 3:
            return stored[:, None]
        if stored.ndim == 4 and stored.shape[3] in (1, 3):
            return stored.transpose(0, 3, 1, 2)
        if stored.ndim == 4 and stored.shape[1] in (1, 3):
            return stored
        images = codec.unflatten(stored)
        if images is not None:
            return images
    raise UserError(
        f"{name} holds no images: it is {stored.dtype} {stored.shape}, not uint8 (N, H, W, C), "
        "(N, C, H, W), (N, H, W), (N, S S) or (N, 3 S S)"
    )


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))
