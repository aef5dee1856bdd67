"""Trunks: runs that differ only in their number of images share their training up to a cooldown.

The longest run of such a family is its trunk. It leaves a checkpoint where a shorter run branches
off, and the branch resumes from it: its numbers are those of a run trained from scratch.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tarflow.config import RunConfig
from tarflow.identity import run_id


@dataclass(frozen=True)
class Trunk:
    """Where a run finds the checkpoints that its family shares, and leaves those others need."""

    folder: Path  # of the shared checkpoints
    run_id: str  # of the family's longest run
    branch_points: frozenset[int] = frozenset()  # images after which this run saves there


def any_length(config: RunConfig) -> RunConfig:
    """Return the config that stands for a run's family: the same run, one batch long."""
    return replace(config, images=config.batch)


def trunk_of(config: RunConfig, longest: int, branch_points: frozenset[int], study: Path) -> Trunk:
    """Return the trunk of a run's family.

    Args:
        config: Any run of the family.
        longest: Images of the family's longest run.
        branch_points: Images at which this run leaves a checkpoint for others.
        study: Folder of the study.
    """
    trunk_id = run_id(replace(config, images=longest))
    return Trunk(trunk_folder(config, study), trunk_id, branch_points)


def trunk_folder(config: RunConfig, study: Path) -> Path:
    """Return the folder in which a study keeps the shared checkpoints of a run's family."""
    return study / "trunks" / run_id(any_length(config))
