"""Figures of an ablation, from tables of `ablation.averaged`."""

import pandas as pd
import plotly.graph_objects as go

from analysis.comparing.ablation import noise_level
from analysis.report.figures.theme import (
    CATEGORIES,
    Row,
    around,
    dots,
    figure,
    log_axis,
    marker,
    symbol,
)
from tarflow.human import interval, number


def against_noise(points: pd.DataFrame, y: str) -> go.Figure:
    """Draw a score against the noise level, with uniform noise apart at its standard deviation.

    Args:
        points: Columns `noise_type`, `noise_std`, `series`, `mean`, `low`, `high`, `run_id`.
        y: Title of the score.
    """
    points = points.assign(level=noise_level(points)).sort_values("level")
    shown = figure("standard deviation of the training noise", y, height=420)
    for position, (series, rows) in enumerate(points.groupby("series", sort=False)):
        colour = CATEGORIES[position % len(CATEGORIES)]
        gaussian = rows["noise_type"] == "gaussian"
        name = str(series) or "Gaussian noise"
        shown.add_trace(_line(rows[gaussian], "level", name, colour, "circle"))
        if (~gaussian).any():
            apart = _line(rows[~gaussian], "level", "uniform noise", colour, "square-open")
            shown.add_trace(apart.update(mode="markers"))
    return shown.update_xaxes(log_axis(points["level"], number))


def against_number(points: pd.DataFrame, x: str, title: str, y: str) -> go.Figure:
    """Draw a score against a number of the sampler, one line per series.

    Args:
        points: Columns `x`, `series`, `mean`, `low`, `high`, `run_id`.
        x: Column of the number.
        title: Title of its axis.
        y: Title of the score.
    """
    shown = figure(title, y, height=420)
    for position, (series, rows) in enumerate(points.groupby("series", sort=False)):
        colour = CATEGORIES[position % len(CATEGORIES)]
        line = _line(rows.sort_values(x), x, str(series), colour, symbol(position))
        shown.add_trace(line)
    return shown.update_traces(showlegend=True)


def side_by_side(points: pd.DataFrame, title: str, y: str) -> go.Figure:
    """Draw a score of named choices in the order of the table.

    Args:
        points: Columns `named`, `mean`, `low`, `high`, `run_id`.
        title: What the names stand for.
        y: Title of the score.
    """
    shown = figure(title, y, height=420)
    shown.add_trace(_line(points, "named", "", CATEGORIES[0], "circle").update(mode="markers"))
    return shown.update_xaxes(type="category")


def _line(rows: pd.DataFrame, x: str, name: str, colour: str, symbol: str) -> go.Scatter:
    ends = list(zip(rows["low"], rows["high"], strict=True))
    return dots(
        rows,
        x,
        "mean",
        _described,
        error_y=around(rows["mean"].tolist(), ends, colour),
        mode="lines+markers",
        line={"color": colour, "width": 1.8},
        marker=marker(colour, symbol),
        name=name,
        showlegend=bool(name),
    )


def _described(row: Row) -> str:
    return f"{number(row['mean'])} ({interval((row['low'], row['high']))})<br>{row['run_id']}"
