"""How every figure looks: palette, axes, markers, hover text.

Colours that depend on the light or dark scheme are placeholders that the page replaces.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from numpy.typing import ArrayLike

from tarflow.errors import UserError
from tarflow.human import bits, bits_unit, count, number, power

Row = Mapping[Any, Any]  # a row of a table by column

# Placeholders: report.js replaces them with the colours of the current scheme.
INK, SOFT, GRID, PAPER, LAW = "#010101", "#020202", "#030303", "#040404", "#050505"

PLACEHOLDERS = (INK, SOFT, GRID, PAPER, LAW)
SCHEMES = {  # their colours outside a page, those of report.css
    "light": ("#1c2126", "#66707a", "#e3e6e9", "#ffffff", "#0072b2"),
    "dark": ("#e4e7ea", "#9aa4ad", "#2d343a", "#14181b", "#56b4e9"),
}

# Okabe and Ito 2008: distinguishable for colour-blind readers, on light and dark backgrounds.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, SKY, AMBER = "#CC79A7", "#56B4E9", "#E69F00"
CATEGORIES = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE)
HELD_OUT = ORANGE
BAND = "rgba(60, 140, 200, 0.22)"
_RAMP = ("#5566b8", "#2d8fa6", "#55b185", "#e0a526")  # ordered, lightness rises
RAMP = [[index / 3, colour] for index, colour in enumerate(_RAMP)]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")

MOST = 1000  # runs in a figure: more marks hide one another, and each carries a text

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_AXIS = {
    "gridcolor": GRID,
    "linecolor": SOFT,
    "tickcolor": SOFT,
    "ticks": "outside",
    "ticklen": 4,
    "zeroline": False,
    "showline": True,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "colorway": list(CATEGORIES),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        # Room for most axes: one that needs more makes Plotly draw the whole figure again.
        "margin": {"l": 64, "r": 18, "t": 12, "b": 58},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": PAPER,
            "bordercolor": SOFT,
            "font": {"color": INK},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "title": {"side": "left", "font": {"size": 13}},
            "itemsizing": "constant",
        },
    }
)


def figure(x: str, y: str, height: int = 440) -> go.Figure:
    """Return an empty figure with named axes."""
    empty = go.Figure(layout={"template": TEMPLATE, "height": height})
    return empty.update_xaxes(title_text=x).update_yaxes(title_text=y)


def in_scheme(drawn: go.Figure, scheme: str = "light") -> go.Figure:
    """Return a figure in the colours of a scheme on its own paper, to show outside a page.

    Args:
        drawn: A figure with placeholder colours.
        scheme: light or dark.

    Raises:
        UserError: If there is no such scheme.
    """
    if scheme not in SCHEMES:
        raise UserError(f"there is no colour scheme '{scheme}': choose {' or '.join(SCHEMES)}")
    text = str(drawn.to_json())
    for placeholder, colour in zip(PLACEHOLDERS, SCHEMES[scheme], strict=True):
        text = text.replace(placeholder, colour)
    paper = SCHEMES[scheme][PLACEHOLDERS.index(PAPER)]
    shown: go.Figure = plotly.io.from_json(text)
    return shown.update_layout(paper_bgcolor=paper, plot_bgcolor=paper)


def stride(count: int, most: int = MOST) -> int:
    """Return the step that draws at most `most` of so many things.

    >>> stride(20), stride(1_000), stride(1_001)
    (1, 1, 2)
    """
    return max(1, -(-count // most))


def note_thinning(shown: go.Figure, drawn: int, count: int, what: str = "runs") -> None:
    """Let the page say under a figure that it does not draw everything."""
    if drawn < count:
        notes = [shown.layout.meta["note"]] if shown.layout.meta else []
        notes.append(f"{drawn:,} of {count:,} {what} drawn")
        shown.update_layout(meta={"note": ", ".join(notes)})


def thinned(shown: go.Figure, runs: pd.DataFrame, most: int = MOST) -> pd.DataFrame:
    """Return the runs to draw, of many every second, third, ... one; the figure says so."""
    drawn = runs.iloc[:: stride(len(runs), most)]
    note_thinning(shown, len(drawn), len(runs))
    return drawn


def shade(position: int, total: int) -> str:
    """Return the colour of one step of an ordered scale, as a hex triplet."""
    at = 3 * position / max(1, total - 1)
    low = min(int(at), 2)
    ends = [[int(_RAMP[i][j : j + 2], 16) for j in (1, 3, 5)] for i in (low, low + 1)]
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def faded(colour: str) -> str:
    """Return a hex triplet as a colour for a band, nearly transparent.

    >>> faded("#5566b8")
    'rgba(85, 102, 184, 0.15)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.15)"


def shades(values: Iterable[float]) -> dict[float, str]:
    """Return the colour of each different value: its step of the ordered scale."""
    ordered = sorted(set(values))
    return {value: shade(position, len(ordered)) for position, value in enumerate(ordered)}


def symbol(position: int) -> str:
    """Return the mark of one of several series, so that they differ in print without colours."""
    return SYMBOLS[position % len(SYMBOLS)]


def by_size(runs: pd.DataFrame) -> list[tuple[float, str, pd.DataFrame]]:
    """Return parameters, colour and runs of each model size, smallest first."""
    sizes = shades(runs["params"])
    return [(size, colour, runs[runs["params"] == size]) for size, colour in sizes.items()]


def log_axis(
    values: Iterable[float], write: Callable[[float], str] = power, most: int = 6
) -> dict[str, Any]:
    """Return a logarithmic axis with at most `most` ticks, all of them round numbers."""
    finite = np.asarray(list(values), dtype=float)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if not finite.size:
        return {"type": "log"}
    low, high = np.log10(finite.min()), np.log10(finite.max())
    pad = max(0.05 * (high - low), 0.08)
    decades = np.arange(np.floor(low - pad), np.ceil(high + pad) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = np.array([digit * 10**decade for decade in decades for digit in digits])
        logs = np.log10(ticks)
        shown = ticks[(logs >= low - pad) & (logs <= high + pad)]
        if len(shown) <= most:
            break
    if not len(shown):  # a range this narrow may hold no round number
        shown = np.array([float(f"{finite[0]:.2g}")])
    return {
        "type": "log",
        "tickangle": 0,
        "range": [low - pad, high + pad],
        "tickvals": shown.tolist(),
        "ticktext": [write(tick) for tick in shown],
    }


def describe(run: Row) -> str:
    """Return the hover text of a run: name, id, result and config."""
    error = f" ± {run['bpd_se']:.3f}" if pd.notna(run.get("bpd_se")) else ""
    return (
        f"<b>{run['name']}</b>  {run['run_id']}<br>"
        f"{bits(run['bpd'])}{error} {bits_unit(str(run.get('bpd_kind')))}<br>"
        f"{count(run['params'])} params · {count(run['images'])} images"
        f" · {power(run['flops'])} FLOPs<br>"
        f"channels {run['channels']:.0f} · blocks {run['blocks']:.0f} · layers {run['layers']:.0f}"
        f" · patch {run['patch']:.0f}<br>"
        f"lr {number(run['lr'])} · batch {run['batch']:.0f} · noise {number(run['noise_std'])}"
        f" · seed {run['seed']:.0f}"
    )


def dots(
    rows: pd.DataFrame,
    x: str,
    y: str,
    words: Callable[[Row], str] = describe,
    **style: Any,
) -> go.Scatter:
    """Return one marker per row with its hover text; `meta` carries the run ids."""
    text = [words(row) for row in rows.to_dict("records")]
    return points(rows[x], rows[y], text, meta=rows["run_id"].tolist(), **style)


def points(x: ArrayLike, y: ArrayLike, text: Sequence[str], **style: Any) -> go.Scatter:
    """Return markers with a hover text each."""
    return go.Scatter(
        x=np.asarray(x).tolist(),
        y=np.asarray(y).tolist(),
        text=text,
        hovertemplate="%{text}<extra></extra>",
        **{"mode": "markers"} | style,
    )


def line(
    x: ArrayLike, y: ArrayLike, colour: str, dash: str, width: float, hover: str, **style: Any
) -> go.Scatter:
    """Return a line; `hover` is Plotly's template of its hover text."""
    return go.Scatter(
        x=np.asarray(x).tolist(),
        y=np.asarray(y).tolist(),
        mode="lines",
        line={"color": colour, "width": width, "dash": dash},
        hovertemplate=hover,
        **style,
    )


def colour_bar(title: str) -> dict[str, Any]:
    """Return a narrow colour bar."""
    return {
        "title": {"text": title, "font": {"size": 13}},
        "thickness": 10,
        "outlinewidth": 0,
        "ticklen": 3,
        "nticks": 6,
    }


def marker(
    colour: str, symbol: str = "circle", size: float | list[float] = 9, **more: Any
) -> dict[str, Any]:
    """Return a marker with a thin rim in the colour of the page."""
    return {
        "color": colour,
        "symbol": symbol,
        "size": size,
        "line": {"color": PAPER, "width": 1},
    } | more


def ring(colour: str, symbol: str, size: float, width: float) -> dict[str, Any]:
    """Return an open marker around a point."""
    return {"symbol": symbol, "size": size, "color": colour, "line": {"width": width}}


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str) -> go.Scatter:
    """Return a shaded band as one closed outline."""
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]).tolist(),
        y=np.concatenate([low, high[::-1]]).tolist(),
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=name,
    )


def around(
    centre: Sequence[float], ends: Sequence[tuple[float, float]], colour: str
) -> dict[str, Any]:
    """Return asymmetric error bars from intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(centre, ends, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(centre, ends, strict=True)],
        "thickness": 1.5,
        "width": 4,
        "color": colour,
    }
