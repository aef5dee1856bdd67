"""What runs that differ only in their images share: their training, up to a cooldown.

The longest run of such a family is its trunk. It leaves its state where a shorter one branches
off, and the shorter one goes on from there: the numbers are those of a run of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tarflow.config import RunConfig
from tarflow.identity import run_id


@dataclass(frozen=True)
class Trunk:
    """Where a run finds what others have trained of it, and leaves what others need."""

    folder: Path  # of the family's states
    run_id: str  # of the longest run of the family
    marks: frozenset[int] = frozenset()  # images at which the run leaves its state there


def any_length(config: RunConfig) -> RunConfig:
    """Return the config that stands for a run's family: one batch long."""
    return replace(config, images=config.batch)


def trunk_of(config: RunConfig, longest: int, marks: frozenset[int], study: Path) -> Trunk:
    """Return the trunk of a run's family, whose longest run has so many images."""
    return Trunk(trunk_folder(config, study), run_id(replace(config, images=longest)), marks)


def trunk_folder(config: RunConfig, study: Path) -> Path:
    """Return where a study keeps the states of a run's family."""
    return study / "trunks" / run_id(any_length(config))
