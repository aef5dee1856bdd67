"""Which runs to train next, asked of a table of runs and a table of candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.belief import believe
from analysis.laws.forms import SURFACE_FORMS, Array
from analysis.laws.next_runs import NextRun, next_runs
from analysis.laws.observations import Observations
from analysis.table.law import FLOPS
from analysis.table.reading import LETTERS, RunTable, read_columns, read_point
from tarflow.errors import UserError
from tarflow.human import count as counted
from tarflow.human import names, percent, power

INPUTS = ("params", "tokens")
TOKENS_PER_PARAMETER = 20.0  # of the best size, while no run says otherwise (Hoffmann et al. 2022)
MOST = 2000  # candidates: memory grows with the square
SIZES = 60  # among which the best one of a budget is searched
BEYOND = 10.0  # factor by which that search exceeds the sizes of the tables


@dataclass(frozen=True, eq=False)
class Proposal:
    """The runs to train next, most useful first."""

    trained: RunTable
    candidates: pd.DataFrame  # params, tokens and cost by row of the file
    rows: tuple[int, ...]  # row of each run in the file
    runs: tuple[NextRun, ...]
    targets: tuple[Mapping[str, float], ...]
    unit: str  # of the cost
    notes: tuple[str, ...]  # on rows of either file that are not used


def propose(
    table: Path,
    candidates: Path,
    columns: Mapping[str, str],
    *,
    targets: Sequence[str] = (),
    budget: float | None = None,
    cost: str = "",
    count: int = 3,
) -> Proposal:
    """Choose the candidates that lower the uncertainty of a prediction most per cost.

    Args:
        table: Runs so far; its header is enough.
        candidates: Runs that could be trained; needs the input columns only.
        columns: Column of both files by name: params, tokens and, of the runs, loss.
        targets: Runs to predict, such as `N=7B,D=2T`.
        budget: Training FLOPs (6 N D) whose best size is to be predicted, if no target is given.
        cost: Column of the candidates with their cost; empty counts 6 N D.
        count: Number of runs to choose.

    Raises:
        UserError: If a table cannot be read, or a point or number makes no sense.
    """
    if count < 1:
        raise UserError(f"--count is {count}: it must be at least 1")
    if bool(targets) == (budget is not None):
        raise UserError("say what to predict: --target N=7B,D=2T, or --budget FLOPS")
    if budget is not None and not 0 < budget < np.inf:
        raise UserError(f"--budget is {budget:g}: it must be positive")
    inputs = {name: columns[name] for name in INPUTS}
    wanted = [_point(text, inputs) for text in targets]
    trained = read_columns(table, columns, empty=True)
    offered = read_columns(candidates, inputs | ({"cost": cost} if cost else {}))
    priced = offered.values
    if len(priced) > MOST:
        raise UserError(f"{candidates} has {len(priced):,} rows: name at most {MOST:,} candidates")
    if not cost:
        priced = priced.assign(cost=FLOPS * priced["params"] * priced["tokens"])
    data = Observations(_arrays(trained.values), trained.values["loss"].to_numpy(float))
    if budget is not None:
        wanted = [_best_size(data, priced, budget)]
    aim = {name: np.array([point[name] for point in wanted]) for name in INPUTS}
    runs = next_runs(data, _arrays(priced), priced["cost"].to_numpy(float), aim, count)
    return Proposal(
        trained=trained,
        candidates=priced,
        rows=tuple(int(priced.index[run.candidate]) for run in runs),
        runs=tuple(runs),
        targets=tuple(wanted),
        unit=f" ({cost})" if cost else " FLOPs",
        notes=tuple(
            f"{path}: {' '.join(read.summary())}"
            for path, read in ((table, trained), (candidates, offered))
            if len(read.values) < read.rows
        ),
    )


def in_words(proposal: Proposal) -> str:
    """Say in a sentence which runs to train, and what they are good for."""
    first, last = proposal.runs[0], proposal.runs[-1]
    at = names([_at(point) for point in proposal.targets], "; ")
    runs = f"{_at(_input(proposal, proposal.rows[0]))} (row {proposal.rows[0]})"
    alone = len(proposal.rows) == 1
    runs = runs if alone else f"rows {', '.join(map(str, proposal.rows))}"
    spent = power(sum(run.cost for run in proposal.runs), 3)
    effect = "it lowers" if alone else "they lower"
    return (
        f"Train {runs} next: {effect} the uncertainty of the prediction at {at} "
        f"from {percent(first.before)} to {percent(last.after)} for {spent}{proposal.unit}."
    )


def to_plain(proposal: Proposal) -> dict[str, Any]:
    """Return a proposal as plain JSON values."""
    return {
        "rows_used": len(proposal.trained.values),
        "targets": [dict(point) for point in proposal.targets],
        "runs": [
            {"row": row, **_input(proposal, row), "cost": run.cost}
            | {"uncertainty_before": run.before, "uncertainty_after": run.after}
            for row, run in zip(proposal.rows, proposal.runs, strict=True)
        ],
    }


def lines(proposal: Proposal) -> list[tuple[str, ...]]:
    """Return the cells of a table: rank, row, N, D, cost, and the uncertainty before and after."""
    return [
        (
            str(rank),
            str(row),
            *(counted(value) for value in _input(proposal, row).values()),
            power(run.cost, 3),
            percent(run.before),
            percent(run.after),
        )
        for rank, (row, run) in enumerate(zip(proposal.rows, proposal.runs, strict=True), 1)
    ]


def _input(proposal: Proposal, row: int) -> dict[str, float]:
    return {name: float(proposal.candidates[name][row]) for name in INPUTS}


def _arrays(values: pd.DataFrame) -> dict[str, Array]:
    return {name: values[name].to_numpy(float) for name in INPUTS}


def _at(point: Mapping[str, float]) -> str:
    return ", ".join(f"{LETTERS[name]} = {counted(value)}" for name, value in point.items())


def _point(text: str, inputs: Mapping[str, str]) -> dict[str, float]:
    """Read a run to predict, by letters, columns or names."""
    point = read_point(text, inputs)
    if point is None:
        raise UserError(f"--target '{text}': write it as N=7B,D=2T")
    return {name: point[name] for name in INPUTS}


def _best_size(data: Observations, candidates: pd.DataFrame, budget: float) -> dict[str, float]:
    """Return the size of the lowest expected loss at a budget, as far as is known now."""
    if not len(data.values):
        size = float(np.sqrt(budget / FLOPS / TOKENS_PER_PARAMETER))
        return {"params": size, "tokens": TOKENS_PER_PARAMETER * size}
    known = np.concatenate([data.inputs["params"], candidates["params"].to_numpy(float)])
    sizes = np.geomspace(known.min() / BEYOND, known.max() * BEYOND, SIZES)
    tokens = budget / FLOPS / sizes
    belief = believe(SURFACE_FORMS, data, {"params": sizes, "tokens": tokens})
    best = int(np.argmin(belief.mean))
    return {"params": float(sizes[best]), "tokens": float(tokens[best])}
