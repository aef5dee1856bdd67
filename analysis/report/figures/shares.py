"""The figure of what each technique is worth."""

from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.comparing.shares import Share, labels
from analysis.report.figures.theme import CATEGORIES, SOFT, around, figure, marker
from tarflow.human import interval, number


def shares(shown: Sequence[Share]) -> go.Figure:
    """Draw the difference that each technique makes to one score, with its 90% interval.

    Scores of samples differ by orders of magnitude, so their differences are in percent of the
    score without the technique.

    Args:
        shown: Shares of one score.
    """
    of_samples = not shown[0].of_likelihood
    scales = [100 / share.level if of_samples else 1.0 for share in shown]
    centre = [scale * share.difference for scale, share in zip(scales, shown, strict=True)]
    ends = [
        (scale * share.interval[0], scale * share.interval[1])
        for scale, share in zip(scales, shown, strict=True)
    ]
    unit = "% of KID without it" if of_samples else shown[0].score
    drawn = figure(f"difference, {unit}", "", height=120 + 45 * len(shown))
    drawn.add_trace(
        go.Scatter(
            x=centre,
            y=labels(shown),
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
