"""The first screen of the report: the answer in words, how far to trust it, and what it cost.

Every number is read from `Findings`; nothing is estimated here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup, escape

from analysis.comparing.ablation import conclusions
from analysis.laws.intervals import LEVEL
from analysis.study.advice import Recommendation, repetition
from analysis.study.findings import Findings, HeldOut
from analysis.study.forecast import claim
from analysis.study.machines import own_machine
from analysis.study.warnings import warnings_of
from tarflow.human import (
    bits,
    bits_unit,
    count,
    digits,
    interval,
    missing,
    number,
    percent,
    power,
    seconds,
)

ABLATION = Markup(
    "<b>An ablation: choices side by side at equal training FLOPs, without a law.</b> Differences "
    "count where intervals do not overlap, and paired ones where the interval leaves out 0; the "
    "lowest of many is partly luck."
)
TOO_FEW = Markup(
    "<b>Too few runs for a law.</b> A law of compute needs finished runs at three budgets or "
    "more; the runs so far are shown below."
)
TIMES = {2: "Twice", 3: "Three times", 4: "Four times", 5: "Five times", 10: "Ten times"}
SHARES = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth"}


@dataclass(frozen=True)
class Tile:
    """One important number with a note."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Summary:
    """The words of the first screen, and what the chapters repeat of it."""

    facts: str  # one line under the title
    lede: Markup
    claims: tuple[str, ...]  # how far to trust the answer, and what limits it
    tiles: tuple[Tile, ...]
    compared: tuple[str, ...]  # conclusions of an ablation; empty in a study with laws
    warnings: tuple[str, ...]


def summarise(
    findings: Findings,
    table: pd.DataFrame,
    scored: pd.DataFrame,
    advice: Recommendation | None,
    study: Path,
) -> Summary:
    """Put findings into words.

    Args:
        findings: What the study shows.
        table: Every run, failed ones too.
        scored: Finished runs joined to their sample scores.
        advice: The run to train next, or None.
        study: Folder of the study.
    """
    conclude = () if len(findings.runs) else conclusions(findings.finished, scored, study)
    compared = tuple(conclude)
    return Summary(
        facts=_facts(findings, table),
        lede=ABLATION if compared else _lede(findings, advice),
        claims=tuple(_claims(findings, advice)),
        tiles=tuple(_tiles(findings, table, advice)),
        compared=compared,
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


def _lede(findings: Findings, advice: Recommendation | None) -> Markup:
    """Say what more compute buys, in numbers that can be checked."""
    item = advice.allocation if advice else None
    if advice is None or item is None or item.bpd is None or item.bpd_interval is None:
        return TOO_FEW
    if any(missing(end) for end in item.bpd_interval):
        return TOO_FEW
    best = float(findings.runs["bpd"].min())
    ratio = round(item.flops / findings.budgets[-1].flops, 1)
    times = TIMES.get(int(ratio), "") if ratio == int(ratio) else ""
    own = own_machine(findings.finished)
    time = own.seconds(advice.config) if own else None
    return Markup(
        "{} the compute should take you from <b>{}</b> to <b>{}</b> {} "
        "({}; lower is better): {} channels, {} images{}."
    ).format(
        times or f"{number(ratio)} times",
        bits(best),
        bits(item.bpd),
        findings.bits_unit,
        interval(item.bpd_interval, bits),
        item.channels,
        digits(advice.config.images),
        f", about {seconds(time)} on {own.name}" if own and time else "",
    )


def _claims(findings: Findings, advice: Recommendation | None) -> list[str]:
    item = advice.allocation if advice else None
    claims = []
    if findings.held_out_best:
        claims.append(_proof(findings.held_out_best))
    if proof := claim(findings.forecasts):
        claims.append(proof)
    if item and item.bpd_interval and item.bpd_interval[1] >= findings.runs["bpd"].min():
        claims.append("The interval also allows no gain at all.")
    if item and item.caution:
        claims.append(item.caution)
    if item and item.edge:
        claims.append(f"The best size is a bound: {item.edge}.")
    return claims


def _proof(run: HeldOut) -> str:
    """Say how well the law predicted the largest run before it had seen it."""
    ratio = round(run.ratio, 1)
    share = SHARES.get(int(ratio)) if ratio == int(ratio) else None
    seen = f"{share} of its compute" if share else f"{number(run.ratio)} times less compute"
    error = percent(abs(run.error))
    if any(missing(end) for end in run.interval):
        return f"Fitted to runs with {seen} or less, the law predicted the largest run to {error}."
    if run.inside:
        return (
            f"Fitted to runs with {seen} or less, the law predicted the largest run to {error}, "
            f"inside its {percent(LEVEL)} interval."
        )
    return (
        f"Fitted to runs with {seen} or less, the law missed the largest run by {error}: "
        f"predicted {bits(run.predicted)} ({interval(run.interval, bits)}), achieved "
        f"{bits(run.achieved)}. Expect larger errors beyond the runs than intervals say."
    )


def _tiles(findings: Findings, table: pd.DataFrame, advice: Recommendation | None) -> list[Tile]:
    tiles = []
    if len(findings.finished):
        best = findings.finished.nsmallest(1, "bpd").iloc[0]
        unit = bits_unit(str(best["bpd_kind"]))
        tiles.append(Tile(f"Best run, {unit}", bits(best["bpd"]), best["name"]))
    item = advice.allocation if advice else None
    if item and item.bpd is not None:
        note = f"{interval(item.bpd_interval, bits)} · {power(item.flops)} FLOPs"
        tiles.append(Tile("Predicted for the next run", bits(item.bpd), note))
    if run := findings.held_out_best:
        tiles.append(
            Tile(
                "Largest run, predicted from the others",
                bits(run.predicted),
                f"achieved {bits(run.achieved)} ({percent(run.error, signed=True)})",
            )
        )
    if len(table):
        spent = f"{power(table['flops_marginal'].sum())} training FLOPs"
        time = seconds(table["device_seconds"].sum())
        tiles.append(Tile("Cost of the study, device time", time, spent))
    return tiles


def next_in_words(findings: Findings, advice: Recommendation) -> str:
    """Say which run to train next and why this one."""
    item, model = advice.allocation, advice.config.model
    layers = (
        f"{model.layer_split} layers"
        if model.layer_split
        else _several(model.mean_layers, "layer")
    )
    text = (
        f"{power(item.flops)} FLOPs, {number(item.flops / findings.budgets[-1].flops)} times the "
        f"largest budget: {model.channels} channels, {model.blocks} blocks of "
        f"{layers} ({count(item.model_params)} parameters), "
        f"{digits(advice.config.images)} images. The size is that of the {item.source}."
    )
    edge = f"At the edge: {item.edge}." if item.edge else ""
    lines = [text, item.caution, edge, *repetition(findings, advice.config)]
    return " ".join(filter(None, lines))


def _warnings(findings: Findings) -> list[str]:
    """Return the warnings, without the parameters that are not identified."""
    given = _unidentified(findings)
    return [line for line in warnings_of(findings) if not any(reason in line for reason in given)]


def _unidentified(findings: Findings) -> list[str]:
    """Return why parameters of the two laws are not identified."""
    return [
        fit.reasons[name]
        for fit in (findings.frontier, findings.surface)
        if fit
        for name, known in fit.identified.items()
        if not known
    ]
