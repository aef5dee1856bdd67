"""Figures of the results of the laws: parameters, compute-optimal sizes, prediction errors.

Every number is read from a law or from `Findings`; nothing is computed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from analysis.laws.allocation import Allocation
from analysis.laws.average import Law
from analysis.laws.fit import Fit
from analysis.laws.forms.form import Role
from analysis.laws.isoflop import IsoFlop
from analysis.laws.validation import AVERAGE, Baseline
from analysis.report.figures import theme
from analysis.report.figures.theme import LAW, SOFT, around, band, figure, log_axis, marker
from analysis.study.findings import Findings
from tarflow.human import bits, count, interval, number, power

SMALLEST = 0.01  # percent: smaller errors are drawn here because the axis is logarithmic
MOST_ROLLOUTS = 300  # of one form


def fits_of(findings: Findings) -> list[tuple[Fit, str]]:
    """Return the fits of every law of a study with their labels."""
    forms = findings.surface.fits if findings.surface else ()
    fits = [(fit, f"{fit.name} L(N, D)") for fit in forms]
    if findings.frontier:
        fits.append((findings.frontier, f"{findings.frontier.name} L(C)"))
    for item in findings.held_out:
        fit = item.law.general if isinstance(item.law, Law) else item.law
        fits.append((fit, f"{fit.name}, held out"))
    return fits


def exponents(fits: Sequence[tuple[Fit, str]]) -> go.Figure | None:
    """Draw every exponent of labelled fits with its interval; open and grey if not identified."""
    return _forest(_estimates(fits, ("exponent", "power")), "exponent", (0.0, 1.0))


def floors(fits: Sequence[tuple[Fit, str]], best: float, unit: str) -> go.Figure | None:
    """Draw the floor E of labelled fits with its interval, from 0 to the best loss."""
    return _forest(_estimates(fits, ("floor",)), f"floor E, {unit}", (0.0, best))


@dataclass(frozen=True)
class _Estimate:
    law: str
    value: float
    interval: tuple[float, float]
    identified: bool
    hover: str


def _estimates(fits: Sequence[tuple[Fit, str]], roles: Sequence[Role]) -> list[_Estimate]:
    return [
        _Estimate(
            f"{name} · {label}",
            fit.values[name],
            fit.intervals[name],
            fit.identified[name],
            f"<b>{name} of {label}</b>, {fit.formula}<br>{number(fit.values[name])}, 90% interval "
            f"{interval(fit.intervals[name])}<br>{fit.reasons[name]}",
        )
        for fit, label in fits
        for name in fit.values
        if fit.form.role_of(name) in roles
    ]


def _forest(
    rows: Sequence[_Estimate], label: str, window: tuple[float, float]
) -> go.Figure | None:
    """Draw estimates with intervals; those that are not identified may leave the window."""
    if not rows:
        return None
    shown = figure(label, "", height=110 + 30 * len(rows))
    for known, name in ((True, "identified"), (False, "not identified by these runs")):
        part = [row for row in rows if row.identified == known]
        if not part:
            continue
        colour = LAW if known else SOFT
        ends = [tuple(np.clip(row.interval, -1e3, 1e3).tolist()) for row in part]
        values = [row.value for row in part]
        shown.add_trace(
            theme.points(
                values,
                [row.law for row in part],
                [row.hover for row in part],
                error_x=around(values, ends, colour),
                marker=marker(colour, "circle" if known else "circle-open", 9),
                name=name,
            )
        )
    seen = [end for row in rows if row.identified for end in row.interval]
    low, high = min(seen, default=window[0]), max(seen, default=window[1])
    low, high = max(min(low, window[0]), -window[1]), min(max(high, window[1]), 3 * window[1])
    shown.update_xaxes(range=[low - 0.03 * (high - low), high + 0.03 * (high - low)])
    return shown.update_yaxes(
        categoryorder="array", categoryarray=[row.law for row in rows][::-1], showgrid=False
    )


SOURCES = {  # of an allocation: colour and line
    "surface law": (LAW, "dash"),
    "IsoFLOP minima": (theme.HELD_OUT, "dot"),
    "best run": (SOFT, "dot"),
}


def allocation(findings: Findings) -> dict[str, go.Figure]:
    """Draw the compute-optimal parameters and tokens against the budget."""
    if not findings.allocation:
        return {}
    inside = [iso for iso in findings.isoflops if not iso.edge]
    shown = {}
    for name, label in (("params", "optimal parameters N*"), ("tokens", "optimal tokens D*")):
        one = figure("training FLOPs", label, height=380)
        for source in dict.fromkeys(item.source for item in findings.allocation):
            items = [item for item in findings.allocation if item.source == source]
            _allocated(one, items, name, label)
        if inside:
            one.add_trace(_minima(inside, name))
        values = [value for trace in one.data for value in trace.y]
        reach = [value for trace in one.data for value in trace.x]
        shown[label] = one.update_xaxes(log_axis(reach)).update_yaxes(log_axis(values, count))
    return shown


def _allocated(shown: go.Figure, items: Sequence[Allocation], name: str, label: str) -> None:
    colour, dash = SOURCES[items[0].source]
    ends = [getattr(item, f"{name}_interval") for item in items]
    known = [i for i, (low, high) in enumerate(ends) if 0 < low <= high < np.inf]
    if len(known) > 1:
        at = np.array([items[i].flops for i in known])
        low, high = (np.array([ends[i][side] for i in known]) for side in (0, 1))
        shown.add_trace(band(at, low, high, theme.BAND, "90% interval"))
    text = [
        f"<b>{power(item.flops)} FLOPs</b><br>{label} {count(getattr(item, name))}"
        f"<br>90% interval {interval(end, count)}<br>channels {item.channels}"
        f" · blocks {item.blocks} · layers {item.layer_split or item.layers}"
        f" · {count(item.images)} images"
        for item, end in zip(items, ends, strict=True)
    ]
    shown.add_trace(
        theme.points(
            [item.flops for item in items],
            [getattr(item, name) for item in items],
            text,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker=marker(colour),
            name=f"by the {items[0].source}",
        )
    )


def _minima(inside: Sequence[IsoFlop], name: str) -> go.Scatter:
    centre = [getattr(iso, name) for iso in inside]
    ends = [iso.params_interval for iso in inside]
    return go.Scatter(
        x=[iso.flops for iso in inside],
        y=centre,
        error_y=around(centre, ends, theme.HELD_OUT) if name == "params" else None,
        mode="markers",
        marker=marker(theme.HELD_OUT, "diamond", 11),
        name="IsoFLOP minima",
        text=[power(iso.flops) for iso in inside],
        hovertemplate="IsoFLOP minimum %{y:.3s} at %{text} FLOPs<extra></extra>",
    )


def validation(
    law: Law | None, guesses: Sequence[Baseline], write: Callable[[float], str] = bits
) -> go.Figure | None:
    """Draw the roll-out error of every form against the distance of the extrapolation.

    Args:
        law: The law; None shows nothing.
        guesses: Errors without a law on the same roll-outs, drawn as lines.
        write: How a loss is written.
    """
    rollouts = law.rollouts if law else ()
    if not rollouts:
        return None
    shown = figure("times the largest compute seen", "error, %", height=460)
    distances, drawn = [], 0
    for index, form in enumerate(dict.fromkeys(item.form for item in rollouts)):
        items = [item for item in rollouts if item.form == form]
        items = items[:: theme.stride(len(items), MOST_ROLLOUTS)]
        drawn += len(items)
        ratios = [float(np.exp(item.distance)) for item in items]
        distances += ratios
        colour = theme.CATEGORIES[index % len(theme.CATEGORIES)]
        text = [
            f"<b>{form}</b> grown along {item.axis}, fitted to {item.rows} runs<br>"
            f"predicted {write(item.predicted)}, achieved {write(item.achieved)}"
            for item in items
        ]
        errors = [max(100 * abs(item.error), SMALLEST) for item in items]
        label, fade = ("the average", {}) if form == AVERAGE else (form, {"opacity": 0.55})
        look = marker(colour, theme.symbol(index)) | fade
        shown.add_trace(theme.points(ratios, errors, text, marker=look, name=label))
    theme.note_thinning(shown, drawn, len(rollouts), "predictions")
    for baseline, dash in zip(guesses, ("dash", "dot"), strict=False):
        ends, height = [min(distances), max(distances)], [100 * baseline.error] * 2
        hover = "%{y:.2f}%<extra>" + baseline.name + "</extra>"
        shown.add_trace(theme.line(ends, height, SOFT, dash, 1.5, hover, name=baseline.name))
    errors = [value for trace in shown.data for value in trace.y]
    shown.update_yaxes(log_axis(errors, lambda error: f"{error:g}"))
    return shown.update_xaxes(log_axis(distances, lambda ratio: f"{ratio:g}×"))
