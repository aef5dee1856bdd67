"""The figure of forecasts: intervals written before training, and what came out."""

from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from analysis.report.figures import theme
from tarflow.forecasts import Forecast

ROW, FRAME = 52, 130  # pixels for a forecast, and around them
HOVER = 60  # characters in a line of hover text


def forecasts(ledger: Sequence[Forecast], names: Sequence[str], unit: str) -> go.Figure | None:
    """Draw the interval of each forecast and what its run achieved; None without a prediction.

    Args:
        ledger: Forecasts in the order in which they were written.
        names: Name of each run.
        unit: Unit of their likelihoods.
    """
    pairs = zip(ledger, names, strict=True)
    rows = [(item, name) for item, name in pairs if item.predicted is not None]
    if not rows:
        return None
    shown = theme.figure(unit, "", height=FRAME + ROW * len(rows))
    shown.update_layout(margin={"l": 12, "r": 12}, showlegend=True)
    _add_predictions(shown, rows)
    _add_results(shown, rows, "achieved", "achieved, same images", theme.marker(theme.BLUE))
    on_test = theme.ring(theme.GREEN, "square-open", 9, 2)
    _add_results(shown, rows, "test_bpd", "test images", on_test)
    return shown.update_yaxes(
        tickvals=[len(rows) - at for at in range(len(rows))],
        ticktext=[_in_lines(name) for _, name in rows],
        range=[0.4, len(rows) + 0.6],
        showgrid=False,
    )


def _add_predictions(shown: go.Figure, rows: Sequence[tuple[Forecast, str]]) -> None:
    predicted = [item.predicted or 0.0 for item, _ in rows]
    ends = [
        (value if item.low is None else item.low, value if item.high is None else item.high)
        for value, (item, _) in zip(predicted, rows, strict=True)
    ]
    text = [
        _hover(name, item.in_words + " It is not trained yet." * (not item.done))
        for item, name in rows
    ]
    shown.add_trace(
        theme.points(
            predicted,
            range(len(rows), 0, -1),
            text,
            error_x=theme.around(predicted, ends, theme.HELD_OUT),
            marker=theme.ring(theme.HELD_OUT, "diamond-open", 11, 2),
            name="predicted, with interval",
            meta=[item.run_id for item, _ in rows],
        )
    )


def _add_results(
    shown: go.Figure,
    rows: Sequence[tuple[Forecast, str]],
    field: str,
    name: str,
    marker: dict[str, Any],
) -> None:
    at = [place for place, (item, _) in enumerate(rows) if getattr(item, field) is not None]
    if not at:
        return
    values = [getattr(rows[place][0], field) for place in at]
    shown.add_trace(
        theme.points(
            values,
            [len(rows) - place for place in at],
            [_hover(rows[place][1], rows[place][0].verdict) for place in at],
            marker=marker,
            name=name,
            meta=[rows[place][0].run_id for place in at],
        )
    )


def _hover(name: str, words: str) -> str:
    return "<br>".join([f"<b>{escape(name)}</b>", *map(escape, wrap(words, HOVER))])


def _in_lines(name: str) -> str:
    """Break a name before its compute, so that it leaves room on a phone.

    >>> _in_lines("32 channels · 4x1 · 1.2e12 FLOPs · seed 1")
    '32 channels · 4x1<br>1.2e12 FLOPs · seed 1'
    """
    parts = name.split(" · ")
    return "<br>".join(filter(None, [" · ".join(parts[:2]), " · ".join(parts[2:])]))
