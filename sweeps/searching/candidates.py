"""What Ray carries out of a search on any machine: a candidate, or a setting to sample with."""

from collections.abc import Mapping
from functools import partial
from itertools import zip_longest
from typing import Any

from sweeps.design.outcomes import PRUNED, is_pruned
from sweeps.running.trainable import execute_and_record, reporting, sample, single_threaded
from sweeps.searching.rungs import Rungs
from sweeps.searching.sampler_space import SamplingSpace
from sweeps.searching.space import Space, TrainingSpace
from tarflow.storage import locate


def train_candidate(
    config: Mapping[str, Any], space: TrainingSpace, out: str, home: str, prunes: bool
) -> None:
    """Carry out the run that a search suggests: a Tune function trainable.

    A run that was pruned before stays so, unless this search prunes nothing.
    """
    from ray import tune

    run = single_threaded(space.run_of(config))
    if prunes and is_pruned(locate(out) / "runs" / run.run_id):
        tune.report({"status": PRUNED})
        return
    with reporting() as report:
        rungs = partial(Rungs, report.ask) if prunes else None
        row = execute_and_record(run, out, home, report, rungs)
    tune.report({"status": row["status"], **objectives(space, config, out)})


def sample_candidate(
    config: Mapping[str, Any], spaces: Mapping[str, SamplingSpace], out: str, home: str
) -> None:
    """Draw and score the setting that a search suggests: a Tune function trainable."""
    from ray import tune

    space = spaces[config["run_id"]]
    sample(space.task(config), out, home)
    tune.report(objectives(space, config, out))


def objectives(space: Space, config: Mapping[str, Any], out: str) -> dict[str, float | None]:
    """Return the objectives of a trial that has ended, by name; None where it failed."""
    values = space.values(config, locate(out)) or []
    return dict(zip_longest(space.objectives, values))
