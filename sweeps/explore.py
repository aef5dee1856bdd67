"""Optuna's suggestions as Ray Tune trials, on one space or on several in turn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from sweeps.journal import completed, ended, fresh_seed, open_journal, open_study, settle
from sweeps.lease import Lease
from sweeps.machines import Cluster, check_shared, slots
from sweeps.progress import Progress
from sweeps.runner import Session, scratch, tune_trials
from sweeps.space import Space
from sweeps.watch import Here, Outcome, Watch
from tarflow.errors import UserError

STARTUP = 8  # random trials of a space before its model speaks
REDRAWS = 20  # times a suggestion may fall on a run that is going on


@dataclass(frozen=True)
class Place:
    """Where a search works."""

    out: Path  # folder of the study, absolute
    where: Cluster
    held: Lease
    console: Console
    seed: int
    limit: float | None = None  # on the monotonic clock; what has not ended then is stopped


def explore(
    place: Place,
    spaces: Sequence[Space],
    trials: int,
    work: Callable[[dict[str, Any]], None],
    needs: Mapping[str, float],
    teller: Callable[[Watch], tune.Callback],
    in_words: Callable[[Mapping[str, Any]], str],
) -> Outcome:
    """Carry out the trials that each space still lacks.

    Args:
        place: of the search.
        spaces: to explore, in turn.
        trials: of every space, those of earlier calls included.
        work: function trainable; reports the objectives of the space by name.
        needs: what one trial holds.
        teller: makes the callback that tells the progress.
        in_words: says how good a row is.

    Returns:
        How it went; its rows are those of the trials that ended here.

    Raises:
        UserError: if a worker finds a mistake, or the cluster cannot hold a trial.
    """
    check_shared(place.out, place.where)
    journal = open_journal(place.out)
    studies = [(space, open_study(space, journal)) for space in spaces]
    searches, done = [], []
    for space, study in studies:
        settle(study, space, place.out)
        before = ended(study, space, place.out)
        values = [trial.values for trial in completed(study)]
        done += [dict(zip(space.objectives, each, strict=True)) for each in values]
        if len(before) < trials:
            seed = fresh_seed(place.seed, len(study.get_trials(deepcopy=False)))
            searches.append((Suggester(space, study, journal, seed), trials - len(before)))
    total = sum(left for _, left in searches)
    count = slots(needs, place.where)
    objective = spaces[0].objectives[0]
    progress = Progress(total, {}, count, place.console, done, objective, in_words)
    watch = Watch(progress, place.held, place.limit)
    try:
        if total:
            with progress, scratch() as storage:
                session = Session(storage, needs, count, watch)
                tune_trials(work, {}, teller(watch), session, Turns(searches), total)
    finally:
        for space, study in studies:
            settle(study, space, place.out)
    gpus = "gpu" in needs
    spent = needs["gpu" if gpus else "cpu"] * sum(progress.seconds.values())
    return watch.outcome(total, spent, place.where, gpus)


class Suggester(Here, OptunaSearch):
    """Optuna's sampler for Tune; no trial stays open for ever, no run goes on twice at a time."""

    def __init__(self, space: Space, study: Study, journal: BaseStorage, seed: int) -> None:
        """Continue an Optuna study; `seed` must differ from those it was begun with."""
        self.space, self.study = space, study
        self.busy: dict[str, str] = {}  # name of what each trial works on
        super().__init__(
            space,
            metric=list(space.objectives),
            mode=["min"] * len(space.objectives),
            sampler=TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True),
            study_name=study.study_name,
            storage=journal,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return parameters of something that no trial works on just now."""
        for _ in range(REDRAWS):
            params: dict[str, Any] = super().suggest(trial_id) or {}
            name = self.space.name(params)
            if name not in self.busy.values():
                self.busy[trial_id] = name
                return params
            self.study.tell(self._ot_trials.pop(trial_id).number, state=TrialState.FAIL)
        raise UserError("the search space has too few points for so many trials at a time")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the objectives; what has none has failed; what was stopped stays open."""
        self.busy.pop(trial_id, None)
        told = result is not None and all(name in result for name in self.space.objectives)
        if not told and not error:
            return
        values = [result.get(name) for name in self.space.objectives] if result else [None]
        whole = all(value is not None and math.isfinite(value) for value in values)
        super().on_trial_complete(trial_id, result if whole else None, error=not whole)

    def save(self, checkpoint_path: str) -> None:
        """Leave nothing: the journal remembers."""


class Turns(Here, Searcher):
    """Asks several searches in turn, each as often as it has trials left."""

    def __init__(self, searches: Sequence[tuple[Searcher, int]]) -> None:
        """Take searches with their numbers of trials."""
        super().__init__()
        most = max(left for _, left in searches)
        self.order = [search for turn in range(most) for search, left in searches if turn < left]
        self.asked: dict[str, Searcher] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Ask the next search."""
        search = self.asked[trial_id] = self.order.pop(0)
        params: dict[str, Any] | None = search.suggest(trial_id)
        return params

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the search that was asked."""
        self.asked.pop(trial_id).on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Leave nothing: the journal remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Take nothing: a search goes on from the journal."""
