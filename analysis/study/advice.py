"""The run to train next: size and images of a law, hyperparameters of the best run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.laws.allocation import Allocation, allocate, best_run
from analysis.laws.repetition import HARMLESS, unique_tokens
from analysis.study.findings import Findings
from analysis.study.rows import read_config
from tarflow import cost
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.human import bits, count, interval, power
from tarflow.identity import run_id

NEXT = 4.0  # times the largest budget of a study


@dataclass(frozen=True)
class Recommendation:
    """The run to train next, and the reasons in plain sentences."""

    config: RunConfig
    explanation: str
    allocation: Allocation


def learning_rate(runs: pd.DataFrame) -> Callable[[float], float]:
    """Return the learning rate by parameters: log-log between the sizes of the study, flat beyond.

    Each size counts with its best run at the largest budget it was trained at.
    """
    best = runs[["budget", "bpd", "run_id", "params", "lr"]]
    best = best.sort_values(["budget", "bpd", "run_id"], ascending=[False, True, True])
    best = best.drop_duplicates("params").sort_values("params")
    x, y = np.log(best["params"].to_numpy(float)), np.log(best["lr"].to_numpy(float))
    return lambda params: float(np.exp(np.interp(np.log(params), x, y)))


def _rate_in_words(runs: pd.DataFrame, params: float, rate: float) -> str:
    smallest, largest = runs["params"].min(), runs["params"].max()
    if smallest <= params <= largest:
        return f"Learning rate {rate:g}, interpolated over the sizes of the study."
    edge = "largest" if params > largest else "smallest"
    return f"Learning rate {rate:g}, clamped to that of the {edge} size trained: tune it first."


def repetition(findings: Findings, config: RunConfig) -> list[str]:
    """Say how often a run repeats its images and how many it needs; nothing up to four epochs.

    Args:
        findings: What the study shows.
        config: The run.
    """
    runs, surface = findings.runs, findings.surface
    unique = unique_tokens(runs) / config.model.tokens
    epochs = config.images / unique
    if epochs <= HARMLESS:
        return []
    trained = float(runs["epochs"].max())
    place = "beyond the" if epochs > trained else "within the"
    fresh = surface and surface.with_unique_tokens(np.inf)
    ideal = allocate(cost.run_flops(config), runs, config, fresh, findings.isoflops)
    needed = ideal.images / HARMLESS
    return [
        f"It sees the {count(unique)} training images {epochs:.3g} times, {place} {trained:.3g} "
        "epochs that the study trained.",
        f"Beyond {HARMLESS:g} epochs, repeats are worth less and less."
        + f" This budget needs more data: {count(needed)} different images for a model of "
        f"{count(ideal.model_params)} parameters." * (needed > unique),
    ]


def check_budget(flops: float) -> None:
    """Check that a budget of training FLOPs is a positive number.

    Raises:
        UserError: If it is not.
    """
    if not 0 < flops < float("inf"):
        raise UserError(f"flops is {flops:g}: a budget must be positive")


def recommend(findings: Findings, flops: float | None = None) -> Recommendation:
    """Return the config to train with a budget; see `recommend_each`."""
    return recommend_each(findings, [flops])[0]


def recommend_each(
    findings: Findings, budgets: Sequence[float | None]
) -> tuple[Recommendation, ...]:
    """Return the config to train with each budget; None is 4 times the largest trained so far.

    That includes runs outside the study whose forecast has its outcome, such as best.yaml trained
    by `python -m tarflow train`.

    Size and images come from the laws. The learning rate follows the size as it did in the study;
    beyond the sizes of the study, it is that of the nearest one.
    Everything else is that of the best run of the largest budget.

    Raises:
        UserError: If the study has no finished run to start from, or a budget is not positive.
    """
    runs = findings.runs
    if not len(runs):
        raise UserError("nothing to recommend: no finished grid run in this study")
    done = [item for item in findings.forecasts if item.done and item.predicted is not None]
    following = NEXT * max(findings.budgets[-1].flops, *(item.flops for item in done), 0.0)
    best = best_run(runs)
    start = _Start(
        findings=findings,
        best=str(best["run_id"]),
        template=read_config(best),
        rate=learning_rate(runs) if runs["lr"].nunique() > 1 else None,
        trained=frozenset([*findings.finished["run_id"], *(item.run_id for item in done)]),
    )
    return tuple(_recommend(start, following if flops is None else flops) for flops in budgets)


@dataclass(frozen=True, eq=False)
class _Start:
    """What the recommendations for all budgets start from."""

    findings: Findings
    best: str  # id of the best run of the largest budget
    template: RunConfig  # its config
    rate: Callable[[float], float] | None  # by parameters; None if all runs share that of `best`
    trained: frozenset[str]  # ids of runs that need no recommendation


def _recommend(start: _Start, flops: float) -> Recommendation:
    check_budget(flops)
    findings, runs, template = start.findings, start.findings.runs, start.template
    allocation = allocate(flops, runs, template, findings.surface, findings.isoflops)
    model = replace(template.model, channels=allocation.channels)
    rate = template.optim.lr
    if start.rate:
        rate = float(f"{start.rate(allocation.model_params):.4g}")
    config = replace(
        template, model=model, images=allocation.images, optim=replace(template.optim, lr=rate)
    )
    while run_id(config) in start.trained:
        config = replace(config, images=config.images + config.batch)
    ratio = cost.run_flops(config) / findings.budgets[-1].flops
    why = {
        "surface law": "the surface law L(N, D)",
        "IsoFLOP minima": "the power law through the IsoFLOP minima, because the surface law does "
        "not determine the best size",
        "best run": "the best run of the largest budget, because neither the surface law nor the "
        "IsoFLOP minima determine how the best size grows",
    }[allocation.source]
    lines = [
        f"{power(cost.run_flops(config), 3)} FLOPs, {ratio:.3g} times the largest budget of the "
        "study.",
        f"Size from {why}: {cost.params(model):,} parameters ({model.channels} channels), "
        f"{config.images:,} images.",
    ]
    if allocation.bpd is not None and allocation.bpd_interval is not None:
        low, high = allocation.bpd_interval
        ends = interval((low, high), bits)
        lines.append(f"Expected {findings.bpd_name} {bits(allocation.bpd)} (90%: {ends}).")
        lines += [allocation.caution] if allocation.caution else []
    if allocation.edge:
        lines.append(f"At the edge: {allocation.edge}.")
    lines += repetition(findings, config)
    if start.rate:
        lines.append(_rate_in_words(runs, allocation.model_params, rate))
    lines.append(f"Everything else is as in run {start.best}, the best of the largest budget.")
    return Recommendation(config, "\n".join(lines), allocation)
