"""The answer to questions about a table of runs: in sentences, what matters most first."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from analysis.laws.fit import Fit
from analysis.reading import RunTable, name_rows, number
from analysis.tables import FLOPS, BestSize, HeldOut, Prediction, TableLaw, fit_table, hold_out
from tarflow.errors import UserError
from tarflow.human import count, interval, missing, percent, power

NEXT = 4.0  # times the largest compute of the table
LETTERS = {"params": "N", "tokens": "D", "flops": "C"}


@dataclass(frozen=True, eq=False)
class Answer:
    """What a table of runs says."""

    table: RunTable
    law: TableLaw
    columns: Mapping[str, str]  # column of the file by input
    predictions: tuple[tuple[Mapping[str, float], Prediction], ...]  # by point
    budget: float | None  # training FLOPs; None for a law of one input
    best_size: BestSize | None
    held_out: HeldOut | None


def ask(
    table: RunTable,
    columns: Mapping[str, str],
    points: Sequence[str] = (),
    budget: float | None = None,
    holdout: float | None = None,
    seed: int = 0,
) -> Answer:
    """Fit the law of a table and ask it.

    Args:
        table: The rows.
        columns: Column of the file by input: params and tokens, or flops.
        points: Runs to predict, such as `N=7B,D=2T`; by default one at 4 times the largest
            compute.
        budget: Training FLOPs to find the best size for; by default 4 times the largest.
        holdout: Share of the rows to fit before the others are predicted.
        seed: Seed of the bootstrap.

    Raises:
        UserError: If the rows cannot answer, or a point lacks an input.
    """
    if budget is not None and "flops" in columns:
        raise UserError("--budget needs --params and --tokens: one input tells no best size")
    if budget is not None and not 0 < budget < np.inf:
        raise UserError(f"--budget is {budget:g}: it must be positive")
    wanted = [_point(text, columns) for text in points]
    law = fit_table(table.values, seed)
    fitted = table.values.drop(index=list(law.alone))
    wanted = wanted or [_next(table, columns)]
    if budget is None and "params" in columns:
        budget = NEXT * FLOPS * float((table.values["params"] * table.values["tokens"]).max())
    return Answer(
        table=table,
        law=law,
        columns=columns,
        predictions=tuple((point, law.predict(**point)) for point in wanted),
        budget=budget,
        best_size=None if budget is None else law.best_size(budget),
        held_out=None if holdout is None else hold_out(fitted, holdout, seed),
    )


def in_sentences(answer: Answer) -> list[str]:
    """Return the answer, a line each: rows, law, predictions, best size, held-out rows."""
    law = answer.law
    table, used = answer.table, answer.table.values.drop(index=list(law.alone))
    lines = replace(table, values=used, left_out={**table.left_out, **law.alone}).summary()
    if law.nothing:
        return [*lines, law.nothing]
    if law.outliers:
        lines.append(f"Far from the law, so they hardly count: {name_rows(law.outliers)}.")
    lines.append(_choice(law))
    if law.ray:
        lines.append(
            f"Every row has {law.ray}, so nothing tells parameters from tokens: this is a law of "
            f"C = 6 N D, as --flops would fit. Its exponent holds along this line only."
        )
    lines += [_predicted(answer, point, value) for point, value in answer.predictions]
    lines += _best(answer)
    if answer.held_out:
        lines.append(_held_out(answer.held_out))
    return lines


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
        "predictions": [
            {"inputs": dict(point)} | asdict(value) for point, value in answer.predictions
        ],
        "best_size": answer.best_size and asdict(answer.best_size),
        "held_out": answer.held_out and asdict(answer.held_out),
        "fits": [_fit_to_plain(fit) for fit in law.fits],
    }


def _fit_to_plain(law: Fit) -> dict[str, Any]:
    return {
        "name": law.name,
        "formula": law.formula,
        "status": law.status,
        "rows": law.rows,
        "scale": law.scale,
        "agreement": law.agreement,
        "parameters": {
            name: {
                "value": value,
                "interval": list(law.intervals[name]),
                "identified": law.identified[name],
                "reason": law.reasons[name],
            }
            for name, value in law.values.items()
        },
    }


def _point(text: str, columns: Mapping[str, str]) -> dict[str, float]:
    """Read a run to predict: its inputs by column, letter or name."""
    names = {alias: name for name in columns for alias in (name, LETTERS[name], columns[name])}
    point = {}
    for part in text.split(","):
        key, _, cell = part.partition("=")
        value = number(cell)
        if key.strip() not in names or not 0 < value < np.inf:
            break
        point[names[key.strip()]] = value
    if point.keys() != columns.keys():
        example = ",".join(f"{column}=1e9" for column in columns.values())
        raise UserError(f"--predict '{text}': write it as {example}")
    return point


def _next(table: RunTable, columns: Mapping[str, str]) -> dict[str, float]:
    """Return the most expensive row, with every input raised to 4 times its compute."""
    rows = table.values[list(columns)].to_numpy(float)
    largest = rows[rows.prod(axis=1).argmax()]
    factor = NEXT ** (1 / len(columns))
    return dict(zip(columns, (factor * largest).tolist(), strict=True))


def _choice(law: TableLaw) -> str:
    chosen = next(item for item in law.scores if item.chosen)
    others = [item for item in law.scores if not item.chosen]
    start = f"Law: loss = {law.law.formula} ({law.law.name})"
    if not chosen.windows:
        return f"{start}, the simplest: too few rows to test forms on more expensive runs."
    windows = "1 window" if chosen.windows == 1 else f"{chosen.windows} windows"
    error = f"its error on rows beyond {windows} is {percent(chosen.error)}"
    if not others:
        return f"{start}: {error}."
    beaten = ", ".join(f"{item.form} {percent(item.error)}" for item in others)
    return f"{start}: no form predicts better by more than chance; {error} ({beaten})."


def _predicted(answer: Answer, point: Mapping[str, float], value: Prediction) -> str:
    law = answer.law.law
    at = ", ".join(f"{answer.columns[name]} = {count(x)}" for name, x in point.items())
    sizes = answer.table.values[list(point)].prod(axis=1)
    ratio = float(np.prod(list(point.values())) / sizes.max())
    largest = "compute" if "params" in point else answer.columns["flops"]
    ends = interval((value.low, value.high), _loss)
    text = f"Prediction at {at} ({ratio:.3g} times the largest {largest}): {_loss(value.value)}, "
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
        return [f"{start}unknown; these rows do not tell it within a factor of 10."]
    params = (
        f"{count(best.params)} parameters (90% interval {interval(best.params_interval, count)})"
    )
    tokens = f"{count(best.tokens)} tokens ({interval(best.tokens_interval, count)})"
    return [f"{start}{params}, {tokens}."]


def _held_out(held: HeldOut) -> str:
    return (
        f"Held out: the {held.rows} most expensive of these rows, predicted by {held.formula} "
        f"fitted to the others: mean error {percent(held.error)} (repeating the lowest loss: "
        f"{percent(held.repeat_error)}); {held.inside} of {held.rows} lie in their 90% intervals."
    )


def _loss(value: float) -> str:
    return "unknown" if missing(value) else f"{value:.4g}"
