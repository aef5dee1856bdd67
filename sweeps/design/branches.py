"""Which runs share their training, where each starts, and which of them wait for another.

Of the runs that differ only in their images (`tarflow.train.trunk`), the longest unfinished one is
the trunk. It saves a checkpoint wherever a shorter run branches off. The branch waits for that
checkpoint, which arrives no later than it would have reached that point alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.design.study import PlannedRun
from tarflow.config import RunConfig
from tarflow.record import read_json
from tarflow.train.checkpoint import checkpoint_name, remove_checkpoints, saved_images
from tarflow.train.schedule import shared_images
from tarflow.train.trunk import any_length, trunk_folder


@dataclass(frozen=True)
class StartPoint:
    """Where a run starts."""

    images: int = 0  # images that it need not train on any more
    inherited: int = 0  # images that a trunk trains on for it
    after: str = ""  # id of the run whose checkpoint it waits for; empty if it need not wait


def start_points(todo: Sequence[PlannedRun], out: Path) -> dict[str, StartPoint]:
    """Return where each unfinished run starts, given the checkpoints in the study's folder.

    Args:
        todo: Runs that are not done.
        out: Folder of the study.

    Returns:
        The start of each run, by run id.
    """
    starts: dict[str, StartPoint] = {}
    for family in families(todo):
        shared = saved_images(trunk_folder(family[0].config, out)) if family[0].trunk else []
        for index, run in enumerate(family):
            own = out / "runs" / run.run_id / "state"
            if checkpoints := saved_images(own):
                metadata = read_json(own / f"{checkpoint_name(checkpoints[-1])}.json") or {}
                start = StartPoint(checkpoints[-1], metadata.get("inherited", 0))
            else:
                branch = shared_images(run.config) if run.trunk else 0
                saved = max((images for images in shared if images <= branch), default=0)
                ahead = [x.run_id for x in family[:index] if starts[x.run_id].images < branch]
                if ahead and saved < branch:
                    start = StartPoint(branch, branch, ahead[0])
                else:
                    start = StartPoint(saved, saved)
            starts[run.run_id] = start
    return starts


def families(runs: Iterable[PlannedRun]) -> list[list[PlannedRun]]:
    """Group the runs that share their training, longest first; the others stay alone."""
    groups: dict[object, list[PlannedRun]] = {}
    for run in sorted(runs, key=lambda run: -run.config.images):
        groups.setdefault(any_length(run.config) if run.trunk else run.run_id, []).append(run)
    return list(groups.values())


def with_branch_points(
    runs: Iterable[PlannedRun], starts: Mapping[str, StartPoint]
) -> list[PlannedRun]:
    """Tell every run at which images others wait for its checkpoint."""
    waiting: dict[str, set[int]] = {}
    for start in starts.values():
        waiting.setdefault(start.after, set()).add(start.images)
    return [replace(run, branch_points=frozenset(waiting.get(run.run_id, ()))) for run in runs]


def checkpoint_saved(config: RunConfig, images: int, out: Path) -> bool:
    """Tell whether the shared checkpoint of a run's family after these images is on disk."""
    return images in saved_images(trunk_folder(config, out))


def remove_trunks(runs: Iterable[PlannedRun], done: Collection[str], out: Path) -> None:
    """Remove the shared checkpoints of families whose runs are all done."""
    for family in families(run for run in runs if run.trunk):
        if all(run.run_id in done for run in family):
            remove_checkpoints(trunk_folder(family[0].config, out))
    if (out / "trunks").exists() and not any((out / "trunks").iterdir()):
        (out / "trunks").rmdir()
