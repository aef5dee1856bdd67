"""Figures of the laws of sample quality: one colour and symbol per choice of sampler setting."""

from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.laws.forms import Array
from analysis.report.figures import theme
from analysis.report.figures.theme import Row, describe, dots, figure, log_axis, marker
from analysis.study.names import bits_unit_of
from analysis.study.quality_laws import QualityLaws, band
from tarflow.human import bits, number, power

COLOURS = (theme.BLUE, theme.ORANGE)


def against_likelihood(laws: Sequence[QualityLaws]) -> go.Figure | None:
    """Draw KID against likelihood, its law, and the place where they part."""
    known = [(law.setting, law.likelihood) for law in laws if law.likelihood is not None]
    if not known:
        return None
    rows = known[0][1].rows
    shown = figure(bits_unit_of(rows), _kid(rows), height=460)
    for position, (setting, law) in enumerate(known):
        _drawn(shown, law.rows, "bpd", law.grid, law.drawn, setting, position, bits)
        if law.parts:
            low, high = law.place_interval
            style = {"fillcolor": theme.faded(COLOURS[position]), "line": {"width": 0}}
            shown.add_vrect(low, high, layer="below", **style)
            line = {"color": COLOURS[position], "width": 1.5, "dash": "dot"}
            shown.add_vline(
                law.place, line=line, annotation_text="they part here", annotation_position="top"
            )
    return shown


def against_compute(laws: Sequence[QualityLaws]) -> go.Figure | None:
    """Draw the KID of the best size of every budget, and its law to beyond the runs."""
    known = [(law.setting, law.compute) for law in laws if law.compute is not None]
    if not known:
        return None
    shown = figure("training FLOPs", _kid(known[0][1].rows), height=460)
    for position, (setting, law) in enumerate(known):
        _drawn(shown, law.rows, "flops", law.grid, law.drawn, setting, position, power)
    return shown.update_xaxes(log_axis([law.grid[0] for _, law in known] + [known[0][1].grid[-1]]))


def _kid(rows: pd.DataFrame) -> str:
    return f"KID ({rows['feature_extractor'].iloc[0]})"


def _drawn(
    shown: go.Figure,
    rows: pd.DataFrame,
    x: str,
    grid: Array,
    drawn: Array,
    setting: str,
    position: int,
    write: Callable[[float], str],
) -> None:
    colour = COLOURS[position]
    low, high = band(drawn)
    shade = theme.band(grid, low, high, theme.faded(colour), "90% interval")
    shown.add_trace(shade.update(legendgroup=setting, showlegend=False))
    hover = "KID %{y:.3g} at %{text}<extra>law</extra>"
    texts = [write(value) for value in grid]
    line = theme.line(grid, drawn[0], colour, "solid", 2.5, hover, text=texts)
    shown.add_trace(line.update(name=f"law, {setting}", legendgroup=setting))
    rows = theme.thinned(shown, rows)
    runs = dots(rows, x, "kid", _described, marker=marker(colour, theme.symbol(position), 8))
    errors = {"type": "data", "array": rows["kid_se"].tolist(), "thickness": 1.2, "width": 3}
    runs.update(error_y={**errors, "color": colour}, legendgroup=setting)
    shown.add_trace(runs.update(name=f"runs, {setting}"))


def _described(row: Row) -> str:
    return f"KID {number(row['kid'])} ± {number(row['kid_se'])}<br>{describe(row)}"
