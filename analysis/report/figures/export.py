"""The contents of a figure as a table of exactly what is drawn."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go


def to_table(figure: go.Figure) -> pd.DataFrame:
    """Return the points of a figure, one row each, columns named by the axes.

    >>> line = go.Scatter(x=[1, 2], y=[3.0, 4.0], name="law")
    >>> figure = go.Figure(line, layout={"xaxis": {"title": "C"}, "yaxis": {"title": "L"}})
    >>> to_table(figure).to_dict("list")
    {'series': ['law', 'law'], 'run_id': ['', ''], 'C': [1, 2], 'L': [3.0, 4.0]}
    """
    x = figure.layout.xaxis.title.text or "x"
    y = figure.layout.yaxis.title.text or "y"
    parts = [_points(trace.to_plotly_json(), x, y) for trace in figure.data]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return table.dropna(axis="columns", how="all")


def _points(trace: dict[str, Any], x: str, y: str) -> pd.DataFrame:
    xs = trace["x"]
    size = len(xs)
    columns: dict[str, Any] = {
        "series": trace.get("name") or "",
        "run_id": trace.get("meta") or "",
        x: xs,
        y: trace.get("y") or [trace.get("name")] * size,
    }
    if trace.get("customdata"):
        columns["value"] = trace["customdata"]
    colour = trace.get("marker", {}).get("color")
    bar = trace.get("marker", {}).get("colorbar")
    if bar and not isinstance(colour, str):
        columns[bar["title"]["text"]] = colour
    for axis, label in (("error_x", x), ("error_y", y)):
        bars = trace.get(axis)
        if bars:
            columns[f"{label}: plus"] = bars["array"]
            columns[f"{label}: minus"] = bars.get("arrayminus", bars["array"])
    return pd.DataFrame(columns, index=range(size))
