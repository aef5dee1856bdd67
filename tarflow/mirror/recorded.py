"""What the folder of an ended run holds, as a tracker takes it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tarflow.record import read_result, read_table


@dataclass(frozen=True)
class Recorded:
    """A run that has ended."""

    run_id: str
    name: str
    config: Mapping[str, Any]  # values by name, such as model.channels
    row: Mapping[str, Any]  # known columns of `runs.parquet` that no config holds
    evaluations: tuple[Mapping[str, Any], ...]  # rows of `evaluations.parquet`, known columns
    curve: tuple[Mapping[str, float], ...]  # images, and what was measured then
    pictures: tuple[tuple[str, int, bytes], ...]  # name, images seen and PNG, in order of images


class Tracker(Protocol):
    """Where runs are mirrored. Both methods replace what an earlier call has left."""

    def put_run(self, run: Recorded) -> None:
        """Write a run."""

    def put_study(self, page: bytes, words: str) -> None:
        """Write the report of a study, and in words what it advises."""


def read_recorded(folder: Path) -> Recorded | None:
    """Return the run of a folder, or None if it has not ended."""
    result = read_result(folder)
    if result is None:
        return None
    row = known(result["run"])
    images = row["images"]
    pictures, curve = [], []
    if (path := folder / "curve.parquet").exists():
        curve = [known(point) for point in read_table(path).to_pylist()]
    if (path := folder / "previews.parquet").exists():
        previews = read_table(path).to_pylist()
        pictures += [("previews", each["images"], each["samples"]) for each in previews]
        held_out = {each["images"]: each["loss"] for each in previews if each["loss"] is not None}
        curve += [{"images": seen, "validation_loss": loss} for seen, loss in held_out.items()]
    if (path := folder / "samples.png").exists():
        pictures.append(("samples", images, path.read_bytes()))
    return Recorded(
        run_id=row["run_id"],
        name=f"{row['label']} {row['run_id']}",
        config=dict(flat(json.loads(row.pop("config")))),
        row=row,
        evaluations=tuple(map(known, result["evaluations"])),
        curve=tuple(sorted(curve, key=lambda point: point["images"])),
        pictures=tuple(pictures),
    )


def known(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that have a value."""
    return {name: value for name, value in row.items() if value is not None}


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries by their dotted names.

    >>> dict(flat({"model": {"channels": 8}, "seed": 0}))
    {'model.channels': 8, 'seed': 0}
    """
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns of a row that are numbers.

    >>> numbers({"bpd": 1.5, "label": "c8", "own": True})
    {'bpd': 1.5}
    """
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
