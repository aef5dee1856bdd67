"""Which runs share their training, where each begins, and which has to wait for another.

Of runs that differ only in their images (`tarflow.train.trunk`) the longest to do is the trunk. It
leaves its state wherever a shorter one branches off; that one waits until it is there, which is
no later than it would have come so far by itself.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.study import Planned
from tarflow.record import read_json
from tarflow.train.checkpoint import checkpoint_name, remove_checkpoints, saved_images
from tarflow.train.schedule import shared_images
from tarflow.train.trunk import any_length, trunk_folder


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    images: int = 0  # that it need not be trained on any more
    inherited: int = 0  # images that a trunk was trained on for it
    after: str = ""  # id of the run that has to leave its state first; empty if none has


def starts(todo: Sequence[Planned], out: Path) -> dict[str, Start]:
    """Say by run id where each of the runs that are to do begins, given what the folder holds."""
    found: dict[str, Start] = {}
    for family in families(todo):
        kept = saved_images(trunk_folder(family[0].config, out)) if family[0].trunk else []
        for index, run in enumerate(family):
            own = out / "runs" / run.run_id / "state"
            if states := saved_images(own):
                facts = read_json(own / f"{checkpoint_name(states[-1])}.json") or {}
                start = Start(states[-1], facts.get("inherited", 0))
            else:
                point = shared_images(run.config) if run.trunk else 0
                there = max((images for images in kept if images <= point), default=0)
                ahead = [x.run_id for x in family[:index] if found[x.run_id].images < point]
                if ahead and there < point:
                    start = Start(point, point, ahead[0])
                else:
                    start = Start(there, there)
            found[run.run_id] = start
    return found


def families(runs: Iterable[Planned]) -> list[list[Planned]]:
    """Gather the runs that share their training, the longest first; others stay alone."""
    found: dict[object, list[Planned]] = {}
    for run in sorted(runs, key=lambda run: -run.config.images):
        found.setdefault(any_length(run.config) if run.trunk else run.run_id, []).append(run)
    return list(found.values())


def marked(runs: Iterable[Planned], begin: Mapping[str, Start]) -> list[Planned]:
    """Tell every run where others wait for it to leave its state."""
    return [
        replace(
            run,
            marks=frozenset(start.images for start in begin.values() if start.after == run.run_id),
        )
        for run in runs
    ]


def state_left(run: Planned, images: int, out: Path) -> bool:
    """Tell whether a run's trunk has left its state after so many images."""
    return images in saved_images(trunk_folder(run.config, out))


def tidy(runs: Iterable[Planned], done: Collection[str], out: Path) -> None:
    """Remove the states of families whose runs are all done."""
    for family in families(run for run in runs if run.trunk):
        folder = trunk_folder(family[0].config, out)
        if all(run.run_id in done for run in family):
            remove_checkpoints(folder)
    if (out / "trunks").exists() and not any((out / "trunks").iterdir()):
        (out / "trunks").rmdir()
