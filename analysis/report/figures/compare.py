"""Figures of a comparison: one colour, one symbol and one dash per study."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go

from analysis.comparing.comparison import Compared, Contrast, Reach, interval_of_pair
from analysis.comparing.differences import signed_difference
from analysis.comparing.words import times
from analysis.laws.intervals import LEVEL, NORMAL_90
from analysis.report.figures import theme
from analysis.report.figures.theme import INK, SOFT, Row, dots, figure, log_axis, marker
from tarflow.human import bits, count, interval, percent, power

FLOPS = "training FLOPs"
DASHES = ("solid", "dash", "dot", "dashdot")
COLOURS = (theme.BLUE, theme.ORANGE, theme.GREEN, theme.PINK)


def laws(studies: Sequence[Compared], reaches: Sequence[Reach]) -> go.Figure:
    """Draw the runs and the frontier of every study, and the compute saved at equal quality.

    Args:
        studies: The studies, at most as many as there are colours.
        reaches: What to mark with a line from one law to the other.
    """
    shown = figure(FLOPS, studies[0].bits_unit, height=520)
    runs = [study.runs for study in studies]
    reach = (min(r["flops"].min() for r in runs), max(r["flops"].max() for r in runs))
    for position, study in enumerate(studies):
        if study.frontier is not None:
            _law(shown, study, reach[1], position)
    for position, (study, rows) in enumerate(zip(studies, runs, strict=True)):
        shown.add_trace(
            dots(
                theme.thinned(shown, rows),
                "flops",
                "bpd",
                partial(_run_in_words, study=study.name),
                marker=marker(COLOURS[position], theme.symbol(position), 8),
                name=study.name,
                legendgroup=study.name,
            )
        )
    for item in reaches:
        _saved(shown, item)
    return shown.update_xaxes(log_axis(reach))


def _run_in_words(row: Row, study: str) -> str:
    return f"<b>{study}</b><br>{theme.describe(row)}"


def _law(shown: go.Figure, study: Compared, furthest: float, position: int) -> None:
    frontier = study.frontier
    assert frontier is not None
    colour, dash = COLOURS[position], DASHES[position]
    end = max(furthest, frontier.largest)
    grid = np.geomspace(frontier.flops[0], end, 60)
    style = {"legendgroup": study.name, "showlegend": False}
    if frontier.known:
        low, high = frontier.band(grid)
        shade = theme.band(grid, low, high, theme.faded(colour), f"{study.name}, 90% interval")
        shown.add_trace(shade.update(style))
    hover = f"%{{y:.3f}} at %{{text}} FLOPs<extra>law of {study.name}</extra>"
    texts = [power(x) for x in grid]
    curve = theme.line(grid, frontier.at(grid)[0], colour, dash, 2.5, hover, text=texts)
    shown.add_trace(curve.update(name=f"law of {study.name}", legendgroup=study.name))


def _saved(shown: go.Figure, item: Reach) -> None:
    """Draw a line at equal quality, from the compute of one law to that of the other."""
    if not 0 < item.ratio < np.inf:
        return
    words = f"{times(max(item.ratio, 1 / item.ratio))} {'less' if item.ratio >= 1 else 'more'}"
    shown.add_trace(
        go.Scatter(
            x=[item.flops / item.ratio, item.flops],
            y=[item.bits] * 2,
            mode="lines+markers+text",
            line={"color": INK, "width": 1.5},
            marker={"symbol": "line-ns-open", "size": 11, "color": INK},
            text=[f"{words} compute ", ""],
            textposition="middle left",
            hovertemplate=f"{words} compute at {bits(item.bits)} {item.bits_unit}<extra></extra>",
            name="compute at equal quality",
            showlegend=False,
        )
    )


def differences(contrast: Contrast) -> go.Figure | None:
    """Draw the difference of every pair of runs against compute, with its interval over images.

    Runs of one size share a colour and a line.
    """
    rows = contrast.pairs.rows
    if rows.empty:
        return None
    unit = contrast.first.bits_unit
    shown = figure(FLOPS, f"{contrast.second.name} − {contrast.first.name}, {unit}", height=420)
    shown.add_hline(y=0, line={"color": SOFT, "width": 1})
    sizes = theme.by_size(theme.thinned(shown, rows.sort_values(["flops", "seed"])))
    for position, (params, colour, group) in enumerate(sizes):
        trace = dots(
            group,
            "flops",
            "difference",
            partial(_pair_in_words, unit=unit),
            mode="lines+markers",
            line={"color": colour, "width": 1},
            marker=marker(colour, theme.symbol(position)),
            name=f"{count(params)} params",
        )
        if group["error"].notna().all():
            bars = NORMAL_90 * group["error"]
            trace.update(
                error_y={
                    "type": "data",
                    "array": bars.tolist(),
                    "thickness": 1.5,
                    "width": 3,
                    "color": colour,
                }
            )
        shown.add_trace(trace)
    return shown.update_xaxes(log_axis(rows["flops"]))


def _pair_in_words(row: Row, unit: str) -> str:
    ends = interval(interval_of_pair(row), signed_difference)
    return (
        f"<b>{row['name']}</b><br>"
        f"{bits(row['bpd_first'])} and {bits(row['bpd_second'])} {unit}<br>"
        f"{signed_difference(row['difference'])} ({percent(LEVEL)} interval {ends})<br>"
        f"{power(row['flops'], 3)} FLOPs"
    )
