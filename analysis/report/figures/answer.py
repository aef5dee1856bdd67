"""Figures of the law of any table.

Every number is read from an `Answer`, or is a value of its law on a grid.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from analysis.laws.forms import Array
from analysis.laws.observations import log_compute
from analysis.laws.validation import levels
from analysis.report.figures import theme
from analysis.report.figures.laws import add_band, add_law, residual
from analysis.report.figures.theme import INK, LAW, ORANGE, SOFT, figure, log_axis, marker, points
from analysis.table.answer import Answer, write_loss
from analysis.table.law import FLOPS, BestSize, Prediction
from tarflow.human import count, interval, power

NEAR = float(np.log(1.2))  # in ln(compute): rows within 20% of a budget are drawn with its curve
SHARED = 3  # rows that make a budget
MOST, CURVES = 6, 4  # curves of shared budgets, and of evenly spaced ones
AROUND = 15.0  # times the best size: how far a curve is drawn to both sides
BUDGETS = 16  # at which the best size is drawn
NAMES = {"params": "parameters", "tokens": "tokens"}


def rows_of(answer: Answer) -> pd.DataFrame:
    """Return the rows of the table with their compute, run_id and words for hovering.

    `predicted` is nan in rows left out because they spoil the law alone.
    """
    law, rows = answer.law, answer.table.values
    achieved = rows.loc[list(law.rows), "loss"]
    inputs = {name: rows[name] for name in answer.columns if name != "group"}
    rows = rows.assign(
        predicted=achieved / np.exp(law.law.residuals), compute=_compute(answer, inputs)
    )
    words = [
        f"<b>row {row}</b>, {_point_in_words(answer, cells.to_dict())}<br>"
        f"{write_loss(cells['loss'])}, "
        + (law.alone.get(row) or f"by the law {write_loss(cells['predicted'])}")
        for row, (_, cells) in zip(rows.index.tolist(), rows.iterrows(), strict=True)
    ]
    return rows.assign(run_id=[f"row {row}" for row in rows.index], words=words)


def input_name(answer: Answer, name: str) -> str:
    """Return what an axis calls an input: what it is, and its column.

    The column of a law of one input says what it is.
    """
    column = answer.columns[name]
    words = NAMES.get(name, column if name == "flops" else name.replace("_", " "))
    return words if column in (words, name) else f"{words} ({column})"


def losses(answer: Answer, rows: pd.DataFrame, loss: str) -> go.Figure:
    """Draw losses against compute, the law, rows far from it, and the predictions."""
    shown = figure(_compute_name(answer), loss, height=520)
    asked = [] if answer.law.nothing else _asked(answer)
    reach = [*rows["compute"], *(compute for compute, _, _ in asked)]
    if not answer.law.nothing:
        _law(shown, answer, rows, max(reach))
    used = rows.dropna(subset=["predicted"])
    for name, part, colours in _parts(answer, used):
        shown.add_trace(_dots(part, "loss", marker=marker(INK, color=colours), name=name))
    for name, named, look in (
        ("far from the law", answer.law.outliers, theme.ring(ORANGE, "circle-open", 16, 2)),
        ("left out", answer.law.alone, theme.ring(SOFT, "x-thin-open", 10, 2)),
    ):
        if named and not answer.law.nothing:
            shown.add_trace(_dots(rows.loc[list(named)], "loss", marker=look, name=name))
    if asked:
        shown.add_trace(_predictions(asked))
    return shown.update_xaxes(log_axis(reach, _compute_writer(answer)))


def has_sizes(answer: Answer) -> bool:
    """Tell whether the law knows size from data, so that a budget of 6 N D has a best size."""
    return set(answer.columns) == {"params", "tokens"} and not answer.law.ray


def slices(answer: Answer, rows: pd.DataFrame, loss: str) -> go.Figure:
    """Draw the loss of the law against size at several budgets of 6 N D, and the best sizes."""
    shown = figure(input_name(answer, "params"), loss, height=480)
    budgets = _budgets(answer, rows["compute"].to_numpy())
    colours = theme.shades(budgets)
    reach = []
    for budget in budgets:
        near = rows[np.abs(np.log(rows["compute"] / budget)) < NEAR]
        best = answer.law.best_size(budget)
        ends = [*near["params"], *([best.params / AROUND, best.params * AROUND] if best else [])]
        ends = ends or [rows["params"].min(), rows["params"].max()]
        grid = np.geomspace(min(ends), max(ends), 60)
        reach += [min(ends), max(ends)]
        for trace in _slice(answer, budget, grid, colours[budget]):
            shown.add_trace(trace)
        look = {"marker": marker(colours[budget]), "showlegend": False}
        shown.add_trace(_dots(near, "loss", x="params", legendgroup=power(budget), **look))
        if best:
            shown.add_trace(_star(answer, best, colours[budget]))
    return shown.update_xaxes(log_axis(reach, count))


def best_sizes(answer: Answer, rows: pd.DataFrame) -> dict[str, go.Figure]:
    """Draw the best size and tokens against the budget, where the rows tell them."""
    ends = _with_budget(answer, [rows["compute"].min(), rows["compute"].max()])
    found = [answer.law.best_size(c) for c in np.geomspace(min(ends), max(ends), BUDGETS)]
    known = [best for best in found if best]
    if len(known) < 2:
        return {}
    return {
        f"best {name}": _best_against_budget(answer, known, name) for name in ("params", "tokens")
    }


def residuals(answer: Answer, rows: pd.DataFrame) -> dict[str, go.Figure]:
    """Draw the residuals against every input."""
    rows = rows.assign(residual=100 * np.expm1(answer.law.law.residuals))
    shown = {}
    for name in answer.columns:
        if name == "group":
            continue
        dots = _dots(rows, "residual", x=name, marker=marker(INK, color=_shades(rows)))
        shown[input_name(answer, name)] = residual(dots, input_name(answer, name), count)
    return shown


def _law(shown: go.Figure, answer: Answer, rows: pd.DataFrame, reach: float) -> None:
    """Draw a law of one input up to `reach`; of several, its value at each row."""
    law = answer.law.law
    if set(law.data.inputs) == {"flops"}:
        flops = rows["compute"]
        add_band(shown, law, np.geomspace(flops.min(), reach, 120))
        beyond = np.geomspace(flops.max(), reach, 40)
        add_law(shown, law, flops, beyond, "%{y:.4g} at %{x:.3s}")
    else:
        look = theme.ring(LAW, "line-ew-open", 13, 1.5)
        shown.add_trace(_dots(rows, "predicted", marker=look, name="the law at each row"))


def _compute(answer: Answer, inputs: Mapping[str, ArrayLike]) -> Array:
    """Return 6 N D, or the only input, or else the compute relative to the largest of the law."""
    compute: Array = np.exp(log_compute(inputs))
    if "flops" in inputs:
        return compute
    if {"params", "tokens"} <= set(inputs):
        return FLOPS * compute
    relative: Array = compute / answer.law.law.data.compute.max()
    return relative


def _compute_name(answer: Answer) -> str:
    if "flops" in answer.columns:
        return answer.columns["flops"]
    if {"params", "tokens"} <= set(answer.columns):
        return "training FLOPs (6 N D)"
    return "compute, times the largest"


def _compute_writer(answer: Answer) -> Callable[[float], str]:
    return power if {"params", "tokens"} <= set(answer.columns) else count


def _point_in_words(answer: Answer, point: Mapping[Any, Any]) -> str:
    return ", ".join(
        f"{column} {cell if isinstance(cell, str) else count(cell)}"
        for name, column in answer.columns.items()
        for cell in [point[name]]
    )


def _asked(answer: Answer) -> list[tuple[float, Prediction, str]]:
    """Return compute, prediction and words of each point that was asked for."""
    asked = []
    for point, value in answer.predictions:
        inputs = {name: x for name, x in point.items() if name != "group"}
        ends = interval((value.low, value.high), write_loss)
        text = f"<b>predicted {write_loss(value.value)}</b>, 90% interval {ends}<br>"
        text += _point_in_words(answer, point)
        asked.append((float(_compute(answer, inputs)), value, text))
    return asked


def _predictions(asked: Sequence[tuple[float, Prediction, str]]) -> go.Scatter:
    values = [value.value for _, value, _ in asked]
    ends = [
        (value.low, value.high) if np.isfinite(value.high) else (value.value, value.value)
        for _, value, _ in asked
    ]
    return points(
        [compute for compute, _, _ in asked],
        values,
        [text for _, _, text in asked],
        error_y=theme.around(values, ends, theme.HELD_OUT),
        marker=theme.ring(theme.HELD_OUT, "diamond-open", 11, 2),
        name="prediction, 90% interval",
    )


def _dots(rows: pd.DataFrame, y: str, x: str = "compute", **style: Any) -> go.Scatter:
    return theme.dots(rows, x, y, lambda row: str(row["words"]), **style)


def _shades(rows: pd.DataFrame) -> str | list[str]:
    """Return the colours of rows, by size if they have one."""
    if "params" not in rows:
        return INK
    shades = theme.shades(rows["params"])
    return [shades[params] for params in rows["params"]]


def _parts(answer: Answer, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str | list[str]]]:
    """Return name, rows and colours of each group, or of all rows."""
    if not answer.law.groups:
        return [("rows", rows, _shades(rows))]
    return [
        (name, rows[rows["group"] == name], theme.CATEGORIES[at % len(theme.CATEGORIES)])
        for at, name in enumerate(answer.law.groups)
    ]


def _budgets(answer: Answer, compute: Array) -> list[float]:
    """Return the budgets of the rows if they share some, otherwise evenly spaced ones."""
    parts = [compute[part] for part in levels(compute)]
    shared = [len(part) >= SHARED and float(np.ptp(np.log(part))) < NEAR for part in parts]
    if all(shared) and len(parts) <= MOST:
        budgets = [float(np.exp(np.log(part).mean())) for part in parts]
    else:
        budgets = np.geomspace(compute.min(), compute.max(), CURVES).tolist()
    return _with_budget(answer, budgets)


def _with_budget(answer: Answer, budgets: list[float]) -> list[float]:
    return sorted({*budgets, answer.budget or budgets[-1]})


def _slice(answer: Answer, budget: float, grid: Array, colour: str) -> list[go.Scatter]:
    law, tokens = answer.law.law, budget / FLOPS / grid
    group = power(budget)
    hover = "%{y:.4g} at %{x:.3s}<extra>" + group + " FLOPs</extra>"
    line = theme.line(grid, law.predict(params=grid, tokens=tokens), colour, "solid", 1.8, hover)
    drawn = [line.update(legendgroup=group, name=f"{group} FLOPs")]
    low, high = law.band(params=grid, tokens=tokens)
    if np.isfinite(low).all():
        band = theme.band(grid, low, high, theme.faded(colour), f"90% band, {group} FLOPs")
        drawn.append(band.update(legendgroup=group, showlegend=False))
    return drawn


def _star(answer: Answer, best: BestSize, colour: str) -> go.Scatter:
    value = float(answer.law.law.predict(params=best.params, tokens=best.tokens))
    text = f"<b>best size {count(best.params)}</b>, {write_loss(value)}<br>90% interval "
    text += interval(best.params_interval, count)
    return points(
        [best.params],
        [value],
        [text],
        error_x=theme.around([best.params], [best.params_interval], colour),
        marker=marker(colour, "star", 15),
        legendgroup=power(best.flops),
        showlegend=False,
        name=f"best size, {power(best.flops)} FLOPs",
    )


def _best_against_budget(answer: Answer, known: Sequence[BestSize], name: str) -> go.Figure:
    budgets = [best.flops for best in known]
    low, high = (
        np.array([getattr(best, f"{name}_interval")[side] for best in known]) for side in (0, 1)
    )
    values = [getattr(best, name) for best in known]
    shown = figure("training FLOPs (6 N D)", f"best {input_name(answer, name)}", height=380)
    shown.add_trace(theme.band(np.array(budgets), low, high, theme.BAND, "90% interval"))
    hover, texts = "%{y:.3s} at %{text} FLOPs<extra></extra>", [power(x) for x in budgets]
    line = theme.line(budgets, values, LAW, "solid", 2, hover, text=texts, name="by the law")
    shown.add_trace(line)
    if answer.best_size:
        best, ends = answer.best_size, getattr(answer.best_size, f"{name}_interval")
        value = getattr(best, name)
        text = f"<b>{count(value)}</b> at {power(best.flops, 3)} FLOPs<br>90% interval "
        text += interval(ends, count)
        shown.add_trace(
            points(
                [best.flops],
                [value],
                [text],
                error_y=theme.around([value], [ends], theme.HELD_OUT),
                marker=theme.ring(theme.HELD_OUT, "diamond-open", 11, 2),
                name=f"at {power(best.flops, 3)} FLOPs",
            )
        )
    shown.update_xaxes(log_axis(budgets, most=4))
    return shown.update_yaxes(log_axis([*low, *high], count))
