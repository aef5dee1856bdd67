"""Which split a row of an image table is in; the table alone decides.

1. By the `split` column, else by the name of the file or its folder (`train-00000.parquet`,
   `validation/0.parquet`), else every row is `train`.
2. If that leaves `validation` or `test` empty, the hash of the row number moves one row in ten
   there from `train`, or about 10,000 rows of a large table.

Legend: `N` rows of a table.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tarflow.errors import UserError

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_ALIASES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def split_of(name: str) -> Split | None:
    """Return the split a file or folder is named after, or None.

    >>> split_of("val-00000-of-00004.parquet"), split_of("trains")
    ('validation', None)
    """
    word = re.match(r"[a-z]*", name.lower())
    return _ALIASES.get(word[0]) if word else None


def split_named(name: str) -> Split | None:
    """Return the split that a whole folder name calls, or None.

    Digits may follow, as in COCO, or a word for any images; no other, as it would be a class.

    >>> [split_named(name) for name in ("Val", "train2017", "test_images", "trainset")]
    ['validation', 'train', 'test', 'train']
    >>> [split_named(name) for name in ("test_tube", "train_interior", "train2017b")]
    [None, None, None]
    """
    word = re.fullmatch(r"([a-z]+?)[-_ ]?(?:\d+|data|images?|imgs?|set)?", name.lower())
    return _ALIASES.get(word[1]) if word else None


def codes_of_names(names: Iterable[str | None], where: str) -> NDArray[np.int8]:
    """Return the split of rows (N,) by the words of a column, as positions in `SPLITS`.

    Args:
        names: Split of each row.
        where: Names the table in errors.

    Raises:
        UserError: If a word names no split.
    """
    return np.array([_code(name, where) for name in names], np.int8)


def _code(name: str | None, where: str) -> int:
    if name is None or name not in _ALIASES:
        raise UserError(f"{where} has a split '{name}'; write train, validation or test")
    return SPLITS.index(_ALIASES[name])


def codes_of_shards(paths: Sequence[str], root: str) -> NDArray[np.int8]:
    """Return the split of each shard by the name of its file or folder; all `train` without names.

    Raises:
        UserError: If some are named after a split and others are not.
    """
    splits = []
    for path in paths:
        parts = Path(path.removeprefix(root)).parts[::-1]  # the file's name first
        splits.append(next((split for part in parts if (split := split_of(part))), None))
    codes = [SPLITS.index(split) for split in splits if split is not None]
    if not codes:
        return np.zeros(len(splits), np.int8)
    if len(codes) < len(splits):
        raise UserError(
            f"{paths[splits.index(None)]}: some shards are named after a split and this one is "
            "not; begin its name with train, validation or test"
        )
    return np.array(codes, np.int8)


def with_held_out(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the splits of rows (N,); those without a row get some of `train`."""
    codes = codes.copy()
    bucket = _hash64(np.arange(len(codes), dtype=np.uint64)) % max(10, len(codes) // 10_000)
    missing = [code for code in (1, 2) if not (codes == code).any()]
    train = codes == 0
    for code in missing:
        codes[train & (bucket == code)] = code
    return codes


def _hash64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
