"""The driver's part of pruning: Ray Tune's ASHA stops candidates, whose rows become results.

ASHA compares a candidate with those that reached the same share before it, so none is paused and
nobody waits. Asynchronous Hyperband is several of these side by side, which compare candidates
from different shares on. (Tune's own HyperBandScheduler pauses trials until the slowest comes.)
"""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from sweeps.running.placement import NotPickled
from sweeps.searching.rungs import (
    KEEPS,
    WHOLE,
    Rule,
    bpd_of,
    bracket_of,
    first_quarters,
    kept_rows,
)
from sweeps.searching.space import TrainingSpace
from tarflow.record import write_result
from tarflow.train.checkpoint import remove_checkpoints


class Pruner(NotPickled, FIFOScheduler):
    """Stops the candidates whose BPD is in the worse half of those at the same share."""

    def __init__(self, rule: Rule, space: TrainingSpace, out: Path, ended: Iterable[str]) -> None:
        """Continue from the candidates that have ended.

        Args:
            rule: How to compare.
            space: What is searched.
            out: Folder of the study.
            ended: Run ids of earlier candidates, which later ones are compared with.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule, self.space, self.out = rule, space, out
        self.brackets = [
            ASHAScheduler(
                time_attr="quarters",
                metric="bpd_there",
                mode="min",
                grace_period=quarters,
                max_t=WHOLE,
                reduction_factor=KEEPS,
            )
            for quarters in first_quarters(rule)
        ]
        for name in ended:
            earlier: Any = SimpleNamespace(trial_id=name)
            bracket = self.brackets[bracket_of(name, rule)]
            bracket.on_trial_add(None, earlier)  # type: ignore[arg-type]
            for quarters, row in kept_rows(self.folder(name)).items():
                result = {"quarters": quarters, "bpd_there": bpd_of(row)}
                bracket.on_trial_result(None, earlier, result)  # type: ignore[arg-type]

    def folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / name

    def bracket(self, trial: Trial) -> ASHAScheduler:
        """Return what a candidate is compared by, whenever it is started."""
        return self.brackets[bracket_of(self.space.name(trial.config), self.rule)]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a candidate."""
        self.bracket(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide at a share whether a candidate continues; if not, its row there is its result."""
        decision = self.bracket(trial).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            folder = self.folder(self.space.name(trial.config))
            write_result(folder, kept_rows(folder)[result["quarters"]])
            remove_checkpoints(folder / "state")
        return decision
