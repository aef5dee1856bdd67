"""The figure of what each technique is worth."""

from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.report.figures.theme import CATEGORIES, SOFT, around, figure, marker
from analysis.shares import Share
from tarflow.human import interval, number


def shares(shown: Sequence[Share]) -> go.Figure:
    """Draw the difference that each technique makes to one score, with its 90% interval.

    Args:
        shown: Shares of one score.
    """
    drawn = figure(f"{shown[0].score}, minus those without", "", height=120 + 45 * len(shown))
    centre, ends = [share.difference for share in shown], [share.interval for share in shown]
    drawn.add_trace(
        go.Scatter(
            x=centre,
            y=[f"{share.technique} · {share.study}" for share in shown],
            mode="markers",
            error_x=around(centre, ends, CATEGORIES[0]),
            marker=marker(CATEGORIES[0], "circle"),
            text=[
                f"{share.best}, against {share.without}<br>{number(share.difference)} "
                f"({interval(share.interval)})"
                for share in shown
            ],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    )
    drawn.add_vline(x=0, line={"color": SOFT, "width": 1})
    return drawn.update_yaxes(type="category", autorange="reversed", automargin=True)
