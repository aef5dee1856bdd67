"""Sample from finished runs as a study asks, or as Optuna suggests; each is a Ray Tune trial."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from analysis import human
from sweeps.checkpoints import Setting, SettingTeller
from sweeps.explore import Place, explore
from sweeps.machines import check_shared, slots
from sweeps.progress import Progress
from sweeps.runner import Session, scratch, tune_trials
from sweeps.settings import SEED, Sampling
from sweeps.space import SamplingSpace
from sweeps.trainable import resources, sample_setting, single_threaded, workplace
from sweeps.watch import Outcome, Watch
from tarflow.identity import WHOLE
from tarflow.storage import locate


def sample_all(
    samplings: Sequence[Sampling], expected: Mapping[str, float], place: Place
) -> Outcome:
    """Carry out what is left to sample; `expected` has the seconds of each, by its id.

    Raises:
        UserError: as `runner.run_all`.
    """
    todo = [replace(each, run=single_threaded(each.run)) for each in samplings]
    needs = resources([each.run for each in todo], place.where.gpus)
    count = slots(needs, place.where)
    check_shared(place.out, place.where)
    progress = Progress(
        len(todo),
        {each.run_id: expected[each.run_id] for each in todo},
        count,
        place.console,
        objective="kid",
        in_words=in_kid,
    )
    watch = Watch(progress, place.held, place.limit)
    with progress, scratch() as storage:
        tune_trials(
            tune.with_parameters(
                sample_one, samplings=todo, out=str(place.out), home=str(Path.cwd())
            ),
            {"index": tune.grid_search(list(range(len(todo))))},
            SettingTeller(lambda config: todo[config["index"]], watch),
            Session(storage, needs, count, watch),
        )
    gpus = "gpu" in needs
    spent = needs["gpu" if gpus else "cpu"] * sum(progress.seconds.values())
    return watch.outcome(len(todo), spent, place.where, gpus)


def sample_one(
    config: Mapping[str, Any], samplings: Sequence[Sampling], out: str, home: str
) -> None:
    """Carry out the sampling numbered `config["index"]`: a Tune function trainable."""
    from tarflow.evaluate.checkpoint_scores import evaluate_setting

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
        UserError: as `explore`.
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
