"""Sample from finished runs in the ways that a study asks for, each a Ray Tune trial."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from analysis import human
from sweeps.checkpoints import SettingTeller
from sweeps.lease import Lease
from sweeps.machines import Cluster, check_shared, slots
from sweeps.progress import Progress
from sweeps.runner import Outcome, Session, Watch, scratch, tune_trials
from sweeps.settings import SEED, Sampling
from sweeps.trainable import resources, single_threaded, workplace
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
        in_words=lambda row: f"KID {human.number(row['kid'])}",
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
        (row,) = evaluate_setting(folder, wanted.sampler, SEED, halves=("all",))
    tune.report({"kid": math.nan if row["kid"] is None else row["kid"]})
