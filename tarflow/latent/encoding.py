"""Encode a data set as a table of latents, a shard at a time.

Legend: `N` images, `B` batch, `C` channels and `S` values along one side of a latent.
"""

import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tarflow import data
from tarflow.config import DataConfig
from tarflow.config_files import to_dict
from tarflow.data.procedural import find_procedural
from tarflow.data.splits import SPLITS, Split
from tarflow.data.tables import find_table
from tarflow.errors import UserError
from tarflow.human import Progress, silent
from tarflow.latent.autoencoder import BATCH, Autoencoder
from tarflow.latent_space import FILE, KEY, LATENT, LatentSpace
from tarflow.model.noise import unit
from tarflow.record import read_json, replacing, write_json
from tarflow.storage import expand

SHARD_ROWS = 16384


def encode_table(
    name: str,
    target: Path,
    autoencoder: Autoencoder,
    dtype: Literal["float16", "float32"] = "float16",
    progress: Progress = silent,
) -> LatentSpace:
    """Encode all splits of a data set into a new folder of shards.

    Labels, conditions and other columns are copied. An interrupted call resumes after the last
    whole shard; the folder appears when all are written.

    Args:
        name: Data set to encode, as in `data.name`.
        target: Folder to create.
        autoencoder: Encoder; a latent is the scaled mean of its posterior.
        dtype: Type of the stored values.
        progress: Called after each batch of rows.

    Returns:
        What the table says about its latents.

    Raises:
        UserError: If the target exists, the images do not fit the autoencoder, a row cannot be
            decoded, or a latent is not finite in this type.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    config = data.hash_data(DataConfig(name=name))
    space = _space(config, autoencoder, dtype)
    partial = target.with_name(f".{target.name}.partial")
    _start_or_resume(partial, space)
    counts = data.describe(config)
    total, encoded, started = counts.train + counts.validation + counts.test, 0, time.monotonic()
    skipped = 0

    def counted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        nonlocal encoded
        for table in tables:
            encoded += len(table)
            progress(encoded, total - skipped, time.monotonic() - started)
            yield table

    for split in SPLITS:
        whole = sorted(partial.glob(f"{split}-*.parquet"))
        start = sum(pq.read_metadata(path).num_rows for path in whole)
        skipped += start
        rows = counted(_encoded(config, split, start, autoencoder, space))
        for number, table in enumerate(_shards(rows), start=len(whole)):
            with replacing(partial / f"{split}-{number:05d}.parquet") as temporary:
                pq.write_table(table, temporary, row_group_size=1024)
    partial.rename(target)
    return space


def _space(
    config: DataConfig, autoencoder: Autoencoder, dtype: Literal["float16", "float32"]
) -> LatentSpace:
    """Describe the latents of a data set, from those of its first image."""
    if data.latent_space(config):
        raise UserError(f"{config.name} holds latents already: name a table of images")
    images, _ = next(data.rows(config, "train"))
    channels, side = images.shape[1:3]
    if channels not in (1, autoencoder.image_channels):
        raise UserError(
            f"{autoencoder.folder} encodes grey images, {config.name} has colours; import them "
            "with --grey"
        )
    shape = autoencoder.encode(unit(torch.tensor(images[:1]))).shape[1:]
    decoded = autoencoder.decode(torch.zeros(1, *shape)).shape[2:]
    if decoded != (side, side):
        raise UserError(
            f"{autoencoder.folder} makes images of {decoded[0]}x{decoded[1]} pixels from those of "
            f"{side}x{side}: import them in a size that its factor divides"
        )
    return LatentSpace(
        shape=(shape[0], shape[1], shape[2]),
        dtype=dtype,
        scaling=autoencoder.scaling,
        shift=autoencoder.shift,
        autoencoder=str(autoencoder.folder.resolve()),
        autoencoder_hash=autoencoder.digest,
        image_channels=channels,
        image_size=side,
        source=_lasting(config.name),
        source_hash=config.hash,
    )


def _lasting(name: str) -> str:
    """Return the name of a data set that holds in any folder: local paths become absolute."""
    path = expand(Path(name))
    embedded = name == "digits" or find_procedural(name)
    return name if embedded or not path.exists() else str(path.resolve())


def _start_or_resume(folder: Path, space: LatentSpace) -> None:
    """Make the folder of unfinished shards; remove those of other settings."""
    settings = to_dict(space)
    if read_json(folder / FILE) == settings:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / FILE, settings)


def _encoded(
    config: DataConfig, split: Split, start: int, autoencoder: Autoencoder, space: LatentSpace
) -> Iterator[pa.Table]:
    """Yield the rows of a split from one on, with latents instead of images."""
    for images, columns in data.rows(config, split, start):
        stated = {KEY.encode(): space.anywhere.to_json().encode()}
        metadata = dict(columns.schema.metadata or {}) | stated
        for first in range(0, len(images), BATCH):
            part = torch.tensor(images[first : first + BATCH])
            stored = _bytes(autoencoder.encode(unit(part)).numpy(), space, config.name)
            arrays = [stored, *(column.slice(first, BATCH) for column in columns.columns)]
            names = [LATENT, *columns.schema.names]
            yield pa.Table.from_arrays(arrays, names).replace_schema_metadata(metadata)


def _bytes(latents: NDArray[np.float32], space: LatentSpace, name: str) -> pa.Array:
    """Return latents (B, C, S, S) as bytes of the stored type, one value a row."""
    with np.errstate(over="ignore"):  # refused below, in a line
        values = latents.astype(np.dtype(space.dtype).newbyteorder("<"))
    if not np.isfinite(values).all():
        raise UserError(
            f"some latents of {name} are not finite in {space.dtype}: write --dtype float32, or "
            "check the autoencoder"
        )
    rows = [row.tobytes() for row in values]
    return pa.array(rows, pa.binary(space.row_bytes))


def _shards(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join tables of rows into tables of `SHARD_ROWS`, the last one shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= SHARD_ROWS:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, SHARD_ROWS)
            waiting = [joined.slice(SHARD_ROWS)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def describe_encoding(target: Path, space: LatentSpace) -> list[str]:
    """Return lines on what a table of latents holds, and how a config uses it."""
    table = find_table(str(target))
    counts = ", ".join(f"{count:,} {split}" for split, count in table.counts.items())
    channels, side, _ = space.shape
    values = np.stack(list(islice(table.floats(table.codes == 0), 256)))
    return [
        f"{target}: {counts}",
        f"latents of {channels} x {side} x {side} values ({space.dtype}), standard deviation "
        f"{values.astype(np.float64).std():.3f}, of images of {space.image_size}x"
        f"{space.image_size} pixels",
        f"in a config: data.name {target}, model.image_size {side}, model.image_channels "
        f"{channels}, and noise.std such as 0.3",
    ]
