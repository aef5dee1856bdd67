"""The checkpoints that a search goes on to sample from, and the best way to sample from each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray import tune
from ray.tune.experiment import Trial

from analysis.settings import best_setting, pareto_front, setting_in_words
from sweeps.failures import cause_of, error_of
from sweeps.progress import Task
from sweeps.space import SamplingSpace
from sweeps.watch import Here, Watch
from tarflow import record
from tarflow.config import RunConfig, to_dict
from tarflow.errors import UserError

BANDS = 3  # of noise levels, equally wide in the logarithm; the best run of each is sampled from


def scored_runs(out: Path, run_ids: Sequence[str]) -> pd.DataFrame:
    """Return one row per run: its columns beside those of its best sampler setting."""
    runs, evaluations = record.gather(out)
    table = pd.DataFrame(runs, columns=record.RUNS.names)
    table = table[(table["status"] == "done") & table["run_id"].isin(run_ids)]
    scores = pd.DataFrame(evaluations, columns=record.EVALUATIONS.names)
    joined = table.merge(scores, on="run_id", suffixes=("", "_sampling"), validate="one_to_many")
    return best_setting(joined)


def that_matter(found: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto front and the run of lowest BPD in each band of noise."""
    noise = np.log(found["noise_std"].astype(float).fillna(1.0).to_numpy())
    edges = np.linspace(noise.min(), noise.max(), BANDS + 1)[1:-1]
    best = found.assign(band=np.digitize(noise, edges)).sort_values("bpd").drop_duplicates("band")
    chosen = [*pareto_front(found)["run_id"], *best["run_id"]]
    return found[found["run_id"].isin(chosen)].sort_values("bpd")


@dataclass(frozen=True)
class Setting:
    """One way to sample from one run, as the progress knows it."""

    space: SamplingSpace
    params: Mapping[str, Any]

    @property
    def run_id(self) -> str:
        """Name within the batch."""
        return f"{self.space.run_id}/{self.space.name(self.params)}"

    @property
    def label(self) -> str:
        """Name for people."""
        sampler = self.space.sampler(self.params)
        return f"{self.space.label} at {setting_in_words(to_dict(sampler))}"

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.space.config


class SettingTeller(Here, tune.Callback):
    """Tells the progress what happens to the trials that sample."""

    def __init__(self, named: Callable[[dict[str, Any]], Task], watch: Watch) -> None:
        """Serve trials; `named` says what a trial's config stands for."""
        self.named, self.watch = named, watch

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the start."""
        self.watch.progress.start(self.named(trial.config))

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the score; without one it was stopped."""
        kid = trial.last_result.get("kid")
        if kid is not None:
            self.watch.progress.end(self.named(trial.config), {"status": "done", "kid": kid})

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:  # type: ignore[override]
        """Note the failure; a user's mistake ends the search."""
        error = cause_of(error_of(trial))
        if isinstance(error, UserError):
            self.watch.mistake = error
            return
        task = self.named(trial.config)
        reason = str(error).splitlines()[0] if str(error) else "died"
        row = {"status": "failed", "run_id": task.run_id, "label": task.label, "error": reason}
        self.watch.progress.end(task, row)
