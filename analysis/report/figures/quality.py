"""Figures of sample quality and of a search, from tables as in `settings`; None when empty."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.report.figures import theme
from analysis.report.figures.theme import (
    AMBER,
    INK,
    ORANGE,
    SOFT,
    Row,
    describe,
    dots,
    figure,
    marker,
)
from analysis.study.names import bits_unit_of, bpd_name_of, deepest_layers, layer_splits
from analysis.study.settings import best_setting, pareto_front, setting_in_words
from tarflow.human import bits, count, number

MOST_LINES = 200  # runs of parallel coordinates


def quality(scored: pd.DataFrame, reference: Mapping[str, Any]) -> go.Figure | None:
    """Draw KID against BPD with standard errors.

    Args:
        scored: One row per run, all at one sampler setting and one extractor.
        reference: `kid`, `kid_se` and `feature_extractor` of real training images, drawn as a
            line; empty if not measured.
    """
    known = scored.dropna(subset=["kid", "bpd"])
    if known.empty:
        return None
    extractor = known["feature_extractor"].iloc[0]
    shown = figure(bits_unit_of(known), f"KID ({extractor})", height=460)
    sizes = theme.by_size(theme.thinned(shown, known))
    for position, (params, colour, group) in enumerate(sizes):
        errors = _standard_error(group, colour)
        look = marker(colour, theme.symbol(position))
        runs = dots(group, "bpd", "kid", _described, marker=look, error_y=errors)
        shown.add_trace(runs.update(name=count(params)))
    if reference.get("feature_extractor") == extractor:
        reach = [known["bpd"].min(), known["bpd"].max()]
        hover = f"real training images: {number(reference['kid'])} ± "
        hover += f"{number(reference['kid_se'])}<extra></extra>"
        height = [reference["kid"]] * 2
        shown.add_trace(theme.line(reach, height, SOFT, "dash", 1.5, hover, name="real images"))
    return shown.update_layout(legend_title_text="params")


def trade_off(scored: pd.DataFrame) -> go.Figure | None:
    """Draw the runs of a search at their best sampler setting, and their Pareto front."""
    best = best_setting(scored)
    if best.empty:
        return None
    extractor = best["feature_extractor"].iloc[0]
    shown = figure(bits_unit_of(best), f"KID ({extractor}), best setting", height=420)
    front = pareto_front(best)
    shown.add_trace(
        go.Scatter(
            x=front["bpd"].tolist(),
            y=front["kid"].tolist(),
            mode="lines+markers",
            line={"color": ORANGE, "width": 2, "shape": "hv"},
            marker=theme.ring(ORANGE, "circle-open", 15, 2),
            name="Pareto front, by the other half of the draws",
            hoverinfo="skip",
        )
    )
    noise = best["noise_std"].astype(float).tolist()
    look = marker(INK, color=noise, colorscale=theme.RAMP, colorbar=theme.colour_bar("noise"))
    runs = dots(best, "bpd", "kid", _described, marker=look, showlegend=False)
    return shown.add_trace(runs.update(error_y=_standard_error(best, SOFT)))


def parallel_coordinates(scored: pd.DataFrame) -> go.Figure | None:
    """Draw each searched run as one line over its hyperparameters and results."""
    best = best_setting(scored).sort_values("bpd", ascending=False)
    alike = (layer_splits(best) == "").all()
    best = best.assign(deepest=0 if alike else deepest_layers(best))
    axes = [
        (column, name)
        for column, name in (
            ("blocks", "blocks"),
            ("layers", "layers"),
            ("deepest", "layers of the<br>deepest block"),
            ("channels", "channels"),
            ("lr", "learning<br>rate"),
            ("noise_std", "noise"),
            ("bpd", bpd_name_of(best)),
            ("kid", "KID"),
        )
        if best[column].nunique() > 1
    ]
    if len(best) < 2 or not axes:
        return None
    heights = pd.DataFrame({column: _unit(best[column], column == "lr") for column, _ in axes})
    runs = best.to_dict("records")
    shown = figure("", "", height=420)
    every = theme.stride(len(best), MOST_LINES)
    lines = range((len(best) - 1) % every, len(best), every)  # the last one is the best
    theme.note_thinning(shown, len(lines), len(best))
    for position in lines:
        run = runs[position]
        shown.add_trace(
            go.Scatter(
                x=[name for _, name in axes],
                y=heights.iloc[position].tolist(),
                customdata=[run[column] for column, _ in axes],
                mode="lines+markers",
                line={
                    "color": theme.shade(len(best) - 1 - position, len(best)),
                    "width": 1.5 if position < len(best) - 1 else 4,
                },
                marker={"size": 5},
                meta=run["run_id"],
                showlegend=False,
                name="",
                hovertemplate="%{x}: %{customdata:.4g}<br>" + _described(run) + "<extra></extra>",
            )
        )
    for column, name in axes:
        for at, value in ((-0.06, best[column].min()), (1.06, best[column].max())):
            text = bits(value) if column == "bpd" else number(value)
            shown.add_annotation(x=name, y=at, text=text, showarrow=False, font={"color": SOFT})
    shown.update_xaxes(showline=False, ticks="", tickangle=0)
    return shown.update_yaxes(visible=False, range=[-0.12, 1.12])


def sampler_surface(scored: pd.DataFrame) -> go.Figure | None:
    """Draw KID over guidance and temperature for the run with the most sampler settings."""
    known = scored.dropna(subset=["kid", "guidance", "temperature"])
    if known.empty:
        return None
    known = known[known["run_id"] == known["run_id"].value_counts().index[0]]
    fresh = known[known["half"] == "scored"]
    # Larger marks first, otherwise they hide the others.
    known = (fresh if len(fresh) else known).sort_values(["denoise", "kid"], ascending=False)
    if len(known) < 4:
        return None
    best = best_setting(scored[scored["run_id"] == known["run_id"].iloc[0]]).iloc[0]
    shown = figure("guidance", "attention temperature", height=420)
    look = marker(
        INK,
        color=known["kid"].tolist(),
        colorscale=theme.RAMP,
        reversescale=True,
        size=(10 + 10 * _unit(known["denoise"])).tolist(),
        opacity=0.9,
        colorbar=theme.colour_bar("KID"),
    )
    shown.add_trace(
        dots(known, "guidance", "temperature", _described, marker=look, showlegend=False)
    )
    shown.add_trace(
        go.Scatter(
            x=[best["guidance"]],
            y=[best["temperature"]],
            mode="markers",
            marker=theme.ring(AMBER, "circle-open", 30, 2.5),
            name=f"best: {setting_in_words(best)}",
            hoverinfo="skip",
        )
    )
    return shown


def _described(row: Row) -> str:
    return (
        f"KID {number(row['kid'])} ± {number(row['kid_se'])}, n {row['n']:.0f}, "
        f"{setting_in_words(row)}<br>" + describe(row)
    )


def _standard_error(rows: pd.DataFrame, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "array": rows["kid_se"].tolist(),
        "thickness": 1.2,
        "width": 3,
        "color": colour,
    }


def _unit(values: pd.Series, log: bool = False) -> pd.Series:
    """Scale values to 0..1; a constant becomes one half."""
    numbers = values.astype(float)
    if log:
        numbers = numbers.map(np.log)
    spread = numbers.max() - numbers.min()
    return (numbers - numbers.min()) / spread if spread else numbers * 0 + 0.5
