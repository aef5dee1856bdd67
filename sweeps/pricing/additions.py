"""Runs beyond the grid of a study: those that tell most about its next budget for their time."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from rich.console import RenderableType

from analysis.laws.allocation import SPAN, Sizes, best_run
from analysis.laws.belief import believe
from analysis.laws.forms import SURFACE_FORMS, Array
from analysis.laws.next_runs import NextRun, next_runs
from analysis.laws.observations import Observations
from analysis.laws.repetition import effective_tokens, unique_tokens
from analysis.study.advice import NEXT
from analysis.study.findings import find
from analysis.study.folder import read_study
from analysis.study.forecast import foretell, read_ledger
from analysis.study.rows import choose, group_budgets, known_noise, read_config, seed_noise
from sweeps.design.study import Addition, PlannedRun, Size, Study, grid, short
from sweeps.pricing.plan import Plan, finished
from tarflow import cost, human
from tarflow.errors import UserError
from tarflow.forecasts import write_outcome

SIZES = 60  # among which the best one of the next budget is searched


def grow(
    study: Study, out: Path, count: int, plan_of: Callable[..., Plan]
) -> tuple[Study, list[RenderableType]]:
    """Return a finished study with runs added up to a number, and why these, in lines.

    Runs that were added before count, so that the same command resumes them.

    Args:
        study: Resolved study, with the runs added before.
        out: Its folder.
        count: Number of runs beyond the grid.
        plan_of: Prices a study, or the runs it is given as `runs`.

    Raises:
        UserError: If the grid is not finished, or the study has no law.
    """
    if count < 1:
        raise UserError(f"next is {count}: it must be at least 1")
    missing = count - len(study.added)
    if missing <= 0:
        return study, []
    if study.role != "grid" or study.variants:
        raise UserError("--next needs a study with one law, not one that compares variants")
    unfinished = sum(row.state in ("to do", "partly") for row in plan_of(study).left)
    if unfinished:
        raise UserError(
            f"{unfinished} runs of this study are not done: run it without --next first"
        )
    offers = candidates(study)
    runs = [run for _, run in offers]
    plan = plan_of(study, runs=runs)
    prices = {r.run.run_id: r.seconds.total * r.run.config.execution.workers for r in plan.rows}
    chosen, words = _choose(out, runs, np.array([prices[run.run_id] for run in runs]), missing)
    device = plan.rate.accelerator or "core"
    seconds = sum(run.cost for run in chosen) / plan.rate.runs_per_device
    lines: list[RenderableType] = [f"{words} for {human.device_time(seconds, device)}:"]
    lines += [
        f"  {runs[item.candidate].label}: from {human.percent(item.before)} to "
        f"{human.percent(item.after)}"
        for item in chosen
    ]
    additions = (offers[item.candidate][0] for item in chosen)
    return replace(study, added=(*study.added, *additions)), [*lines, ""]


def foretell_additions(study: Study, out: Path, plan: Plan) -> None:
    """Write down what the laws predict for the added runs that have not started.

    Args:
        study: Resolved study.
        out: Its folder.
        plan: Plan of its runs.
    """
    own = {run.run_id for run in grid(replace(study, added=()))}
    ledger = read_ledger(out)
    known = own | {item.run_id for item in ledger}
    runs = [row.run for row in plan.rows if row.state == "to do" and row.run.run_id not in known]
    if runs:
        findings = find(*read_study(out), forecasts=ledger)
        for run in runs:
            foretell(findings, run.config, out, "next")


def settle(out: Path) -> None:
    """Put what runs of a study have achieved beside their forecasts."""
    for item in read_ledger(out):
        if not item.done and (row := finished(out, item.run_id)):
            write_outcome(out, row)


def candidates(study: Study) -> list[tuple[Addition, PlannedRun]]:
    """Return the runs that a study could add, none of which it has.

    Widths are those of the grid, those halfway between two of them, and one step beyond either
    end; budgets are those of the grid, halfway, and up to the held-out one.
    """
    own = {run.run_id for run in grid(study)}
    offers = []
    for size, budget in product(_sizes(study), _budgets(study)):
        addition = Addition(size=size, budget=budget)
        runs = grid(replace(study, added=(addition,), held_out=None, replicated=None))
        offers += [(addition, run) for run in runs if run.run_id not in own]
        own |= {run.run_id for run in runs}
    return offers


def _sizes(study: Study) -> list[Size]:
    shapes: dict[tuple[int, int | tuple[int, ...]], list[int]] = {}
    for size in study.sizes:
        shapes.setdefault((size.blocks, size.layers), []).append(size.channels)
    step = study.base.model.head_dim
    return [
        Size(channels=channels, blocks=blocks, layers=layers)
        for (blocks, layers), widths in shapes.items()
        for channels in sorted({*widths, *_new_widths(sorted(set(widths)), step)})
    ]


def _new_widths(widths: list[int], step: int) -> list[int]:
    """Return multiples of `step` halfway between neighbours, and one beyond either end."""
    if len(widths) < 2:
        return []
    between = [float(np.sqrt(low * high)) for low, high in pairwise(widths)]
    wanted = [widths[0] ** 2 / widths[1], *between, widths[-1] ** 2 / widths[-2]]
    return [step * round(width / step) for width in wanted if width >= step]


def _budgets(study: Study) -> list[float]:
    budgets = sorted({*study.budgets, *([study.held_out.budget] if study.held_out else [])})
    between = [float(f"{np.sqrt(low * high):.3g}") for low, high in pairwise(budgets)]
    return sorted({*budgets, *between})


def _choose(
    out: Path, runs: list[PlannedRun], prices: Array, count: int
) -> tuple[list[NextRun], str]:
    """Choose runs by what they tell about the best size of the next budget."""
    rows, _ = choose(read_study(out)[0])
    if rows.empty:
        raise UserError(f"{out} has no run that a law can read: --next has nothing to start from")
    rows, _ = group_budgets(rows)
    unique, noise = unique_tokens(rows), seed_noise(rows)
    data = Observations(
        _inputs(rows["params"].to_numpy(float), rows["tokens"].to_numpy(float), unique),
        rows["bpd"].to_numpy(float),
        noise=known_noise(noise, rows),
    )
    budget = NEXT * float(rows["flops"].max())
    middle = np.log(rows["params"]).mean()
    params = np.exp(np.linspace(middle - SPAN, middle + SPAN, SIZES))
    sizes = Sizes(read_config(best_run(rows)).model)
    sought = _inputs(params, budget / sizes.flops_per_token(params), unique)
    best = [int(believe(SURFACE_FORMS, data, sought).mean.argmin())]
    models = [run.config.model for run in runs]
    offered = _inputs(
        np.array([cost.params(model) for model in models], dtype=float),
        np.array([run.config.images * run.config.model.tokens for run in runs], dtype=float),
        unique,
    )
    target = {name: column[best] for name, column in sought.items()}
    chosen = next_runs(data, offered, prices, target, count)
    return chosen, (
        f"{len(chosen)} more run{'s' * (len(chosen) != 1)}, chosen to lower the uncertainty of "
        f"the prediction at {short(budget)} FLOPs, {NEXT:g} times the largest budget, from "
        f"{human.percent(chosen[0].before)} to {human.percent(chosen[-1].after)}"
    )


def _inputs(params: Array, tokens: Array, unique: float) -> dict[str, Array]:
    """Return sizes and data as laws read them, repeated tokens at their worth."""
    return {"params": params, "tokens": effective_tokens(tokens, unique)}
