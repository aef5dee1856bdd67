"""The words at the top of the report: the result, how certain it is, and what to do next.

Every number is read from `Findings`; nothing is estimated here.
"""

import re
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup, escape

from analysis.ablation import conclusions
from analysis.advice import recommend, repetition
from analysis.findings import Findings
from analysis.laws.average import Law
from analysis.laws.fit import Fit
from analysis.laws.intervals import LEVEL
from analysis.study_warnings import warnings_of
from tarflow.errors import UserError
from tarflow.human import bits, count, interval, number, percent, power

ABLATION = Markup(
    "<b>An ablation: choices side by side at equal training FLOPs, without a law.</b> Differences "
    "count where intervals do not overlap; the lowest of many is partly luck."
)


@dataclass(frozen=True)
class Tile:
    """One important number with a note."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Summary:
    """The text at the top of the page."""

    facts: str  # one line under the title
    lede: Markup
    tiles: tuple[Tile, ...]
    verdicts: tuple[tuple[str, str], ...]  # each law, and how well it predicted the held-out run
    advice: str  # what to train next
    trainable: bool  # whether such a run exists
    compared: tuple[str, ...]  # conclusions of an ablation; empty in a study with laws
    unknown: tuple[str, ...]  # parameters that the runs do not identify
    warnings: tuple[str, ...]


def summarise(findings: Findings, table: pd.DataFrame, scored: pd.DataFrame) -> Summary:
    """Put findings into words.

    Args:
        findings: What the study shows.
        table: Every run, failed ones too.
        scored: Finished runs joined to their sample scores.
    """
    compared = () if len(findings.runs) else tuple(conclusions(findings.finished, scored))
    return Summary(
        facts=_facts(findings, table),
        lede=ABLATION if compared else _lede(findings),
        tiles=tuple(_tiles(findings)),
        verdicts=tuple((_named(item.law), item.verdict) for item in findings.held_out),
        advice=_advice(findings),
        trainable=bool(len(findings.runs)),
        compared=compared,
        unknown=tuple(_unknown(findings)),
        warnings=tuple(_warnings(findings)),
    )


def typeset(formula: str) -> Markup:
    """Return a formula with raised exponents.

    >>> typeset("E + A / N^a")
    Markup('E + A / N<sup>a</sup>')
    """
    return Markup(re.sub(r"\^(\w+)", r"<sup>\1</sup>", str(escape(formula))))


def _facts(findings: Findings, table: pd.DataFrame) -> str:
    done = int((table["status"] == "done").sum()) if len(table) else 0
    parts = [f"{done} of {_several(len(table), 'run')} finished"]
    runs = findings.runs
    if len(runs):
        sizes, budgets = runs["params"].nunique(), len(findings.budgets)
        parts.append(f"{_several(sizes, 'size')} at {_several(budgets, 'budget')}")
        for column, write, unit in (("params", count, "params"), ("flops", power, "FLOPs")):
            ends = dict.fromkeys([write(runs[column].min()), write(runs[column].max())])
            parts.append(f"{' to '.join(ends)} {unit}")
    return " · ".join(parts)


def _several(number: int, word: str) -> str:
    return f"{number} {word}" + "s" * (number != 1)


def _lede(findings: Findings) -> Markup:
    fit = findings.frontier
    if fit is None:
        return Markup(
            "<b>Too few runs for a law.</b> A law of compute needs finished runs at three budgets "
            "or more; the runs so far are shown below."
        )
    text = Markup("On the frontier, bits per dimension follow <b>L(C) = {}</b>").format(
        typeset(fit.formula)
    )
    values = [_value(fit, name) for name in fit.values if name in ("E", "a")]
    text += Markup(", with {}").format(Markup(" and ").join(values))
    leading = _leading(findings)
    if leading is not None and leading is not fit:
        return _surface_lede(leading)
    if not fit.identified.get("a", False):
        return text + Markup(
            ". <b>These runs do not identify the exponent</b>: other exponents fit as well. "
            "Predictions average what fits, and their intervals say how far to trust them."
        )
    gain, share = 10 ** -fit.values["a"], [10**-end for end in fit.intervals["a"]]
    above = "the excess over the floor" if "E" in fit.values else "bits per dimension"
    return text + Markup(". Ten times the compute leaves {} of {} (90% interval {}).").format(
        percent(gain), above, interval((share[1], share[0]), percent)
    )


def _leading(findings: Findings) -> Law | Fit | None:
    """Return the law of compute, or that of size and data if only that one is identified."""
    frontier, surface = findings.frontier, findings.surface
    if frontier and not frontier.identified.get("a", False):
        return surface if surface and surface.identified.get("a", False) else frontier
    return frontier


def _surface_lede(fit: Law | Fit) -> Markup:
    values = [_value(fit, name) for name in fit.values if name in ("E", "a", "b", "g")]
    return Markup(
        "Bits per dimension follow <b>L(N, D) = {}</b>, with {}, over sizes and data together. "
        "The best runs of the budgets alone are too few to identify an exponent of compute."
    ).format(typeset(fit.formula), Markup(", ").join(values))


def _value(fit: Law | Fit, name: str) -> Markup:
    write = bits if name == "E" else number
    if not fit.identified[name]:
        return Markup("{} not identified").format(name)
    return Markup("{} = {} ({})").format(
        name, write(fit.values[name]), interval(fit.intervals[name], write)
    )


def _tiles(findings: Findings) -> list[Tile]:
    tiles = []
    if len(findings.finished):
        best = findings.finished.nsmallest(1, "bpd").iloc[0]
        tiles.append(Tile("Best run, bits per dimension", bits(best["bpd"]), best["label"]))
    fit = _leading(findings)
    if fit:
        known = fit.identified["a"]
        tiles.append(
            Tile(
                "Compute exponent" if fit is findings.frontier else "Exponent of size and data",
                number(fit.values["a"]) if known else "unknown",
                f"90% interval {interval(fit.intervals['a'])}" if known else fit.reasons["a"],
            )
        )
    if findings.held_out:
        form = fit.form if fit else None
        run = next((h for h in findings.held_out if h.law.form == form), findings.held_out[0])
        place = "inside" if run.inside else "outside"
        tiles.append(
            Tile(
                "Held-out run, predicted",
                bits(run.predicted),
                f"achieved {bits(run.achieved)} ({percent(run.error, signed=True)}), {place} "
                f"the {percent(LEVEL)} band {interval(run.interval, bits)}; "
                f"{run.ratio:.2g}× the compute of the fitted runs",
            )
        )
    achieved = [item for item in findings.coverage if item.total]
    if achieved:
        last = achieved[-1]
        tiles.append(
            Tile(
                "Coverage of the bands",
                percent(last.achieved),
                f"promised {percent(last.level)}: {last.inside} of {last.total} roll-outs inside",
            )
        )
    return tiles


def _advice(findings: Findings) -> str:
    try:
        advice = recommend(findings)
    except UserError as error:
        return f"{str(error)[0].upper()}{str(error)[1:]}."
    item, model = advice.allocation, advice.config.model
    ratio = item.flops / findings.budgets[-1].flops
    text = (
        f"At {power(item.flops)} FLOPs, {ratio:.2g}× the largest budget: channels "
        f"{model.channels}, blocks {model.blocks}, layers {model.layers} "
        f"({count(item.model_params)} params) on {count(advice.config.images)} images. "
        f"The size is that of the {item.source}."
    )
    if item.bpd is not None:
        text += (
            f" Predicted {bits(item.bpd)} bits per dimension, 90% interval "
            f"{interval(item.bpd_interval, bits)}."
        )
    edge = f"At the edge: {item.edge}." if item.edge else ""
    lines = [text, item.caution, edge, *repetition(findings, advice.config)]
    return " ".join(filter(None, lines))


def _named(law: Law | Fit) -> str:
    return "Law of compute" if law.of_compute else "Law of size and data"


def _warnings(findings: Findings) -> list[str]:
    """Return the warnings that the rest of the summary does not give already."""
    given = [reason for _, reason in _doubts(findings)]
    return [line for line in warnings_of(findings) if not any(reason in line for reason in given)]


def _unknown(findings: Findings) -> list[str]:
    return [f"{_named(fit)}: {reason}" for fit, reason in _doubts(findings)]


def _doubts(findings: Findings) -> list[tuple[Law | Fit, str]]:
    """Return why parameters of the two laws are not identified."""
    return [
        (fit, fit.reasons[name])
        for fit in (findings.frontier, findings.surface)
        if fit
        for name, known in fit.identified.items()
        if not known
    ]
