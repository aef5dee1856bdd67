"""The figure beside the budget slider: the predicted likelihood against the budget."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.report.figures import theme
from analysis.report.figures.laws import FLOPS, expected, law_line
from analysis.study.budgets import Plan
from analysis.study.findings import Findings

CHOSEN = "this budget"  # name of the trace that scripts/slider.js moves
ZONE = "rgba(128, 128, 128, 0.13)"


def predicted(findings: Findings, plans: Sequence[Plan], start: int) -> go.Figure:
    """Draw what the law predicts for every budget, the best run of each, and a chosen budget.

    Args:
        findings: What the study shows, with a law of size and data.
        plans: Plans by the law, cheapest first.
        start: Index of the plan to mark as chosen.
    """
    shown = theme.figure(FLOPS, findings.bits_unit, height=340)
    flops, values, low, high = expected(plans)
    if np.isfinite(high - low).all():
        shown.add_trace(theme.band(flops, low, high, theme.BAND, "90% band of a new run"))
    tested = sum(plan.tested for plan in plans)
    for part, dash, name in (
        (slice(tested), "solid", "predicted"),
        (slice(max(tested - 1, 0), None), "dash", "predicted, not tested"),
    ):
        if len(flops[part]) > 1:
            shown.add_trace(law_line(flops[part], values[part], dash, 2).update(name=name))
    if tested < len(plans):
        edge = plans[max(tested - 1, 0)].flops
        shown.add_vrect(edge, flops[-1], fillcolor=ZONE, line_width=0, layer="below")
    means = findings.frontier_points[["run_id", "bpd"]]  # over seeds
    best = means.merge(findings.runs.drop(columns="bpd"), on="run_id")
    shown.add_trace(
        theme.dots(best, "flops", "bpd", marker=theme.marker(theme.INK), name="best run")
    )
    shown.add_trace(
        theme.points(
            [flops[start]],
            [values[start]],
            [CHOSEN],
            marker=theme.ring(theme.HELD_OUT, "circle-open", 16, 3),
            name=CHOSEN,
        )
    )
    return shown.update_xaxes(theme.log_axis(flops))
