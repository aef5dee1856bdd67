"""Figures of the candidates of a search, from tables of `study.candidates`; None when empty."""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.report.figures import theme
from analysis.report.figures.theme import BLUE, ORANGE, SOFT, Row, describe, dots, figure, marker
from analysis.study.candidates import LOG, VARIED, varied
from analysis.study.names import bits_unit_of, bpd_name_of
from tarflow.human import bits, number, percent

COLUMNS = 3  # of panels
TICKS = 4  # of an axis
PAD = 0.08  # of the height of a panel, between whole runs and those that were stopped


def importances(found: pd.DataFrame) -> go.Figure | None:
    """Draw how much of the order of candidates each hyperparameter alone explains.

    Args:
        found: As of `candidates.importance`.
    """
    if found.empty:
        return None
    rows = found[::-1]  # the first one on top
    shown = figure("share of the order of candidates that it explains alone", "", height=300)
    names, explained, chance = (rows[name].tolist() for name in rows.columns)
    shown.add_trace(
        go.Bar(
            x=explained,
            y=names,
            orientation="h",
            marker={"color": BLUE},
            text=[percent(value) for value in explained],
            showlegend=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    shown.add_trace(
        go.Scatter(
            x=chance,
            y=names,
            mode="markers",
            marker=theme.ring(ORANGE, "line-ns", 22, 2.5)
            | {"line": {"width": 2.5, "color": ORANGE}},
            name="95th percentile of what chance explains",
            hovertemplate="chance: up to %{x:.0%}<extra></extra>",
        )
    )
    top = max(1.0 if max(explained) > 0.8 else 1.15 * max(*explained, *chance), 0.1)
    return shown.update_xaxes(tickformat=".0%", range=[0, top]).update_layout(bargap=0.45)


def slices(tried: pd.DataFrame) -> go.Figure | None:
    """Draw the BPD of candidates over each hyperparameter, one panel each.

    Candidates that were stopped early or diverged stand above the others, since nobody knows the
    BPD of the whole run.
    """
    names = varied(tried)
    whole, rest = tried[tried["share"] == 1], tried[tried["share"] < 1]
    if whole.empty or not names or len(tried) < 2:
        return None
    low, high = float(whole["bpd"].min()), float(whole["bpd"].max())
    spread = (high - low) or 0.1
    above = rest.assign(height=high + 2 * PAD * spread)
    rows = math.ceil(len(names) / COLUMNS)
    shown = make_subplots(
        rows,
        min(len(names), COLUMNS),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.4 / rows,
    )
    shown.update_layout(template=theme.TEMPLATE, height=80 + 270 * rows)
    for position, name in enumerate(names):
        where = {"row": position // COLUMNS + 1, "col": position % COLUMNS + 1}
        first = position == 0
        dot: dict[str, Any] = {"marker": marker(BLUE, size=8), "name": "trained to the end"}
        shown.add_trace(dots(whole, name, "bpd", showlegend=first, **dot), **where)
        open_mark = theme.ring(SOFT, "triangle-down-open", 9, 1.5)
        stopped: dict[str, Any] = {"marker": open_mark, "name": "stopped early, or diverged"}
        if len(above):
            shown.add_trace(
                dots(above, name, "height", _stopped, showlegend=first, **stopped), **where
            )
        best: dict[str, Any] = {
            "marker": theme.ring(ORANGE, "circle-open", 15, 2),
            "name": f"lowest {bpd_name_of(whole)}",
        }
        shown.add_trace(dots(whole[:1], name, "bpd", showlegend=first, **best), **where)
        shown.update_xaxes({"title_text": VARIED[name], **_axis(tried[name])}, **where)
    for row in range(rows):
        shown.update_yaxes(title_text=bits_unit_of(whole), row=row + 1, col=1)
    reach = [low - PAD * spread, high + (3 if len(above) else 1) * PAD * spread]
    return shown.update_yaxes(range=reach)


def _axis(values: pd.Series) -> dict[str, Any]:
    """Return an axis with few ticks, as a panel is narrow."""
    if values.name in LOG:
        return theme.log_axis(values, number, most=3)
    few = sorted(set(values)) if values.nunique() <= TICKS else None
    return {"tickvals": few} if few else {"nticks": TICKS}


def _stopped(row: Row) -> str:
    if not row["share"]:
        return f"diverged<br>{describe(row)}"
    return f"{row['error']}, {bits(row['bpd'])} bits there<br>{describe(row)}"
