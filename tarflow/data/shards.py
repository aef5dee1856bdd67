"""Write images as the shards of an image table, and say what the table holds."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from tarflow import human
from tarflow.config import FEWEST_IMAGES
from tarflow.data.splits import SPLITS, Split
from tarflow.data.tables import find_table
from tarflow.errors import UserError

Row: TypeAlias = tuple[Split, bytes, int | None]  # split, PNG file, label

_SHARD_ROWS = 16384
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Imported:
    """What an import wrote and what it passed over."""

    counts: dict[str, int]  # images written to each split
    notes: list[str] = field(default_factory=list)  # lines for the user


def write(target: Path, rows: Iterable[Row], names: Sequence[str]) -> Imported:
    """Write rows as `write_shards` does, and say how training will split them."""
    counts = write_shards(target, rows, names)
    notes = list(_split_notes(target, counts))
    if names:
        notes.append(f"classes ({len(names):,}): {human.names(names)}")
    return Imported(counts, notes)


def write_shards(target: Path, rows: Iterable[Row], names: Sequence[str]) -> dict[str, int]:
    """Write rows as Parquet shards of their split into a new folder, whole or not at all.

    A row without label (None) leaves the label column out; `names` are those of the classes.

    Raises:
        UserError: If the folder exists, or there are no rows.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    waiting: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    counts = Counter[str]()

    def flush(split: Split) -> None:
        path = temporary / f"{split}-{(counts[split] - 1) // _SHARD_ROWS:05d}.parquet"
        pq.write_table(_table(waiting[split], names), path, row_group_size=1024)
        waiting[split].clear()

    try:
        for row in rows:
            split = row[0]
            waiting[split].append(row)
            counts[split] += 1
            if len(waiting[split]) == _SHARD_ROWS:
                flush(split)
        if not counts:
            raise UserError("no images to write: all were left out")
        for split in SPLITS:
            if waiting[split]:
                flush(split)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {split: counts[split] for split in SPLITS if counts[split]}


def _split_notes(target: Path, counts: Mapping[str, int]) -> Iterator[str]:
    """Yield the splits that are taken out of `train`, and those with too few images for a run."""
    splits = find_table(str(target)).counts
    if missing := [split for split in SPLITS[1:] if split not in counts]:
        held_out = ", ".join(f"{count:,} {split}" for split, count in splits.items())
        found = f"no {' or '.join(missing)} images found"
        yield f"{found}; runs will take some out of train, which gives {held_out}"
    if empty := [split for split, count in splits.items() if not count]:
        yield f"runs will fail, as there are no images for {' and '.join(empty)}; import more"
    elif few := [split for split in SPLITS[1:] if splits[split] < FEWEST_IMAGES]:
        yield (
            f"runs need {FEWEST_IMAGES} held-out images: import more for {' and '.join(few)}, or "
            "set evaluation.samples to 0"
        )


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
