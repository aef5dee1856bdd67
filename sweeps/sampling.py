"""Sample from finished runs as a study asks, or as Optuna suggests; each is a Ray Tune trial."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from analysis import human
from sweeps.checkpoints import Setting, SettingTeller
from sweeps.explore import Place, explore
from sweeps.lease import Lease
from sweeps.machines import Cluster, check_shared, slots
from sweeps.progress import Progress
from sweeps.runner import Outcome, Session, Watch, scratch, tune_trials
from sweeps.settings import SEED, Sampling
from sweeps.space import SamplingSpace
from sweeps.trainable import resources, sample_setting, single_threaded, workplace
from tarflow.config import WHOLE
from tarflow.storage import locate


def sample_all(
    samplings: Sequence[Sampling],
    out: Path,
    expected: Mapping[str, float],
    where: Cluster,
    held: Lease,
    console: Console,
    max_hours: float | None = None,
) -> Outcome:
    """Carry out what is left to sample; arguments as of `runner.run_all`.

    Raises:
        ConfigError: as `runner.run_all`.
    """
    todo = [replace(each, run=single_threaded(each.run)) for each in samplings]
    needs = resources([each.run for each in todo], where.gpus)
    count = slots(needs, where)
    check_shared(out, where)
    progress = Progress(
        len(todo),
        {each.run_id: expected[each.run_id] for each in todo},
        count,
        console,
        objective="kid",
        in_words=in_kid,
    )
    limit = time.monotonic() + max_hours * 3600 if max_hours is not None else None
    watch = Watch(progress, held, limit)
    with progress, scratch() as storage:
        tune_trials(
            tune.with_parameters(sample_one, samplings=todo, out=str(out), home=str(Path.cwd())),
            {"index": tune.grid_search(list(range(len(todo))))},
            SettingTeller(lambda config: todo[config["index"]], watch),
            Session(storage, needs, count, watch),
        )
    if watch.mistake:
        raise watch.mistake
    return Outcome(
        rows=tuple(progress.rows.values()),
        left=len(todo) - len(progress.rows),
        stopped=watch.reason,
        device_seconds=needs["cpu"] * sum(progress.seconds.values()),
        cpus=where.cpus,
    )


def sample_one(
    config: Mapping[str, Any], samplings: Sequence[Sampling], out: str, home: str
) -> None:
    """Carry out the sampling numbered `config["index"]`: a Tune function trainable."""
    from tarflow.evaluation import evaluate_setting

    wanted = samplings[config["index"]]
    with workplace(home):
        folder = locate(out) / "runs" / wanted.run.run_id
        (row,) = evaluate_setting(folder, wanted.sampler, SEED, halves=WHOLE)
    tune.report({"kid": math.nan if row["kid"] is None else row["kid"]})


def search_settings(
    spaces: Sequence[SamplingSpace], trials: int, needs: Mapping[str, float], place: Place
) -> Outcome:
    """Try settings that Optuna suggests for finished runs, until each run has had `trials`.

    Raises:
        ConfigError: as `explore`.
    """
    named = {space.run_id: space for space in spaces}
    work = tune.with_parameters(
        sample_setting, spaces=named, out=str(place.out), home=str(Path.cwd())
    )
    return explore(
        place,
        spaces,
        trials,
        work,
        needs,
        lambda watch: SettingTeller(
            lambda config: Setting(named[config["run_id"]], config), watch
        ),
        in_kid,
    )


def in_kid(row: Mapping[str, Any]) -> str:
    """Say how good samples are."""
    return f"KID {human.number(row['kid'])}"
