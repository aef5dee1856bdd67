"""What the folder of a run holds, as a tracker takes it."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from tarflow.record import STARTED, read_json, read_result, read_table


@dataclass(frozen=True)
class Recorded:
    """A run that has ended, or what one that trains has recorded so far."""

    run_id: str
    name: str
    config: Mapping[str, Any]  # values by name, such as model.channels
    row: Mapping[str, Any]  # known columns of `runs.parquet` that no config holds
    evaluations: tuple[Mapping[str, Any], ...]  # rows of `evaluations.parquet`, known columns
    curve: tuple[Mapping[str, float], ...]  # images, and what was measured then
    pictures: tuple[tuple[str, int, bytes], ...]  # name, images seen and PNG, in order of images

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return "status" in self.row

    @property
    def images(self) -> int:
        """Number of training images up to which it is recorded."""
        return int(self.row["images"] if self.ended else self.curve[-1]["images"])

    def after(self, images: int) -> "Recorded":
        """Return the run without what it had recorded at a number of training images."""
        curve = tuple(point for point in self.curve if point["images"] > images)
        new = (each for each in self.pictures if each[0] == "samples" or each[1] > images)
        return replace(self, curve=curve, pictures=tuple(new))


class Tracker(Protocol):
    """Where runs are mirrored."""

    def put_run(self, run: Recorded, since: int) -> None:
        """Write a run, again while it trains and for the last time when it has ended.

        Args:
            run: The run, without what earlier calls have written.
            since: Training images up to which those have; 0 replaces whatever is there.
        """

    def put_law(self, picture: bytes, runs: int) -> None:
        """Write the picture of the law, again when it has changed.

        What earlier commands have written of the study is replaced, where that can be.

        Args:
            picture: The picture, a PNG.
            runs: Number of runs that have ended.
        """

    def put_study(self, page: bytes, words: str) -> None:
        """Write the report of a study that has ended, and in words what it advises."""


def read_recorded(folder: Path) -> Recorded | None:
    """Return the run of a folder, or None if it has neither ended nor a point of its curve.

    One that failed and is being tried again has not ended.
    """
    result, curve = read_result(folder), read_curve(folder)
    started = read_json(folder / STARTED)
    if result and (result["run"]["status"] == "done" or not started):
        started = result["run"]
    else:
        result = None
    if not started or not (result or curve):
        return None
    row = known(started)
    pictures: list[tuple[str, int, bytes]] = []
    if (path := folder / "previews.parquet").exists():
        last = row["images"] if result else curve[-1]["images"]
        previews = [each for each in read_table(path).to_pylist() if each["images"] <= last]
        pictures += [("previews", each["images"], each["samples"]) for each in previews]
        held_out = {each["images"]: each["loss"] for each in previews if each["loss"] is not None}
        curve += [{"images": seen, "validation_loss": loss} for seen, loss in held_out.items()]
    if result and (path := folder / "samples.png").exists():
        pictures.append(("samples", row["images"], path.read_bytes()))
    return Recorded(
        run_id=row["run_id"],
        name=f"{row['label']} {row['run_id']}",
        config=dict(flat(json.loads(row.pop("config")))),
        row=row,
        evaluations=tuple(map(known, result["evaluations"])) if result else (),
        curve=tuple(sorted(curve, key=lambda point: point["images"])),
        pictures=tuple(pictures),
    )


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Return the points of a run's curve, with the images per second since the one before."""
    path = folder / "curve.parquet"
    if not path.exists():
        return []
    curve = [known(point) for point in read_table(path).to_pylist()]
    for before, point in pairwise(curve):
        seconds = point["seconds"] - before["seconds"]
        if seconds > 0:
            point["images_per_second"] = (point["images"] - before["images"]) / seconds
    return curve


def by_step(
    run: Recorded, picture: Callable[[bytes], Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield all that was recorded at a number of images, by name, in order of images.

    Args:
        run: The run.
        picture: Makes of a PNG what the tracker takes.
    """
    steps: dict[int, dict[str, Any]] = {}
    for point in run.curve:
        steps.setdefault(int(point["images"]), {}).update(point)
    for name, images, png in run.pictures:
        steps.setdefault(images, {})[name] = picture(png)
    yield from sorted(steps.items())


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
