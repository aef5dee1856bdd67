"""Figures of the runs themselves; None when there is nothing to show."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import gaussian_kde

from analysis.report.figures import theme
from analysis.report.figures.theme import AMBER, BLUE, ORANGE, SKY, describe, figure, log_axis
from analysis.study.names import bits_unit_of
from tarflow.human import bits, count, number, power

MOST_CURVES = 200  # of one figure
CURVE_POINTS = 300  # per run: more do not show on a screen
ALL_CURVE_POINTS = 20_000  # of all runs together
DISTRIBUTION_POINTS = 200  # per run
RIDGE = 1.4  # height of a distribution, in distances between two


def loss_curves(
    runs: pd.DataFrame, curves: Mapping[str, pd.DataFrame], against: str
) -> go.Figure | None:
    """Draw the training loss of every run against `flops` or `images`.

    Args:
        runs: Rows of the run table.
        curves: Curve table of each run by its id; runs without one are left out.
        against: Column on the x axis.
    """
    known = runs[runs["run_id"].isin(list(curves))].sort_values("flops")
    if known.empty:
        return None
    most = min(CURVE_POINTS, ALL_CURVE_POINTS // len(known))
    label = {"flops": "training FLOPs", "images": "training images seen"}[against]
    shown = figure(label, "training loss, nats per dimension", height=480)
    traces: list[go.Scatter] = []
    reach: list[float] = []
    losses: list[float] = []
    points = 0
    sizes = theme.by_size(known)
    # The legend names at most eight sizes: the others are read off the ordered scale.
    named = {sizes[i][0] for i in np.linspace(0, len(sizes) - 1, min(len(sizes), 8)).astype(int)}
    for size, colour, group in sizes:
        for run in group.to_dict("records"):
            table = curves[run["run_id"]]
            whole = np.stack([table[name].to_numpy(float) for name in (against, "loss")])
            whole = whole[:, ~np.isnan(whole).any(axis=0)]
            x, loss = whole[:, :: theme.stride(whole.shape[1], most)]
            points += whole.shape[1]
            if not len(x):
                continue
            reach += [x[0], x[-1]]
            losses += loss.tolist()
            traces.append(
                go.Scatter(
                    x=[float(f"{value:.4g}") for value in x],
                    y=loss.round(4).tolist(),
                    mode="lines",
                    line={"color": colour, "width": 1.4},
                    name=count(size),
                    meta=run["run_id"],
                    legendgroup=count(size),
                    showlegend=size in named,
                    hovertemplate="loss %{y:.4f}<br>" + describe(run) + "<extra></extra>",
                )
            )
            named.discard(size)
    if not losses:
        return None
    shown.add_traces(traces)
    theme.note_thinning(shown, len(losses), points, "points")
    # Losses start far above; the window shows where the runs differ.
    low, high = min(losses), float(np.quantile(losses, 0.97))
    shown.update_yaxes(range=[low - 0.05 * (high - low), high + 0.05 * (high - low)])
    shown.update_layout(legend_title_text="params")
    return shown.update_xaxes(log_axis(reach, power if against == "flops" else count))


def per_image(runs: pd.DataFrame) -> go.Figure | None:
    """Draw mean, median, 99th percentile and largest per-image BPD of every run."""
    known = runs.dropna(subset=["bpd", "bpd_median", "bpd_p99"]).sort_values("flops")
    if known.empty:
        return None
    shown = figure("training FLOPs", f"{bits_unit_of(known)} of one image", height=420)
    known = theme.thinned(shown, known, theme.MOST // 4)
    for column, name, colour, symbol in (
        ("bpd_max", "largest", SKY, "triangle-up"),
        ("bpd_p99", "99th percentile", AMBER, "square"),
        ("bpd", "mean", BLUE, "circle"),
        ("bpd_median", "median", ORANGE, "line-ew-open"),
    ):
        shown.add_trace(
            theme.dots(known, "flops", column, marker=theme.marker(colour, symbol, 8), name=name)
        )
    return shown.update_xaxes(log_axis(known["flops"]))


def image_distribution(runs: pd.DataFrame, images: Mapping[str, pd.DataFrame]) -> go.Figure | None:
    """Draw the distribution of per-image BPD of some runs, one ridge each, with their means.

    Args:
        runs: Rows of the run table in the order to show, the last one on top.
        images: Per-image table of each run by its id.
    """
    known = runs[runs["run_id"].isin(list(images))]
    if known.empty:
        return None
    shown = figure(bits_unit_of(known), "", height=120 + 62 * len(known))
    heights = []
    for position, run in enumerate(known.to_dict("records")):
        values = images[run["run_id"]]["bpd"].dropna().to_numpy(float)
        at, density = _density(values)
        name = f"{power(run['flops'])} FLOPs · {count(run['params'])} params"
        colour = theme.shade(position, len(known))
        shown.add_trace(
            go.Scatter(
                x=at.round(4).tolist(),
                y=(position + RIDGE * density / density.max()).round(4).tolist(),
                mode="lines",
                line={"color": colour, "width": 1.5},
                fill="toself",
                fillcolor=theme.faded(colour),
                name=name,
                meta=run["run_id"],
                showlegend=False,
                hoveron="points",
                hovertemplate=f"%{{x:.3f}}<extra>{name}</extra>",
            )
        )
        mean = float(values.mean())
        hover = f"mean {bits(mean)}<br>{describe(run)}<extra></extra>"
        shown.add_trace(
            theme.line(
                [mean] * 2,
                [position, position + RIDGE],
                colour,
                "dash",
                1.5,
                hover,
                name=f"{name}, mean",
                meta=run["run_id"],
                showlegend=False,
            )
        )
        heights.append((position, name))
    ticks, names = zip(*heights, strict=True)
    return shown.update_yaxes(
        tickvals=list(ticks), ticktext=list(names), range=[-0.1, len(known) + 0.5]
    )


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where to draw a distribution and its density there, with zero at both ends."""
    spread = float(values.std())
    if len(values) < 2 or spread == 0:
        return np.repeat(values[:1], 3), np.array([0.0, 1.0, 0.0])
    at = np.linspace(values.min(), values.max(), DISTRIBUTION_POINTS)
    density = gaussian_kde(values)(at)
    return np.concatenate([at[:1], at, at[-1:]]), np.concatenate([[0.0], density, [0.0]])


def cost(runs: pd.DataFrame) -> go.Figure | None:
    """Draw the time of the finished runs for training and for evaluation against their FLOPs."""
    known = runs.dropna(subset=["train_seconds", "evaluate_seconds"]).sort_values("flops")
    if known.empty:
        return None
    shown = figure("training FLOPs", "seconds", height=360)
    known = theme.thinned(shown, known, theme.MOST // 2)
    for column, name, colour, symbol in (
        ("train_seconds", "training", BLUE, "circle"),
        ("evaluate_seconds", "likelihood, samples and their scores", ORANGE, "diamond"),
    ):
        shown.add_trace(
            theme.dots(known, "flops", column, marker=theme.marker(colour, symbol), name=name)
        )
    seconds = [*known["train_seconds"], *known["evaluate_seconds"]]
    shown.update_yaxes(log_axis(seconds, number))
    return shown.update_xaxes(log_axis(known["flops"]))
