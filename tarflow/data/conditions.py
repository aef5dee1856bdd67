"""Vectors that images are conditioned on: the column `condition` of a Parquet table.

A row holds one vector (`list<float>`) or a sequence of vectors (`list<list<float>>`), the same
number in every row. What stands for a dropped condition, such as the encoding of the empty text,
is kept in the metadata of the schema; without it, it is zero.

Legend: `N` rows, `P` vectors of a condition, `E` values of a vector.
"""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tarflow.errors import UserError

COLUMN = "condition"
DROPPED = b"dropped_condition"  # key of the metadata; base64 of (P, E) float32 in C order

Shape = tuple[int, int]  # P, E
_ROWS = 1024  # read at a time


def to_array(column: pa.Array, where: str, shape: Shape | None = None) -> NDArray[np.float32]:
    """Return a column of conditions as an array (N, P, E).

    Args:
        column: One vector or a sequence of vectors for each of at least one row.
        where: Names the rows in errors.
        shape: P and E that every row must have; by default those of the first row.

    Raises:
        UserError: If values are missing or not finite, or rows differ in shape.
    """
    sizes: list[int] = []
    values = column
    while (
        pa.types.is_list(values.type)
        or pa.types.is_large_list(values.type)
        or (pa.types.is_fixed_size_list(values.type))
    ):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or lengths[0] in (None, 0):
            raise UserError(f"{where}: conditions must all have one shape, without gaps")
        sizes.append(lengths[0])
        values = values.flatten()
    number = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    if not number or len(sizes) not in (1, 2):
        raise UserError(
            f"{where}: the column '{COLUMN}' is {column.type}; write a list of numbers, or a list "
            "of such lists, for each image"
        )
    own = (1, *sizes)[-2:]
    if shape is not None and own != shape:
        raise UserError(
            f"{where}: a condition has {own[0]} x {own[1]} values, another {shape[0]} x {shape[1]}"
        )
    if values.null_count:
        raise UserError(f"{where}: conditions must all have one shape, without gaps")
    flat = values.cast(pa.float32()).to_numpy(zero_copy_only=False)
    array: NDArray[np.float32] = flat.reshape(-1, *own).copy()  # Arrow's memory is read-only
    if not np.isfinite(array).all():
        raise UserError(f"{where}: conditions hold values that are not finite")
    return array


def of_file(
    file: pq.ParquetFile, where: str, rows: int, shape: Shape | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield the conditions of a Parquet file, `rows` rows at a time."""
    for batch in file.iter_batches(rows, columns=[COLUMN]):
        if len(batch):
            yield to_array(batch.column(COLUMN), where, shape)


def shape_of(files: Iterable[pq.ParquetFile], where: str) -> Shape:
    """Return P and E of the first row of files; zeros if they have no row."""
    for file in files:
        for part in of_file(file, where, 1):
            return part.shape[1], part.shape[2]
    return 0, 0


def fill(
    files: Iterable[pq.ParquetFile],
    where: str,
    shape: Shape,
    chosen: NDArray[np.bool_],
    target: NDArray[np.float32],
) -> None:
    """Write the conditions of the rows that a mask (N,) chooses to `target` (n, P, E), in order.

    Args:
        files: Files of a table, in order.
        where: Names the table in errors.
        shape: P and E that every row must have.
        chosen: Rows to read.
        target: Array to fill.

    Raises:
        UserError: As `to_array`.
    """
    start = filled = 0
    for file in files:
        for part in of_file(file, where, _ROWS, shape):
            kept = part[chosen[start : start + len(part)]]
            target[filled : filled + len(kept)] = kept
            start, filled = start + len(part), filled + len(kept)


def dropped(schema: pa.Schema, shape: Shape) -> NDArray[np.float32]:
    """Return what stands for a dropped condition, (P, E)."""
    stored = (schema.metadata or {}).get(DROPPED)
    if stored is None:
        return np.zeros(shape, np.float32)
    return np.frombuffer(base64.b64decode(stored), np.float32).reshape(shape).copy()


def stored_dropped(dropped: NDArray[np.float32]) -> bytes:
    """Return what the metadata of a schema hold under `DROPPED`."""
    return base64.b64encode(dropped.astype(np.float32).tobytes())


def read_conditions(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Read all conditions of a Parquet file, and what it says stands for a dropped one.

    The file needs no images.

    Raises:
        UserError: If it is not such a file.
    """
    missing = UserError(f"{path} has no rows with a column '{COLUMN}'")
    try:
        schema = pq.read_schema(path)
        if COLUMN not in schema.names:
            raise missing
        table = pq.read_table(path, columns=[COLUMN])
    except FileNotFoundError:
        raise UserError(f"cannot read conditions from {path}: no such file") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"cannot read conditions from {path}: {str(error).splitlines()[0]}"
        ) from None
    if not len(table):
        raise missing
    conditions = to_array(table[COLUMN].combine_chunks(), str(path))
    has = DROPPED in (schema.metadata or {})
    return conditions, dropped(schema, conditions.shape[1:]) if has else None
