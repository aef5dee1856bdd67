"""Images for training: one uint8 array per split, memory-mapped and shared by all processes.

A data set is a name: `digits` (5,000 real MNIST images, in the package), `leaves` or `markov`
(procedural; see `tarflow.data.procedural`), or the path or URI of an image table
(`tarflow.data.tables`).
It is decoded once per machine into `$TARFLOW_CACHE/<hash>/<split>/`.

Legend: `N` images, `B` images of a batch, `C` colour channels, `S` pixels along one side.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tarflow.config import DataConfig, RunConfig
from tarflow.data.procedural import find_procedural
from tarflow.data.splits import SPLITS, Split
from tarflow.data.tables import find_table
from tarflow.errors import UserError
from tarflow.storage import cache_folder

_DIGITS = Path(__file__).parent / "embedded" / "mnist5k.parquet"
_DIGITS_COUNTS = (4000, 500, 500)  # train, validation, test, by index


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a data set holds, known without decoding it."""

    image_size: int  # S, pixels along one side
    channels: int  # C
    classes: int  # 0 if the images have no labels
    train: int  # images of each split
    validation: int
    test: int


@dataclass(frozen=True)
class Images:
    """One split of a data set."""

    pixels: NDArray[np.uint8]  # (N, C, S, S), read only, memory-mapped
    labels: NDArray[np.int64]  # (N,)
    classes: int  # 0 if the images have no labels

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.pixels)

    @property
    def image_size(self) -> int:
        """Pixels along one side, S."""
        return int(self.pixels.shape[2])

    @property
    def channels(self) -> int:
        """Colour channels, C."""
        return int(self.pixels.shape[1])


def hash_data(config: DataConfig) -> DataConfig:
    """Fill in the content hash.

    Raises:
        UserError: if there is no such data set, or it no longer has the hash of the config.
    """
    digest = _source(config).digest
    if config.hash not in ("", digest):
        raise UserError(
            f"the data set {config.name} has changed: its content hash is {digest}, the config "
            f"says {config.hash}; remove data.hash to use the data as they are now"
        )
    return replace(config, hash=digest)


def match_data(config: RunConfig) -> RunConfig:
    """Fill in the content hash of a run's data, once its model takes such images.

    Raises:
        UserError: as `hash_data`; if the images do not fit the model.
    """
    model, found = config.model, describe(config.data)
    for name, wanted, there in (
        ("image_size", model.image_size, found.image_size),
        ("image_channels", model.image_channels, found.channels),
        ("classes", model.classes, model.classes and found.classes),
    ):
        if wanted != there:
            raise UserError(
                f"model.{name} is {wanted}, but the data set {config.data.name} has {there}; "
                f"write {there}"
            )
    return replace(config, data=hash_data(config.data))


def describe(config: DataConfig) -> Description:
    """Return the shape of the images and their number without decoding them.

    Raises:
        UserError: if there is no such data set, or it is not one of images.
    """
    source = _source(config)
    channels, image_size, _ = source.shape
    return Description(
        image_size=image_size, channels=channels, classes=source.classes, **source.counts
    )


def open_split(config: DataConfig, split: Split) -> Images:
    """Open the images of a split, decoding them first if this machine has not yet.

    Raises:
        UserError: as `hash_data`; if the split is empty; if a row cannot be decoded.
    """
    if split not in SPLITS:
        raise UserError(f"no split '{split}': write {', '.join(SPLITS)}")
    source = _source(config)
    folder = cache_folder() / hash_data(config).hash / split
    try:
        if not folder.exists():
            with _lock(folder.with_suffix(".lock")):
                if not folder.exists():  # another process may just have made it
                    _decode(source, split, folder)
    except OSError as error:
        raise UserError(
            f"cannot decode {config.name} into {folder}: {error.strerror or error}; "
            "TARFLOW_CACHE chooses another folder"
        ) from None
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Images(pixels.view(np.ndarray), np.load(folder / "labels.npy"), source.classes)


def order(n: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """Return the indices of the training images number `start` to `start + count`, (count,).

    A function of the seed and the images seen only, so it does not depend on batch size, workers
    or restarts. Every epoch, `n` images long, is a permutation of its own.

    >>> order(4, seed=0, start=0, count=8).tolist() == [
    ...     *order(4, seed=0, start=0, count=3),
    ...     *order(4, seed=0, start=3, count=5),
    ... ]
    True
    """
    if n < 1 or seed < 0 or start < 0 or count < 0:
        raise ValueError("order needs n >= 1 and seed, start, count >= 0")
    indices = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        epoch, offset = divmod(start + filled, n)
        part = _permutation(n, seed, epoch)[offset : offset + count - filled]
        indices[filled : filled + len(part)] = part
        filled += len(part)
    return indices


def batch(images: Images, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Copy the images at `indices` into a new contiguous array, (B, C, S, S)."""
    copied: NDArray[np.uint8] = images.pixels.take(indices, axis=0)
    return copied


class _Source(Protocol):
    """What a data set must say and do; `Table` and the procedural sets."""

    @property
    def digest(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, S, S)
    @property
    def classes(self) -> int: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    def fill(self, split: Split, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None: ...


def _source(config: DataConfig) -> _Source:
    memory = cache_folder() / "digests"
    if config.name == "digits":
        return find_table(str(_DIGITS), memory, _DIGITS_COUNTS)
    return find_procedural(config.name) or find_table(config.name, memory)


def _decode(source: _Source, split: Split, folder: Path) -> None:
    """Write `pixels.npy` and `labels.npy` of a split, whole or not at all."""
    count = source.counts[split]
    if not count:
        raise UserError(
            f"the {split} split is empty; add rows, or a 'split' column that names some {split}"
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same id
    temporary.mkdir(parents=True)
    try:
        pixels = np.lib.format.open_memmap(
            temporary / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, *source.shape)
        )
        labels = np.empty(count, np.int64)
        source.fill(split, pixels, labels)
        pixels.flush()
        np.save(temporary / "labels.npy", labels)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block; a killed one lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@lru_cache(maxsize=2)  # a run needs two where a batch straddles epochs
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a uniform permutation of n; raw Philox output does not change between releases."""
    key = np.array([seed, epoch], np.uint64)
    ranks = np.random.Philox(key=key).random_raw(n)
    return np.argsort(ranks, kind="stable")
