"""Write image tables: Parquet shards in the Hugging Face image convention, whole or not at all."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tarflow.data.splits import SPLITS, Split
from tarflow.errors import UserError

_SHARD_ROWS = 16384

Row = tuple[Split, bytes, int | None]  # split, PNG, label


def write_shards(target: Path, rows: Iterable[Row], names: Sequence[str]) -> dict[str, int]:
    """Write rows as Parquet shards of their split into a new folder, whole or not at all.

    Rows without label (None) give a table without that column; `names` are those of the classes.

    Raises:
        UserError: if the folder exists.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    waiting: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    shards, counts = Counter[str](), Counter[str]()

    def flush(split: Split) -> None:
        path = temporary / f"{split}-{shards[split]:05d}.parquet"
        pq.write_table(_table(waiting[split], names), path, row_group_size=1024)
        shards[split] += 1
        waiting[split].clear()

    try:
        for row in rows:
            waiting[row[0]].append(row)
            counts[row[0]] += 1
            if len(waiting[row[0]]) == _SHARD_ROWS:
                flush(row[0])
        for split in SPLITS:
            if waiting[split]:
                flush(split)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dict(counts)


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _table(rows: list[Row], names: Sequence[str]) -> pa.Table:
    """Return rows as a table in the Hugging Face convention, described in its metadata."""
    columns = {"image": pa.array([{"bytes": png, "path": None} for _, png, _ in rows], _IMAGE)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    labels = [label for _, _, label in rows]
    if None not in labels:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = (
            {"names": list(names), "_type": "ClassLabel"}
            if names
            else {"dtype": "int64", "_type": "Value"}
        )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)
