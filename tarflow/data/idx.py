"""Read IDX files, the format of MNIST: one file of images and one of labels for each split.

They are named `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or `t10k-` for the test
split, with or without `.gz`. A file opens with big-endian integers, its kind and its sizes; bytes
follow (https://yann.lecun.com/exdb/mnist).

Legend: `N` images, `H` and `W` pixels.
"""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tarflow.data.splits import Split, split_named
from tarflow.errors import UserError

_NAME = re.compile(r"([a-z0-9]+)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_BYTES = 0x800  # the kind of a file of bytes, to which its dimensions are added
_FASHION = "657fbd221bfc9f41"  # hash of the training labels of Fashion-MNIST (Xiao et al. 2017)
_FASHION_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


@dataclass(frozen=True)
class IdxPart:
    """The images of one split."""

    split: Split
    images: NDArray[np.uint8]  # (N, H, W)
    labels: NDArray[np.uint8] | None  # (N,)


def holds_idx(folder: Path) -> bool:
    """Tell whether a folder holds IDX files by their names."""
    return any(_NAME.fullmatch(path.name) for path in folder.glob("*-ubyte*"))


def read_idx(folder: Path) -> Iterator[IdxPart]:
    """Read the splits of a folder of IDX files.

    Raises:
        UserError: If files are missing, damaged or of another kind.
    """
    files = _find(folder)
    unlabelled = [split for split, kinds in files.items() if "labels" not in kinds]
    if unlabelled and len(unlabelled) < len(files):
        raise UserError(f"{folder}: the {unlabelled[0]} images have no file of labels")
    for split, kinds in files.items():
        if "images" not in kinds:
            raise UserError(f"{folder}: the {split} labels have no file of images")
        images = _read(kinds["images"], dimensions=3)
        labels = _read(kinds["labels"], dimensions=1) if "labels" in kinds else None
        if labels is not None and len(labels) != len(images):
            raise UserError(
                f"{kinds['labels']} has {len(labels):,} labels for {len(images):,} images"
            )
        yield IdxPart(split, images, labels)


def class_names(part: IdxPart) -> list[str]:
    """Return the names of the classes if the labels are those of a known set, or none."""
    if part.labels is None:
        return []
    digest = hashlib.sha256(part.labels.tobytes()).hexdigest()
    return _FASHION_CLASSES if digest.startswith(_FASHION) else []


def _find(folder: Path) -> dict[Split, dict[str, Path]]:
    """Return the files of images and labels of each split."""
    files: dict[Split, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # files follow their compressed copies
        if match := _NAME.fullmatch(path.name):
            split = "test" if match[1] == "t10k" else split_named(match[1])
            if split is None:
                raise UserError(f"{path} is not named after train, t10k, validation or test")
            files.setdefault(split, {})[match[2]] = path
    if not files:
        raise UserError(f"{folder} holds no IDX files, such as train-images-idx3-ubyte.gz")
    return files


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the values of an IDX file that must have this number of dimensions."""
    try:
        stored = path.read_bytes()
        content = gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from None
    start = 4 * (1 + dimensions)
    if len(content) < start:
        raise UserError(f"{path} is damaged: it ends inside its header; download it again")
    kind, *shape = np.frombuffer(content[:start], ">u4").tolist()
    if kind != _BYTES + dimensions:
        raise UserError(
            f"{path} is no such IDX file: it begins with {kind}, not {_BYTES + dimensions}"
        )
    if len(content) != start + math.prod(shape):
        raise UserError(
            f"{path} is damaged: its header announces {math.prod(shape):,} bytes and "
            f"{len(content) - start:,} follow; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
