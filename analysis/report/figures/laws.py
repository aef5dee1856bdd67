"""Figures of the laws; None when there is nothing to show.

Every number is read from `Findings`, or is the value of a law on a grid.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.findings import Findings, HeldOut
from analysis.laws.allocation import Allocation
from analysis.laws.average import Law
from analysis.laws.fit import Fit
from analysis.laws.intervals import LEVEL
from analysis.laws.isoflop import IsoFlop
from analysis.laws.predictor import Predictor
from analysis.report.figures import theme
from analysis.report.figures.theme import INK, LAW, SOFT, dots, figure, log_axis, marker
from tarflow.human import bits, count, interval, percent, power

BPD = "bits per dimension"
FLOPS = "training FLOPs"
EXTRAPOLATE = 10.0  # times the largest budget: how far the frontier law is drawn


def runs_against_flops(findings: Findings) -> go.Figure | None:
    """Draw all runs, the frontier, its law with the extrapolation band, and the held-out run."""
    runs = findings.runs if len(findings.runs) else findings.finished
    if runs.empty:
        return None
    shown = figure(FLOPS, BPD, height=520)
    reach = [runs["flops"].min(), runs["flops"].max()]
    if findings.frontier:
        reach[1] *= EXTRAPOLATE
        _frontier_law(shown, findings.frontier, runs["flops"])
    held_out = findings.held_out_by_compute
    drawn = theme.thinned(shown, runs.sort_values("flops"))
    for params, colour, group in theme.by_size(drawn):
        shown.add_trace(
            dots(
                group,
                "flops",
                "bpd",
                mode="lines+markers",
                line={"color": colour, "width": 1},
                marker=marker(colour),
                name=f"{count(params)} params",
            )
        )
    if len(findings.frontier_points) > 1:
        shown.add_trace(
            dots(
                findings.frontier_points.merge(runs, how="left"),
                "flops",
                "bpd",
                marker=theme.ring(INK, "circle-open", 16, 1.5),
                name="frontier",
            )
        )
    if held_out:
        _held_out(shown, held_out, findings.frontier_points["flops"])
    return shown.update_xaxes(log_axis(reach))


def _frontier_law(shown: go.Figure, fit: Fit, flops: pd.Series) -> None:
    beyond = np.geomspace(flops.max(), EXTRAPOLATE * flops.max(), 40)
    add_band(shown, fit, beyond)
    add_law(shown, fit, flops, beyond, "%{y:.3f} at %{x:.2e} FLOPs")


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
            grid, law.predict(flops=grid), LAW, dash, 2, f"{hover}<extra>law</extra>"
        )
        shown.add_trace(line.update(name=name or "law, extrapolated", showlegend=bool(name)))


def _held_out(shown: go.Figure, held_out: HeldOut, flops: pd.Series) -> None:
    seen = flops[flops < held_out.flops * 0.999]
    grid = np.geomspace(seen.min(), held_out.flops, 60)
    hover = "%{y:.3f} at %{x:.2e} FLOPs<extra>held-out law</extra>"
    values = held_out.law.predict(flops=grid)
    shown.add_trace(
        theme.line(grid, values, theme.HELD_OUT, "dot", 1.5, hover, name="held-out law")
    )
    text = (
        f"<b>predicted {bits(held_out.predicted)}</b><br>{percent(LEVEL)} band "
        f"{interval(held_out.interval, bits)}<br>achieved {bits(held_out.achieved)}"
    )
    shown.add_trace(
        theme.points(
            [held_out.flops],
            [held_out.predicted],
            [text],
            error_y=theme.around([held_out.predicted], [held_out.interval], theme.HELD_OUT),
            marker=theme.ring(theme.HELD_OUT, "diamond-open", 11, 2),
            name="prediction",
            meta=[held_out.run_id],
        )
    )


def isoflop(findings: Findings) -> go.Figure | None:
    """Draw BPD against parameters per budget: runs, surface law and its optimum, and the check.

    The check is the curve through the runs of that budget alone, with its minimum.
    """
    if not findings.isoflops:
        return None
    shown = figure("parameters", BPD, height=480)
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
        f"<b>best size by the surface law {count(item.params)} params</b>, {bits(value)} BPD<br>"
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
        f"<b>best size tried {count(iso.params)} params</b>, {bits(iso.bpd)} BPD<br>at the edge: "
        f"the {iso.edge} size may be the best"
        if iso.edge
        else f"<b>minimum of the check {count(iso.params)} params</b>, {bits(iso.bpd)} BPD<br>"
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
