"""A figure as PNG, for trackers and slides: drawn with Pillow, since Plotly would need a browser.

It knows what the figures of laws are made of: lines, markers, bands, error bars, vertical lines
and notes on a logarithmic x axis and a linear y axis.
"""

import io
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageColor, ImageDraw, ImageFont

from analysis.report.figures.theme import SCHEMES, in_scheme

SCALE = 2  # drawn this much larger, then smoothed
WIDTH, HEIGHT = 960, 540  # pixels
LEFT, TOP, RIGHT, BOTTOM = 78, 26, 220, 62  # margins; the legend is on the right
DASHES = {"dash": (9, 6), "dot": (2, 4)}  # pixels on and off
SHAPES = {  # number of corners, angle of the first in degrees, radius of every other corner
    "square": (4, 45, 1.0),
    "diamond": (4, 0, 1.0),
    "triangle-up": (3, -90, 1.0),
    "triangle-down": (3, 90, 1.0),
    "cross": (8, 0, 0.4),
    "star": (10, -90, 0.4),
}
INK, SOFT, GRID, PAPER, _ = SCHEMES["light"]
Points = Sequence[tuple[float, float]]


def png_of(figure: go.Figure) -> bytes:
    """Return a figure of the report as PNG, in light colours.

    Args:
        figure: Scatter traces; the x axis is logarithmic, with the range and ticks of `log_axis`.
    """
    drawn = in_scheme(figure)
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    _Canvas(image, drawn).draw()
    written = io.BytesIO()
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(written, "PNG", optimize=True)
    return written.getvalue()


class _Canvas:
    """A figure on its way to an image; methods take the units of the axes."""

    def __init__(self, image: Image.Image, figure: go.Figure) -> None:
        self.image, self.figure = image, figure
        self.pen = ImageDraw.Draw(image, "RGBA")
        self.font = ImageFont.load_default(13 * SCALE)
        self.low_x, self.high_x = figure.layout.xaxis.range  # log10
        heights = [y for trace in figure.data for _, *ends in self.points(trace) for y in ends]
        values = np.array(heights, dtype=float)
        pad = 0.06 * float(np.ptp(values)) or 0.1
        self.low_y, self.high_y = float(values.min()) - pad, float(values.max()) + pad

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point."""
        across = (np.log10(x) - self.low_x) / (self.high_x - self.low_x)
        up = (y - self.low_y) / (self.high_y - self.low_y)
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return SCALE * (LEFT + float(across) * wide), SCALE * (TOP + (1 - up) * high)

    def points(self, trace: go.Scatter) -> list[tuple[float, float, float, float]]:
        """Return x, y and both ends of the error bar of the points of a trace that are shown."""
        none, bars = [0.0] * len(trace.x), trace.error_y  # an end without bound is not drawn
        up, down = bars.array or none, bars.arrayminus or none
        return [
            (x, y, y - (minus or 0.0), y + (plus or 0.0))
            for x, y, plus, minus in zip(trace.x, trace.y, up, down, strict=True)
            if y is not None and np.isfinite(y) and self.low_x <= np.log10(x) <= self.high_x
        ]

    def draw(self) -> None:
        """Draw all of it, what lies behind first."""
        self._axes()
        for shape in self.figure.layout.shapes:
            ends = [self.at(shape.x0, self.low_y), self.at(shape.x0, self.high_y)]
            self._line(ends, shape.line.color, 1, shape.line.dash)
        for note in self.figure.layout.annotations:
            x, y = self.at(10**note.x, self.high_y)
            anchor = "ra" if note.xanchor == "right" else "la"
            place = (x + SCALE * (note.xshift or 0), y + 2 * SCALE)
            self.pen.text(place, note.text, SOFT, self.font, anchor=anchor)
        for trace in self.figure.data:
            self._trace(trace)
        self._legend()

    def _axes(self) -> None:
        axis = self.figure.layout
        for value, text in zip(axis.xaxis.tickvals, axis.xaxis.ticktext, strict=True):
            x, foot = self.at(value, self.low_y)
            self._line([(x, foot), self.at(value, self.high_y)], GRID, 1)
            self.pen.text((x, foot + 6 * SCALE), _plain(text), INK, self.font, anchor="ma")
        left, right = 10**self.low_x, 10**self.high_x
        for value in _round_ticks(self.low_y, self.high_y):
            x, y = self.at(left, value)
            self._line([(x, y), self.at(right, value)], GRID, 1)
            self.pen.text((x - 6 * SCALE, y), f"{value:g}", INK, self.font, anchor="rm")
        corner = self.at(left, self.low_y)
        self._line([self.at(left, self.high_y), corner, self.at(right, self.low_y)], SOFT, 1)
        middle = SCALE * (LEFT + WIDTH - RIGHT) / 2
        under = SCALE * (HEIGHT - 26)
        self.pen.text((middle, under), axis.xaxis.title.text, INK, self.font, anchor="ma")
        title = Image.new("RGB", (SCALE * 240, SCALE * 20), PAPER)
        place = (title.width / 2, title.height / 2)
        ImageDraw.Draw(title).text(place, axis.yaxis.title.text, INK, self.font, anchor="mm")
        height = (self.image.height - SCALE * BOTTOM + SCALE * TOP - title.width) // 2
        self.image.paste(title.rotate(90, expand=True), (4 * SCALE, height))

    def _trace(self, trace: go.Scatter) -> None:
        points = [self.at(x, y) for x, y, *_ in self.points(trace)]
        if trace.fill:
            self.pen.polygon(points, fill=_rgba(trace.fillcolor))
            return
        if trace.error_y.array:
            for x, _, low, high in self.points(trace):
                self._line([self.at(x, low), self.at(x, high)], trace.error_y.color, 1.5)
        if "lines" in trace.mode:
            self._line(points, trace.line.color, trace.line.width or 2, trace.line.dash)
        if "markers" in trace.mode:
            for point in points:
                self._mark(point, trace.marker)

    def _mark(self, centre: tuple[float, float], marker: Any) -> None:
        symbol, colour = marker.symbol or "circle", _rgba(marker.color)
        size = marker.size if isinstance(marker.size, int | float) else 9
        radius, (x, y) = SCALE * size / 2, centre
        opened = symbol.endswith("-open")
        fill, rim = (None, colour) if opened else (colour, _rgba(marker.line.color or PAPER))
        width = round(SCALE * (marker.line.width or 1))
        shape = SHAPES.get(symbol.removesuffix("-open"))
        if shape is None:
            box = (x - radius, y - radius, x + radius, y + radius)
            self.pen.ellipse(box, fill, rim, width)
            return
        corners, first, inner = shape
        turns = np.radians(first + 360 * np.arange(corners) / corners)
        radii = radius * 1.2 * np.where(np.arange(corners) % 2, inner, 1.0)
        outline = list(zip(x + radii * np.cos(turns), y + radii * np.sin(turns), strict=True))
        self.pen.polygon(outline, fill, rim, width)

    def _line(self, points: Points, colour: str, width: float, dash: str | None = None) -> None:
        pieces = _dashed(points, DASHES[dash]) if dash in DASHES else [points]
        for piece in pieces:
            self.pen.line(list(piece), _rgba(colour), max(1, round(SCALE * width)), "curve")

    def _legend(self) -> None:
        x, y = SCALE * (WIDTH - RIGHT + 16), SCALE * (TOP + 8)
        for trace in self.figure.data:
            if not trace.name or trace.showlegend is False:
                continue
            ends = [(x, y), (x + 24 * SCALE, y)]
            if trace.fill:
                self._line(ends, trace.fillcolor, 10)
            elif "lines" in trace.mode:
                self._line(ends, trace.line.color, trace.line.width or 2, trace.line.dash)
            if not trace.fill and "markers" in trace.mode:
                self._mark((x + 12 * SCALE, y), trace.marker)
            self.pen.text((x + 32 * SCALE, y), trace.name, INK, self.font, anchor="lm")
            y += 21 * SCALE


def _round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers between two values.

    >>> [round(tick, 6) for tick in _round_ticks(1.03, 1.58)]
    [1.1, 1.2, 1.3, 1.4, 1.5]
    """
    decade = 10.0 ** int(np.floor(np.log10((high - low) / most)))
    step = next(size * decade for size in (1, 2, 5, 10) if (high - low) / (size * decade) <= most)
    first, last = int(np.ceil(low / step)), int(np.floor(high / step))
    return [step * position for position in range(first, last + 1)]


def _dashed(points: Points, pattern: tuple[int, int]) -> Iterator[Points]:
    """Yield the pieces of a line that are drawn."""
    on, off = (SCALE * length for length in pattern)
    walked = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        length = float(np.hypot(x1 - x0, y1 - y0))
        start = -(walked % (on + off))
        while start < length:
            ends = max(start, 0.0) / length, min(start + on, length) / length
            if ends[0] < ends[1]:
                yield [(x0 + (x1 - x0) * end, y0 + (y1 - y0) * end) for end in ends]
            start += on + off
        walked += length


def _rgba(colour: str) -> tuple[int, ...]:
    """Return a colour of CSS as Pillow takes it.

    >>> _rgba("rgba(60, 140, 200, 0.2)"), _rgba("#0072b2")
    ((60, 140, 200, 51), (0, 114, 178))
    """
    if colour.startswith("rgba"):
        *rgb, alpha = re.findall(r"[\d.]+", colour)
        return (*map(int, rgb), round(255 * float(alpha)))
    return ImageColor.getrgb(colour)


def _plain(text: str) -> str:
    return re.sub(r"<[^>]+>", "", text)
