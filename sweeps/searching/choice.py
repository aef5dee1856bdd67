"""Choices made from results: checkpoints to sample from, sampler settings, the run to train next.

A sampler setting is picked on one half of the draws. On the other half, which did not pick it, it
has to beat the run's own setting by more than chance; otherwise the run's own is kept. The run to
train next and the Pareto front are picked on the first half as well, and printed with the KID of
the other half.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.comparing.differences import as_low
from analysis.laws.intervals import NORMAL_90
from analysis.laws.validation import levels
from analysis.report import checklist
from analysis.report.page import write_report
from analysis.study.names import run_names
from analysis.study.rows import GRID
from analysis.study.rows import choose as comparable_rows
from analysis.study.settings import SETTING, best_setting, pareto_front, setting_in_words
from sweeps.design.study import Study
from sweeps.searching.sampler_space import SamplingSpace
from sweeps.searching.space import SEED
from tarflow import record
from tarflow.config import RunConfig, SamplerConfig
from tarflow.config_files import from_dict, to_dict, to_yaml
from tarflow.human import bits, bpd_name, number, percent
from tarflow.identity import HALVES, run_id

BANDS = 3  # of noise levels, equally wide in the logarithm; the best run of each is sampled from
WITHIN = 0.01  # runs whose BPD is within this share of the best are compared by sample quality
LONGER = 4  # best.yaml trains this many times as long as the chosen candidate


def scored_runs(out: Path, run_ids: Sequence[str]) -> pd.DataFrame:
    """Return one row per finished run: its columns beside those of its best sampler setting."""
    runs, evaluations = record.gather(out)
    table = pd.DataFrame(runs, columns=record.RUNS.names)
    table = table[(table["status"] == "done") & table["run_id"].isin(run_ids)]
    scores = pd.DataFrame(evaluations, columns=record.EVALUATIONS.names)
    joined = table.merge(scores, on="run_id", suffixes=("", "_sampling"), validate="one_to_many")
    return best_setting(joined)


def worth_sampling(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto front and the run of lowest BPD in each band of noise."""
    noise = np.log(runs["noise_std"].astype(float).fillna(1.0).to_numpy())
    edges = np.linspace(noise.min(), noise.max(), BANDS + 1)[1:-1]
    best = runs.assign(band=np.digitize(noise, edges)).sort_values("bpd").drop_duplicates("band")
    chosen = [*pareto_front(runs)["run_id"], *best["run_id"]]
    return runs[runs["run_id"].isin(chosen)].sort_values("bpd")


def best_checkpoint(out: Path) -> SamplingSpace | None:
    """Return the sampling space of the run of lowest BPD at the largest budget of a grid.

    None if no run of the grid has finished, or if that run was not sampled.
    """
    results = [record.read_result(folder) for folder in sorted((out / "runs").glob("*"))]
    runs = [result["run"] for result in results if result]
    rows, _ = comparable_rows(pd.DataFrame(runs, columns=record.RUNS.names))
    rows = rows[rows["role"].isin(GRID)]
    if rows.empty:
        return None
    largest = rows.iloc[levels(rows["flops"].to_numpy(float))[-1].tolist()]
    best = largest.sort_values(["bpd", "run_id"]).iloc[0]
    space = SamplingSpace.of(best["run_id"], best["label"], best["config"])
    return space if space.searchable else None


@dataclass(frozen=True)
class Verdict:
    """The sampler setting to use from now on, and why in plain sentences."""

    sampler: SamplerConfig
    words: str


def verdict(space: SamplingSpace, out: Path) -> Verdict | None:
    """Judge the sampler settings that were tried on a run; None before there are two.

    Without a score of the run's own setting there is no test against chance, so it is kept.

    The interval is that of the difference of two KIDs taken as independent. They share noise and
    held-out images and so differ less by chance: the interval errs on the safe side.
    """
    files = (out / "runs" / space.run_id / "evaluations").glob("*.json")
    rows = [row for path in sorted(files) for row in record.read_json(path) or []]
    table = pd.DataFrame(rows, columns=record.EVALUATIONS.names)
    table = table[(table["seed"] == SEED) & table["half"].isin(HALVES) & table["kid"].notna()]
    own = to_dict(space.own)
    names = [name for name in SETTING if name in own]
    fresh = table[table["half"] == HALVES[1]]
    default = fresh[(fresh[names] == pd.Series(own)[names]).all(axis=1)]
    if len(fresh) and default.empty:
        return Verdict(
            space.config.sampler,
            f"Sampler: the own setting of {space.label} ({space.run_id}) was not scored "
            f"beside the {len(fresh)} that were tried, so chance cannot be ruled out: it is kept.",
        )
    if len(fresh) < 2:
        return None
    before, best = default.iloc[0], best_setting(table.assign(bpd=0.0)).iloc[0]
    gain = float(before["kid"] - best["kid"])
    chance = NORMAL_90 * float(np.hypot(before["kid_se"], best["kid_se"]))
    words = [
        f"Sampler: of {len(fresh)} settings tried on {space.label} ({space.run_id}), the one of "
        "lowest KID on one half of the draws,",
        f"scored on the other half: {setting_in_words(best)}: KID "
        f"{number(best['kid'])} ± {number(best['kid_se'])};",
        f"the run's own, {setting_in_words(before)}: KID {number(before['kid'])} ± "
        f"{number(before['kid_se'])}, on the same noise.",
    ]
    if (best[names] == before[names]).all():
        return Verdict(space.config.sampler, "\n".join([*words[:1], "is the run's own: kept."]))
    better = gain > chance
    words.append(
        f"{'Lower' if gain > 0 else 'Higher'} by {number(abs(gain))}, the 90% interval of a "
        f"difference is ± {number(chance)}: "
        + ("it is used." if better else "the run's own is kept.")
    )
    return Verdict(sampler_of(best) if better else space.config.sampler, "\n".join(words))


def sampler_of(row: pd.Series) -> SamplerConfig:
    """Return the sampler setting of a row."""
    return SamplerConfig(
        guidance=float(row["guidance"]),
        rule=row["rule"],
        part=row["part"],
        guided_blocks=row["guided_blocks"],
        annealed=bool(row["annealed"]),
        temperature=float(row["temperature"]),
        denoise=float(row["denoise"]),
    )


def conclude_search(runs: pd.DataFrame, study: Study, out: Path, console: Console) -> None:
    """Print the Pareto front of a search, and write best.yaml and the report.

    Args:
        runs: Finished candidates, one row each at its best sampler setting.
        study: Study that was searched around.
        out: Folder of the study.
        console: Where to print.
    """
    best = choose(runs)
    front = pareto_front(runs)["run_id"]
    shown = runs[runs["run_id"].isin([*front, best["run_id"]])].sort_values(["bpd", "kid"])
    console.print(front_table(shown, str(best["run_id"])))
    space = SamplingSpace.of(best["run_id"], best["label"], best["config"])
    judged = verdict(space, out) or Verdict(sampler_of(best), "")
    config = replace(next_run(best, study, out), sampler=judged.sampler)
    rivals = len(as_low(near_best(runs), best))
    why = "\n".join(filter(None, (rule(best, len(runs), rivals), judged.words)))
    console.print(why, soft_wrap=True)
    console.print(f"report: {write_report(out)}", soft_wrap=True)
    write_best(config, why, out, console)


def choose(runs: pd.DataFrame) -> pd.Series:
    """Return the run of lowest KID, on the draws that choose, among those of nearly the best BPD.

    Runs without such draws count only if no run has them: their one KID would choose them, and so
    be low by luck.
    """
    near = near_best(runs)
    halved = near.dropna(subset="kid_chosen").sort_values("kid_chosen")
    best: pd.Series = (near.sort_values("kid") if halved.empty else halved).iloc[0]
    return best


def near_best(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of nearly the best BPD."""
    near: pd.DataFrame = runs[runs["bpd"] <= (1 + WITHIN) * runs["bpd"].min()]
    return near


def rule(best: pd.Series, runs: int, rivals: int) -> str:
    """Say how the best run was chosen, and what it is.

    Args:
        best: The chosen run.
        runs: Number of runs.
        rivals: How many others of nearly the best BPD may have as low a KID.
    """
    halves, bpd = bool(pd.notna(best["kid_chosen"])), bpd_name(str(best.get("bpd_kind")))
    return (
        f"Of {runs} runs, the one of lowest KID within {percent(WITHIN)} of the lowest "
        f"{bpd}{', by one half of the draws' * halves}: {best['label']} ({best['run_id']}),\n"
        f"{bpd} {bits(best['bpd'])}, KID {number(best['kid'])} "
        f"± {number(best['kid_se'])} at {setting_in_words(best)}, "
        + (
            "on the other half."
            if halves
            else "on the draws that\nchose it: being the lowest of several, it is low by luck too."
        )
        + f"\nKID does not tell it apart from {rivals} of them." * bool(rivals)
        + f"\nIts hyperparameters, at {LONGER} times its images."
    )


def next_run(best: pd.Series, study: Study, out: Path) -> RunConfig:
    """Return a run like the best one, but longer, that has not been trained yet."""
    config = from_dict(RunConfig, json.loads(best["config"]))
    config = replace(
        config,
        images=LONGER * config.images,
        evaluation=study.base.evaluation,
        execution=study.base.execution,
    )
    while record.read_result(out / "runs" / run_id(config)):
        config = replace(config, images=config.images + config.batch)
    return config


def front_table(front: pd.DataFrame, best: str) -> Table:
    """Return the Pareto front as a table for the terminal.

    Args:
        front: Runs on the front, and the chosen one, in order of BPD.
        best: Id of the chosen run.
    """
    listed = checklist.front(front.assign(name=run_names(front)))
    shown = Table(
        title="Pareto front and chosen run, by one half of the draws; KID of the other half",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for name in (*listed.columns, ""):
        shown.add_column(name, no_wrap=name != listed.columns[-1])  # a setting may take two lines
    for cells, name in zip(listed.rows, front["run_id"], strict=True):
        shown.add_row(*cells, "chosen" if name == best else "")
    return shown


def write_best(config: RunConfig, why: str, out: Path, console: Console) -> None:
    """Write best.yaml, the run to train next, with the reasons as comments."""
    best = out / "best.yaml"
    command = f"python sweeps/final.py {shlex.quote(str(out))}"
    alone = f"python -m tarflow train {shlex.quote(str(best))}"
    record.write_text(best, to_yaml(config, f"{why}\nTrain it: {command}\nWithout Ray: {alone}"))
    console.print(f"train next: {command}\nor without Ray: {alone}", soft_wrap=True)
