"""Figures of the laws; None when there is nothing to show.

Every number is read from `Findings`, or is the value of a law on a grid.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.laws.allocation import Allocation
from analysis.laws.average import Law
from analysis.laws.intervals import LEVEL
from analysis.laws.isoflop import IsoFlop
from analysis.laws.predictor import Predictor
from analysis.report.figures import theme
from analysis.report.figures.theme import INK, LAW, SOFT, dots, figure, log_axis, marker
from analysis.study.advice import Recommendation
from analysis.study.budgets import Plan
from analysis.study.findings import Findings, HeldOut
from tarflow.forecasts import Forecast
from tarflow.human import bits, count, interval, percent, power

FLOPS = "training FLOPs"
EXTRAPOLATE = 10.0  # times the largest budget: how far the law is drawn
DIVIDE = 1.15  # times the largest FLOPs of a run: where fitted and predicted are divided


def runs_against_flops(
    findings: Findings, plans: Sequence[Plan], advice: Recommendation | None
) -> go.Figure | None:
    """Draw all runs and the law, what it predicts beyond them, and how forecasts came out.

    Args:
        findings: What the study shows.
        plans: Best runs of many budgets by the law of size and data; empty without one.
        advice: The run to train next, or None.
    """
    runs = findings.runs if len(findings.runs) else findings.finished
    if runs.empty:
        return None
    shown = figure(FLOPS, findings.bits_unit, height=500)
    reach = [runs["flops"].min(), runs["flops"].max()]
    divided = reach[1] * DIVIDE
    if plans or findings.frontier:
        reach[1] *= EXTRAPOLATE
    if plans:
        _best_of_budgets(shown, [plan for plan in plans if plan.flops <= reach[1]], divided)
    elif findings.frontier:
        beyond = np.geomspace(runs["flops"].max(), reach[1], 40)
        add_band(shown, findings.frontier, beyond)
        add_law(shown, findings.frontier, runs["flops"], beyond, "%{y:.3f} bits")
    drawn = theme.thinned(shown, runs.sort_values("flops"))
    for position, (params, colour, group) in enumerate(theme.by_size(drawn)):
        shown.add_trace(
            dots(
                group,
                "flops",
                "bpd",
                mode="lines+markers",
                line={"color": colour, "width": 1},
                marker=marker(colour, theme.symbol(position)),
                name=f"{count(params)} params",
            )
        )
    if held_out := findings.held_out_best:
        _held_out(shown, held_out)
    if plans or findings.frontier:
        _divide(shown, divided)
    _stars(shown, [item for item in findings.forecasts if item.achieved is not None])
    if advice:
        _next(shown, advice)
    return shown.update_xaxes(log_axis(reach))


def _best_of_budgets(shown: go.Figure, plans: Sequence[Plan], divided: float) -> None:
    """Draw the law at the best size of every budget, with its band beyond the runs."""
    flops, values, low, high = expected(plans)
    beyond = flops >= flops[flops <= divided][-1]  # the two lines share a point
    if np.isfinite(high - low).all():
        band = theme.band(flops[beyond], low[beyond], high[beyond], theme.BAND, "90% band")
        shown.add_trace(band)
    for part, dash, name in ((flops <= divided, "solid", "law"), (beyond, "dash", "")):
        line = law_line(flops[part], values[part], dash, 2.5)
        shown.add_trace(line.update(name=name or "law, extrapolated", showlegend=bool(name)))


def expected(plans: Sequence[Plan]) -> np.ndarray:
    """Return FLOPs, predicted bits per dimension and both ends of their band, (4, P)."""
    items = [(plan.flops, plan.recommendation.allocation) for plan in plans]
    rows = [(flops, item.bpd, *(item.bpd_interval or (np.nan, np.nan))) for flops, item in items]
    return np.array(rows, dtype=float).T


def law_line(flops: np.ndarray, values: np.ndarray, dash: str, width: float) -> go.Scatter:
    """Return predictions as a line that says the bits of each budget."""
    hover = "%{y:.3f} bits at %{text} FLOPs<extra>law</extra>"
    return theme.line(flops, values, LAW, dash, width, hover, text=[power(x) for x in flops])


def add_band(shown: go.Figure, law: Predictor, flops: np.ndarray) -> None:
    """Draw the band in which new runs fall, if it is known."""
    low, high = law.band(flops=flops)
    if np.isfinite(low).all():
        shown.add_trace(theme.band(flops, low, high, theme.BAND, "90% band"))


def add_law(
    shown: go.Figure, law: Predictor, flops: pd.Series, beyond: np.ndarray, hover: str
) -> None:
    """Draw a law of one input, solid within the rows and dashed beyond them.

    Args:
        shown: Figure to draw on.
        law: The law.
        flops: The input of the rows.
        beyond: Grid beyond the rows.
        hover: Plotly's template of the hover text.
    """
    inside = np.geomspace(flops.min(), flops.max(), 60)
    for grid, dash, name in ((inside, "solid", "law"), (beyond, "dash", "")):
        line = theme.line(
            grid, law.predict(flops=grid), LAW, dash, 2.5, f"{hover}<extra>law</extra>"
        )
        shown.add_trace(line.update(name=name or "law, extrapolated", showlegend=bool(name)))


def _divide(shown: go.Figure, at: float) -> None:
    """Draw the line between the runs that were fitted and what is predicted from them."""
    shown.add_shape(
        type="line", x0=at, x1=at, y0=0, y1=1, yref="paper", line={"color": SOFT, "dash": "dot"}
    )
    for side, text in (("right", "fitted to these runs"), ("left", "predicted")):
        shown.add_annotation(
            x=np.log10(at),
            y=1,
            yref="paper",
            yanchor="top",
            xanchor=side,
            xshift=-6 if side == "right" else 6,
            text=text,
            showarrow=False,
            font={"color": SOFT, "size": 12},
        )


def _held_out(shown: go.Figure, held_out: HeldOut) -> None:
    """Mark what was predicted for the largest run by a law that had not seen its budget."""
    text = (
        f"<b>predicted {bits(held_out.predicted)}</b> without the runs of this budget<br>"
        f"{percent(LEVEL)} interval {interval(held_out.interval, bits)}<br>"
        f"achieved {bits(held_out.achieved)}"
    )
    shown.add_trace(
        theme.points(
            [held_out.flops],
            [held_out.predicted],
            [text],
            error_y=theme.around([held_out.predicted], [held_out.interval], theme.HELD_OUT),
            marker=theme.ring(theme.HELD_OUT, "diamond-open", 12, 2),
            name="predicted unseen",
            meta=[held_out.run_id],
        )
    )


def _stars(shown: go.Figure, ended: list[Forecast]) -> None:
    """Mark the runs that had a forecast before they were trained."""
    if not ended:
        return
    texts = [
        f"<b>predicted {bits(item.predicted)}</b> before it was trained<br>"
        f"achieved {bits(item.achieved)} · {power(item.flops)} FLOPs"
        for item in ended
    ]
    shown.add_trace(
        theme.points(
            [item.flops for item in ended],
            np.array([item.achieved for item in ended], float),
            texts,
            marker=marker(theme.AMBER, "star", 17),
            name="forecast, then trained",
            meta=[item.run_id for item in ended],
        )
    )


def _next(shown: go.Figure, advice: Recommendation) -> None:
    """Mark the run to train next."""
    item = advice.allocation
    if item.bpd is None or item.bpd_interval is None:
        return
    text = (
        f"<b>train next: {bits(item.bpd)} bits predicted</b><br>{percent(LEVEL)} interval "
        f"{interval(item.bpd_interval, bits)}<br>{item.channels} channels · "
        f"{count(item.images)} images · {power(item.flops)} FLOPs"
    )
    shown.add_trace(
        theme.points(
            [item.flops],
            [item.bpd],
            [text],
            error_y=theme.around([item.bpd], [item.bpd_interval], INK),
            marker=theme.ring(INK, "star-open", 15, 2),
            name="train next",
        )
    )


def isoflop(findings: Findings) -> go.Figure | None:
    """Draw BPD against parameters per budget: runs, surface law and its optimum, and the check.

    The check is the curve through the runs of that budget alone, with its minimum.
    """
    if not findings.isoflops:
        return None
    shown = figure("parameters", findings.bits_unit, height=480)
    colours = theme.shades(iso.flops for iso in findings.isoflops)
    drawn = set(theme.thinned(shown, findings.runs)["run_id"])
    for iso in findings.isoflops:
        runs = findings.runs[findings.runs["run_id"].isin(iso.run_ids)].sort_values("params")
        colour, group = colours[iso.flops], power(iso.flops)
        shown.add_trace(
            dots(
                runs[runs["run_id"].isin(drawn)],
                "params",
                "bpd",
                marker=marker(colour),
                name=f"{group} FLOPs",
                legendgroup=group,
            )
        )
        if findings.surface:
            grid = np.geomspace(runs["params"].min(), runs["params"].max(), 60)
            tokens = np.exp(
                np.interp(np.log(grid), np.log(runs["params"]), np.log(runs["tokens"]))
            )
            values = findings.surface.predict(params=grid, tokens=tokens)
            shown.add_trace(_line(grid, values, colour, "solid", f"surface {group}", group))
            for item in findings.optima:
                if item.flops == iso.flops:
                    shown.add_trace(_optimum(item, findings.surface, colour, group))
        grid = np.geomspace(*iso.fitted, 60)
        shown.add_trace(_line(grid, iso.predict(grid), colour, "dot", f"check {group}", group))
        shown.add_trace(_minimum(iso, colour, group))
    kinds = [("solid", "surface law")] * bool(findings.surface) + [("dot", "check")]
    for dash, name in kinds:
        key = _line(np.array([np.nan]), np.array([np.nan]), SOFT, dash, name, name)
        shown.add_trace(key.update(showlegend=True))
    return shown.update_xaxes(log_axis(findings.runs["params"], count))


def _line(
    x: np.ndarray, y: np.ndarray, colour: str, dash: str, name: str, group: str
) -> go.Scatter:
    hover = "%{y:.3f}<extra>" + name + "</extra>"
    curve = theme.line(x, y, colour, dash, 1.6, hover)
    return curve.update(name=name, legendgroup=group, showlegend=False)


def _optimum(item: Allocation, surface: Law, colour: str, group: str) -> go.Scatter:
    """Mark the best size by the surface law."""
    value = float(surface.predict(params=[item.params], tokens=[item.tokens])[0])
    text = (
        f"<b>best size by the surface law {count(item.params)} params</b>, {bits(value)} bits<br>"
        f"90% interval {interval(item.params_interval, count)}"
    )
    return theme.points(
        [item.params],
        [value],
        [text],
        error_x=theme.around([item.params], [item.params_interval], colour),
        marker=marker(colour, "star", 15),
        name=f"optimum {group}",
        legendgroup=group,
        showlegend=False,
    )


def _minimum(iso: IsoFlop, colour: str, group: str) -> go.Scatter:
    """Mark the minimum of the check; at the edge, mark the best size tried, and say so."""
    text = (
        f"<b>best size tried {count(iso.params)} params</b>, {bits(iso.bpd)} bits<br>at the edge: "
        f"the {iso.edge} size may be the best"
        if iso.edge
        else f"<b>minimum of the check {count(iso.params)} params</b>, {bits(iso.bpd)} bits<br>"
        f"90% interval {interval(iso.params_interval, count)}"
    )
    return theme.points(
        [iso.params],
        [iso.bpd],
        [text],
        mode="markers+text" if iso.edge else "markers",
        marker=theme.ring(colour, "diamond-open", 12, 1.5),
        textposition="bottom left" if iso.edge == "largest" else "bottom right",
        texttemplate="at the edge" if iso.edge else None,
        cliponaxis=False,
        name=f"minimum {group}",
        legendgroup=group,
        showlegend=False,
    )


def residuals(findings: Findings) -> dict[str, go.Figure]:
    """Draw the residuals of the surface law against FLOPs, parameters and tokens."""
    if findings.surface is None:
        return {}
    runs = findings.runs.assign(residual=100 * np.expm1(findings.surface.residuals))
    colours = theme.shades(runs["params"])
    drawn = runs.iloc[:: theme.stride(len(runs))]
    shown = {}
    for column, label, write in (
        ("flops", FLOPS, power),
        ("params", "parameters", count),
        ("tokens", "training tokens", count),
    ):
        colour = [colours[params] for params in drawn["params"]]
        points = dots(drawn, column, "residual", marker=marker(INK, color=colour))
        shown[label] = residual(points, label, write)
        theme.note_thinning(shown[label], len(drawn), len(runs))
    return shown


def residual(points: go.Scatter, label: str, write: Callable[[float], str]) -> go.Figure:
    """Draw residuals in percent against one input; `write` writes its values."""
    shown = figure(label, "achieved / predicted − 1, %", height=340)
    shown.add_hline(y=0, line={"color": SOFT, "width": 1})
    return shown.add_trace(points).update_xaxes(log_axis(points.x, write, most=4))
