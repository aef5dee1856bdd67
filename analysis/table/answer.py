"""The answer to questions about a table of runs: in sentences, what matters most first."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.design import doubts
from analysis.laws.intervals import LEVEL
from analysis.laws.observations import log_compute
from analysis.laws.validation import coverage
from analysis.study.plain import fit_to_plain
from analysis.table.law import (
    AUTO,
    FLOPS,
    BestSize,
    HeldOut,
    Options,
    Prediction,
    TableLaw,
    fit_table,
    hold_out,
)
from analysis.table.reading import RunTable, name_rows, read_columns, read_point
from tarflow.errors import UserError
from tarflow.human import count, interval, missing, percent, power, series

ONE_EXPONENT = ", if size and data have one exponent, which so few rows cannot tell"
NEXT = 4.0  # times the largest compute of the table


@dataclass(frozen=True, eq=False)
class Answer:
    """What a table of runs says."""

    table: RunTable
    law: TableLaw
    columns: Mapping[str, str]  # column of the file by input
    predictions: tuple[tuple[Mapping[str, Any], Prediction], ...]  # by point
    budget: float | None  # training FLOPs; None for a law of one input
    best_size: BestSize | None
    held_out: HeldOut | None


def fit(
    table: str | Path | pd.DataFrame,
    *,
    loss: str,
    where: Sequence[str] = (),
    options: Options = AUTO,
    **columns: str,
) -> TableLaw:
    """Fit the law of a table of runs, as `python -m analysis fit` does.

    Args:
        table: The table, or its file.
        loss: Column to explain.
        where: Conditions on the rows of a file, such as `optimizer=adamw`.
        options: How to fit.
        columns: Column by its part in the law: params and tokens, or flops for any single input;
            also run, group, weights, width, depth, blocks, batch or unique_tokens.

    Raises:
        UserError: If the table lacks a column or has too few rows.
    """
    texts: dict[str, str] = {}
    for name in {"run", "group"} & set(columns):
        texts[name] = columns.pop(name)
    named = {"loss": loss, **columns}
    if not isinstance(table, pd.DataFrame):
        return fit_table(read_columns(Path(table), named, where, texts).values, options)
    if missing := [column for column in {**named, **texts}.values() if column not in table]:
        raise UserError(f"the table has no column {missing[0]!r}")
    values = pd.DataFrame({name: table[column].astype(float) for name, column in named.items()})
    values = values.assign(**{name: table[column].astype(str) for name, column in texts.items()})
    return fit_table(values, options)


def ask(
    table: RunTable,
    columns: Mapping[str, str],
    points: Sequence[str] = (),
    budget: float | None = None,
    holdout: float | None = None,
    options: Options = AUTO,
) -> Answer:
    """Fit the law of a table and ask it.

    Args:
        table: The rows.
        columns: Column of the file by input: params and tokens, or flops.
        points: Runs to predict, such as `N=7B,D=2T`; by default one at 4 times the largest
            compute.
        budget: Training FLOPs to find the best size for; by default 4 times the largest.
        holdout: Share of the rows to fit before the others are predicted.
        options: How to fit.

    Raises:
        UserError: If the rows cannot answer, or a point lacks an input.
    """
    if budget is not None and set(columns) != {"params", "tokens"}:
        raise UserError("--budget needs --params and --tokens, and no other input")
    if budget is not None and not 0 < budget < np.inf:
        raise UserError(f"--budget is {budget:g}: it must be positive")
    wanted = [_point(text, columns) for text in points]
    law = fit_table(table.values, options)
    fitted = table.values.drop(index=list(law.alone))
    wanted = wanted or [_next(fitted, columns)]
    if budget is None and set(columns) == {"params", "tokens"}:
        budget = NEXT * FLOPS * float((fitted["params"] * fitted["tokens"]).max())
    return Answer(
        table=table,
        law=law,
        columns=columns,
        predictions=tuple((point, law.predict(**point)) for point in wanted),
        budget=budget,
        best_size=None if budget is None else law.best_size(budget),
        held_out=None if holdout is None else hold_out(fitted, holdout, options),
    )


def in_sentences(answer: Answer) -> list[str]:
    """Return the answer, a line each: rows, law, conclusions, held-out rows."""
    law = answer.law
    table, used = answer.table, answer.table.values.drop(index=list(law.alone))
    lines = replace(table, values=used, left_out={**table.left_out, **law.alone}).summary()
    if law.nothing:
        return [*lines, *conclusions(answer)]
    if law.outliers:
        lines.append(f"Far from the law, so they hardly count: {name_rows(law.outliers)}.")
    lines += _choice(law, answer.columns.get("flops", "compute"))
    if law.ray:
        lines.append(
            f"Every row has {law.ray}, so nothing tells parameters from tokens: this is a law of "
            f"C = 6 N D, as --flops would fit. Its exponent holds along this line only."
        )
    if set(answer.columns) == {"params", "tokens"} and not law.ray:
        lines += _doubts(used)
    lines += conclusions(answer)
    if answer.held_out:
        lines.append(_held_out(answer.held_out))
    return lines


def _doubts(values: pd.DataFrame) -> list[str]:
    """Return what the rows could not tell even a perfect law."""
    flops = FLOPS * values["params"] * values["tokens"]
    return doubts(values.rename(columns={"loss": "bpd"}).assign(flops=flops))


def conclusions(answer: Answer) -> list[str]:
    """Return the predictions and the best size, a line each, or that there is no law."""
    if answer.law.nothing:
        return [answer.law.nothing]
    return [
        *(_predicted(answer, point, value) for point, value in answer.predictions),
        *_best(answer),
    ]


def to_plain(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain JSON values."""
    table, law = answer.table, answer.law
    return {
        "rows": table.rows,
        "rows_used": len(law.rows),
        "rows_repeated": table.repeats,
        "rows_excluded": table.unasked,
        "left_out": {str(row): why for row, why in {**table.left_out, **law.alone}.items()},
        "no_law": law.nothing,
        "residual_scale": law.scale,
        "law": law.law.name,
        "forms": [asdict(item) for item in law.law.scores],
        "rollouts": [asdict(item) for item in coverage(law.law.rollouts)],
        "predictions": [
            {"inputs": dict(point)} | asdict(value) for point, value in answer.predictions
        ],
        "best_size": answer.best_size and asdict(answer.best_size),
        "held_out": answer.held_out and asdict(answer.held_out),
        "parameters_of": law.law.general.name,
        "fits": [fit_to_plain(fit) for fit in law.law.fits],
    }


def write_loss(value: float) -> str:
    """Write a loss with four digits."""
    return "unknown" if missing(value) else f"{value:.4g}"


def _point(text: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Read a run to predict: its inputs by column, letter or name."""
    point = read_point(text, columns)
    if point is None:
        example = ",".join(
            f"{column}={'NAME' if name == 'group' else '1e9'}" for name, column in columns.items()
        )
        raise UserError(f"--predict '{text}': write it as {example}")
    return point


def _next(values: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the most expensive row, with size and tokens raised to 4 times its compute."""
    numbers = {name: values[name].to_numpy(float) for name in columns if name != "group"}
    row = values.iloc[int(log_compute(numbers).argmax())]
    raised = [name for name in ("params", "tokens", "flops") if name in columns] or list(numbers)
    factor = NEXT ** (1 / len(raised))
    return {name: row[name] * factor if name in raised else row[name] for name in columns}


def _choice(law: TableLaw, of: str) -> list[str]:
    """Say what the law is, how it did on rows it had not seen, and how it weighs rows.

    Args:
        law: The law.
        of: What makes rows expensive: compute, or the name of the only input.
    """
    scores = sorted(law.law.scores, key=lambda item: -item.weight)
    windows = len(law.law.trials.windows)
    if not windows:
        return [
            f"Law: {scores[0].form}, the simplest: too few rows to test forms on more expensive "
            "runs."
        ]
    shares = ", ".join(
        f"{item.form} {percent(item.weight)} (error {percent(item.error)})" for item in scores
    )
    own = percent(law.law.rollout_error)
    beyond = "1 window" if windows == 1 else f"{windows} windows"
    lines = [
        "Law: the average of the forms, weighted by their errors on the rows beyond "
        f"{beyond} of cheaper, smaller or shorter runs: {shares}; the average {own}."
    ]
    bands = coverage(law.law.rollouts)[-1]
    if bands.total:
        lines.append(
            f"There, {bands.inside} of {bands.total} more expensive rows lie in their {LEVEL:.0%} "
            f"intervals (interval score {percent(bands.score)})."
        )
    counted = [
        f"{percent(share)} counts "
        + (f"rows by their {of} to the power {power:g}" if power else "all rows alike")
        for power, share in law.law.focus.items()
    ]
    return [*lines, f"Of the average, {series(counted)}."]


def _predicted(answer: Answer, point: Mapping[str, Any], value: Prediction) -> str:
    law = answer.law.law
    at = ", ".join(
        f"{answer.columns[name]} = {x if name == 'group' else count(x)}"
        for name, x in point.items()
    )
    numbers = {name: x for name, x in point.items() if name != "group"}
    largest = float(np.exp(log_compute(law.data.inputs).max()))
    if answer.law.ray:
        numbers = {"flops": FLOPS * numbers["params"] * numbers["tokens"]}
    ratio = float(np.exp(log_compute(numbers)) / largest)
    least = answer.columns.get("flops", "compute")
    ends = interval((value.low, value.high), write_loss)
    text = (
        f"Prediction at {at} ({ratio:.3g} times the largest {least}): {write_loss(value.value)}, "
    )
    text += f"90% interval {ends}."
    return " ".join(filter(None, [text, law.discrepancy.caution(max(0.0, float(np.log(ratio))))]))


def _best(answer: Answer) -> list[str]:
    if answer.budget is None:
        return []
    start = f"Best size for {power(answer.budget, 3)} FLOPs (6 N D): "
    best = answer.best_size
    if answer.law.ray:
        return [f"{start}unknown; train some runs off the line {answer.law.ray}."]
    if best is None:
        ends = answer.law.size_interval(answer.budget)
        wide = f" (90% interval {interval(ends, count)} parameters)" if ends else ""
        return [f"{start}unknown; these rows do not tell it within a factor of 10{wide}."]
    params = (
        f"{count(best.params)} parameters (90% interval {interval(best.params_interval, count)})"
    )
    tokens = f"{count(best.tokens)} tokens ({interval(best.tokens_interval, count)})"
    only = "" if answer.law.law.untied.form.name != "tied" else ONE_EXPONENT
    return [f"{start}{params}, {tokens}{only}."]


def _held_out(held: HeldOut) -> str:
    return (
        f"Held out: the {held.rows} most expensive of these rows, predicted by a law of the "
        f"others: mean error {percent(held.error)} (repeating the lowest loss: "
        f"{percent(held.repeat_error)}); {held.inside} of {held.rows} lie in their 90% intervals."
    )
