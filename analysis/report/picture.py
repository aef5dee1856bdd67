"""A figure as PNG, for trackers and slides, by Matplotlib: for Plotly's own it takes a browser.

It knows what the figures of laws are made of: lines, markers, bands, error bars, vertical lines
and notes on a logarithmic x axis and a linear y axis.
"""

import io
import logging
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from analysis.report.figures.theme import SCHEMES, in_scheme

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its cache of fonts
INCHES, DPI = (9.6, 5.4), 100
POINTS = 0.75  # of a pixel of the page
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
MARKS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "star": "*",
}
INK, SOFT, GRID, PAPER, _ = SCHEMES["light"]


def png_of(figure: go.Figure) -> bytes:
    """Return a figure of the report as PNG, in light colours.

    Args:
        figure: Scatter traces; the x axis is logarithmic, with the range and ticks of `log_axis`.
    """
    drawn = in_scheme(figure)
    sheet = Figure(INCHES, DPI, layout="constrained")
    axes = sheet.add_subplot(xscale="log")
    for trace in drawn.data:
        _draw(axes, trace, drawn.layout.xaxis.range)
    for shape in drawn.layout.shapes:
        axes.axvline(shape.x0, color=shape.line.color, ls=DASHES[shape.line.dash], lw=1)
    for note in drawn.layout.annotations:
        side = note.xanchor or "left"
        at, top = (10**note.x, 1), ("data", "axes fraction")
        shift = (POINTS * (note.xshift or 0), -2)
        axes.annotate(
            note.text, at, shift, top, "offset points", color=SOFT, ha=side, va="top", size=9
        )
    _dress(axes, drawn.layout)
    written = io.BytesIO()
    sheet.savefig(written, format="png")
    return written.getvalue()


def _draw(axes: Axes, trace: go.Scatter, decades: tuple[float, float]) -> None:
    """Draw what of a trace lies between two powers of ten on the x axis."""
    x, y = (np.array(values, dtype=float) for values in (trace.x, trace.y))
    shown = (np.log10(x) >= decades[0]) & (np.log10(x) <= decades[1]) & np.isfinite(y)
    x, y = x[shown], y[shown]
    name = "_" if trace.showlegend is False or not trace.name else trace.name
    if trace.fill:
        axes.fill(x, y, color=_colour(trace.fillcolor), lw=0, label=name)
        return
    if trace.error_y.array:
        # An end without bound is not drawn.
        ends = [trace.error_y.arrayminus, trace.error_y.array]
        lengths = np.array([[end or 0.0 for end in side] for side in ends])[:, shown]
        axes.errorbar(x, y, lengths, fmt="none", ecolor=trace.error_y.color, elinewidth=1.5)
    if "lines" in trace.mode:
        line = trace.line
        style, width = DASHES[line.dash or "solid"], POINTS * (line.width or 2)
        axes.plot(x, y, style, color=_colour(line.color), lw=width, label=name)
        name = "_"
    if "markers" in trace.mode:
        _mark(axes, x, y, trace.marker, name)


def _mark(axes: Axes, x: np.ndarray, y: np.ndarray, marker: Any, name: str) -> None:
    """Draw a marker at each point."""
    symbol, colour = marker.symbol or "circle", _colour(marker.color)
    size = marker.size if isinstance(marker.size, int | float) else 9
    opened = symbol.endswith("-open")
    axes.plot(
        x,
        y,
        ls="none",
        marker=MARKS[symbol.removesuffix("-open")],
        ms=POINTS * size,
        mfc="none" if opened else colour,
        mec=colour if opened else _colour(marker.line.color or PAPER),
        mew=POINTS * (marker.line.width or 1),
        label=name,
    )


def _dress(axes: Axes, layout: go.Layout) -> None:
    """Give axes their ticks, titles, grid and legend."""
    low, high = layout.xaxis.range
    axes.set_xlim(10**low, 10**high)
    axes.set_xticks(layout.xaxis.tickvals, list(map(_plain, layout.xaxis.ticktext)))
    axes.minorticks_off()
    axes.set_xlabel(layout.xaxis.title.text, color=INK)
    axes.set_ylabel(layout.yaxis.title.text, color=INK)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(SOFT)
    axes.tick_params(color=SOFT, labelcolor=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, labelcolor=INK)


def _colour(css: str) -> tuple[float, ...]:
    """Return a colour of CSS as red, green, blue and opacity, 0 to 1.

    >>> _colour("rgba(51, 102, 204, 0.2)"), _colour("#3366cc")
    ((0.2, 0.4, 0.8, 0.2), (0.2, 0.4, 0.8, 1.0))
    """
    if css.startswith("rgba"):
        *rgb, opacity = map(float, re.findall(r"[\d.]+", css))
        return (*(part / 255 for part in rgb), opacity)
    return to_rgba(css)


def _plain(text: str) -> str:
    return re.sub(r"<[^>]+>", "", text)
