"""How a search ends: the Pareto front, the choice on it, and the next run to train."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis import human
from analysis.report import checklist
from analysis.report.page import write_report
from analysis.settings import pareto_front, setting_in_words
from sweeps.space import SamplingSpace
from sweeps.study import Study
from sweeps.tuned import Verdict, sampler_of, verdict
from tarflow import record
from tarflow.config import RunConfig, from_dict, to_yaml
from tarflow.identity import run_id

WITHIN = 0.01  # of the best BPD: runs among which sample quality decides
LONGER = 4  # times the images of a candidate that best.yaml trains for


def conclude(found: pd.DataFrame, study: Study, out: Path, console: Console) -> None:
    """Print the Pareto front, and write best.yaml and the report."""
    front = pareto_front(found)
    chosen = choose(front)
    console.print(front_table(front, str(chosen["run_id"])))
    best = out / "best.yaml"
    space = SamplingSpace.of(chosen["run_id"], chosen["label"], chosen["config"])
    judged = verdict(space, out) or Verdict(sampler_of(chosen), "")
    config = replace(next_run(chosen, study, out), sampler=judged.sampler)
    why = "\n".join(filter(None, (rule(chosen, len(found)), judged.words)))
    train_it = f"python -m tarflow train {best}"
    record.write_text(best, to_yaml(config, f"{why}\nTrain it: {train_it}"))
    console.print(why, soft_wrap=True)
    console.print(f"report: {write_report(out)}", soft_wrap=True)
    console.print(f"train next: {train_it}", soft_wrap=True)


def choose(front: pd.DataFrame) -> pd.Series:
    """Return the run of lowest KID among those whose BPD is near the best."""
    near = front[front["bpd"] <= (1 + WITHIN) * front["bpd"].min()]
    best: pd.Series = near.sort_values("kid").iloc[0]
    return best


def rule(chosen: pd.Series, runs: int) -> str:
    """Say how the best was chosen, and what it is."""
    return (
        f"Of {runs} runs, the one of lowest KID within {human.percent(WITHIN)} of the lowest "
        f"BPD: {chosen['label']} ({chosen['run_id']}),\n"
        f"BPD {human.bits(chosen['bpd'])}, KID {human.number(chosen['kid'])} "
        f"± {human.number(chosen['kid_se'])} at {setting_in_words(chosen)}.\n"
        f"Its hyperparameters, at {LONGER} times its images."
    )


def next_run(chosen: pd.Series, study: Study, out: Path) -> RunConfig:
    """Return a run like the chosen one, but longer, that has not been trained yet."""
    base = study.base
    config = from_dict(RunConfig, json.loads(chosen["config"]))
    config = replace(
        config,
        images=LONGER * config.images,
        evaluation=base.evaluation,
        execution=base.execution,
    )
    while record.read_result(out / "runs" / run_id(config)):
        config = replace(config, images=config.images + config.batch)
    return config


def front_table(front: pd.DataFrame, chosen: str) -> Table:
    """Lay out the Pareto front for the terminal."""
    listed = checklist.front(front)
    shown = Table(title="Pareto front", box=None, pad_edge=False, header_style="bold")
    for name in (*listed.columns, ""):
        shown.add_column(name, no_wrap=name != listed.columns[-1])  # a setting may take two lines
    for cells, name in zip(listed.rows, front["run_id"], strict=True):
        shown.add_row(*cells, "chosen" if name == chosen else "")
    return shown
