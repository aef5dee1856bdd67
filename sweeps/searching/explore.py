"""Optuna's suggestions as Ray Tune trials: candidates to train, and settings to sample with."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sweeps.design.outcomes import PRUNED, WORST
from sweeps.running.batch import (
    BatchContext,
    Outcome,
    ProgressCallback,
    ScoringCallback,
    run_batch,
)
from sweeps.running.cluster import check_shared, slots
from sweeps.running.placement import NotPickled
from sweeps.searching.candidates import sample_candidate, train_candidate
from sweeps.searching.journal import (
    completed,
    ended,
    fresh_seed,
    open_journal,
    open_study,
    pruned,
    settle,
    tell_pruned,
)
from sweeps.searching.pruning import Pruner
from sweeps.searching.rungs import Rule
from sweeps.searching.sampler_space import SamplingSpace
from sweeps.searching.space import STARTUP, Space, TrainingSpace
from sweeps.watching.progress import Progress
from tarflow.errors import UserError

WITH_CRASHES = 2  # most trials to start, crashed ones included, for each one asked for
REDRAWS = 20  # times a suggestion may be something that is being tried already


def search_runs(
    space: TrainingSpace,
    trials: int,
    needs: Mapping[str, float],
    context: BatchContext,
    prune: Rule | None = None,
) -> Outcome:
    """Train candidates that Optuna suggests.

    Args:
        space: What may change.
        trials: Number of candidates, those of earlier calls included; crashed ones do not count.
        needs: Resources of one trial.
        context: What all batches of the command share.
        prune: How candidates are compared at shares of their budget; None trains all in full.

    Raises:
        UserError: If a worker finds a user's mistake, or the cluster cannot hold a trial.
    """
    return _search(
        [space],
        trials,
        needs,
        context,
        tune.with_parameters(
            train_candidate,
            space=space,
            out=str(context.out),
            home=str(Path.cwd()),
            prunes=prune is not None,
        ),
        lambda progress: ProgressCallback(space.run_of, context.out, progress),
        (lambda ended: Pruner(prune, space, context.out, ended)) if prune else lambda _: None,
    )


def search_settings(
    spaces: Sequence[SamplingSpace],
    trials: int,
    needs: Mapping[str, float],
    context: BatchContext,
) -> Outcome:
    """Sample from finished runs with settings that Optuna suggests.

    Args:
        spaces: What may change, for each run.
        trials: Number of settings per run, those of earlier calls included; crashed ones do not
            count.
        needs: Resources of one trial.
        context: What all batches of the command share.

    Raises:
        UserError: As `search_runs`.
    """
    by_id = {space.run_id: space for space in spaces}
    return _search(
        spaces,
        trials,
        needs,
        context,
        tune.with_parameters(
            sample_candidate, spaces=by_id, out=str(context.out), home=str(Path.cwd())
        ),
        lambda progress: ScoringCallback(
            lambda config: by_id[config["run_id"]].task(config), context.out, progress
        ),
    )


def _search(
    spaces: Sequence[Space],
    trials: int,
    needs: Mapping[str, float],
    context: BatchContext,
    trainable: Callable[[dict[str, Any]], None],
    callback: Callable[[Progress], tune.Callback],
    pruner: Callable[[Sequence[str]], Pruner | None] = lambda _: None,
) -> Outcome:
    """Carry out the trials that each space still lacks."""
    check_shared(context.out, context.cluster)
    journal = open_journal(context.out)
    studies = [(space, open_study(space, journal)) for space in spaces]
    searches, done, names = [], [], []
    for space, study in studies:
        settle(study, space, context.out)
        before = ended(study, space, context.out)
        values = [trial.values for trial in completed(study) if WORST not in trial.values]
        done += [dict(zip(space.objectives, scores, strict=True)) for scores in values]
        done += [{"status": PRUNED} for _ in pruned(study)]
        names += [space.name(params) for params in before]
        if len(before) < trials:
            seed = fresh_seed(context.seed, len(study.get_trials(deepcopy=False)))
            left = trials - len(before)
            searches.append(Suggester(space, study, journal, seed, left, context.out))
    progress = Progress(
        sum(search.left for search in searches),
        {},
        slots(needs, context.cluster),
        context.console,
        done,
        spaces[0].objectives[0],
    )
    try:
        return run_batch(
            context,
            trainable,
            needs,
            progress,
            callback(progress),
            lambda stop: RoundRobinSearcher(searches, progress, stop.allows),
            WITH_CRASHES * progress.total,
            pruner(names),
        )
    finally:
        for space, study in studies:
            settle(study, space, context.out)


class Suggester(NotPickled, OptunaSearch):
    """Optuna's sampler for Tune; closes every trial, and never tries one thing twice at a time."""

    def __init__(
        self,
        space: Space,
        study: Study,
        journal: BaseStorage,
        seed: int,
        trials: int,
        out: Path,
    ) -> None:
        """Continue an Optuna study.

        Args:
            space: What may change.
            study: Optuna study of the space.
            journal: Storage of the study.
            seed: Seed of the sampler; must differ from those that the study has used.
            trials: Number of trials to carry out; those that crash do not count.
            out: Folder of the study.
        """
        self.space, self.study, self.left, self.out = space, study, trials, out
        self.crashed = 0  # trials
        self.busy: dict[str, str] = {}  # what each trial works on
        super().__init__(
            space,
            metric=list(space.objectives),
            mode=["min"] * len(space.objectives),
            sampler=TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True),
            study_name=study.study_name,
            storage=journal,
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return parameters of something that no other trial works on."""
        for _ in range(REDRAWS):
            params: dict[str, Any] = super().suggest(trial_id) or {}
            name = self.space.name(params)
            if name not in self.busy.values():
                self.busy[trial_id] = name
                return params
            self.study.tell(self._ot_trials.pop(trial_id).number, state=TrialState.FAIL)
        raise UserError("the search space has too few points to try this many at a time")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the objectives; without them a trial has crashed, or was stopped."""
        self.busy.pop(trial_id, None)
        names = self.space.objectives
        reported = result is not None and all(name in result for name in names)
        if not reported and not error:
            trial = self._ot_trials[trial_id]
            if self.space.pruned(trial.params, self.out):
                self.left -= 1
                tell_pruned(self.study, trial)
            return  # stopped by the whole search: it stays open until it is settled
        values = [result.get(name) for name in names] if result else [None]
        complete = all(value is not None and math.isfinite(value) for value in values)
        self.left -= complete
        self.crashed += not complete
        super().on_trial_complete(trial_id, result if complete else None, error=not complete)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal has it all."""


class RoundRobinSearcher(NotPickled, Searcher):
    """Asks several searches in turn until each has the trials it lacks; crashed ones are replaced.

    The last suggestions may have to wait for running trials, since these may crash.
    """

    def __init__(
        self,
        searches: Sequence[Suggester],
        progress: Progress,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Ask these searches.

        Args:
            searches: Searches that lack trials.
            progress: Counts the trials.
            allowed: Tells whether another trial keeps within the limits.
        """
        super().__init__()
        self.searches, self.progress, self.allowed = deque(searches), progress, allowed
        self.asked: dict[str, Suggester] = {}

    def suggest(self, trial_id: str) -> Any:
        """Ask the next search that lacks trials.

        Returns:
            Parameters; None as long as a running trial may crash; FINISHED after the last, or if
            another one would pass a limit.
        """
        if not self.allowed():
            return None if self.asked else Searcher.FINISHED
        for _ in range(len(self.searches)):
            search = self.searches[0]
            self.searches.rotate(-1)
            if search.left > len(search.busy):
                self.asked[trial_id] = search
                return search.suggest(trial_id)
        return None if self.asked else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the search that suggested the trial."""
        search = self.asked.pop(trial_id)
        crashed = search.crashed
        search.on_trial_complete(trial_id, result, error)
        self.progress.total += search.crashed - crashed  # a crashed trial is replaced

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a search continues from the journal."""
