"""The sections of the laws: fits, minima, roll-outs, and how a budget is best spent."""

import shlex

from analysis.laws.average import Law
from analysis.laws.intervals import LEVEL
from analysis.report import checklist
from analysis.report.figures import estimates as estimate_figures
from analysis.report.figures import laws as law_figures
from analysis.report.section import Material, Section, existing
from analysis.report.summary import next_in_words
from analysis.report.template import json_uri
from analysis.study.plain import laws_to_plain
from analysis.study.warnings import law_of
from tarflow.human import percent


def law(material: Material) -> Section:
    """Show the runs and the law of compute."""
    findings = material.findings
    aid = "Each point is a finished run, each line one model size; lower is better."
    if findings.surface or findings.frontier:
        aid += " The thick line is the law at the best size of every budget."
    if findings.held_out_best:
        aid += " The diamond is what a law without the runs of the largest budget predicts there, "
        aid += f"with its {percent(LEVEL)} interval."
    return Section(
        "law",
        "What does compute buy?",
        aid,
        existing(law=law_figures.runs_against_flops(findings, material.plans, material.advice)),
        empty="No run has finished yet.",
    )


def following(material: Material) -> Section:
    """Say which run to train next, and how."""
    findings, advice = material.findings, material.advice
    folder = shlex.quote(material.place)
    return Section(
        "best",
        "The run to train next",
        next_in_words(findings, advice) if advice else "",
        {},
        empty="" if advice else "Nothing to recommend yet: no run of the grid has finished.",
        command=f"python sweeps/final.py {folder}\n"
        f"python -m tarflow train {folder}/best.yaml  # the same run, without Ray"
        if advice
        else "",
    )


def held_out(material: Material) -> Section:
    """Say how laws without the largest budget predicted it."""
    findings = material.findings
    return Section(
        "held-out",
        "The largest budget, predicted from the others",
        "",
        {},
        empty="" if findings.held_out else "No law could be fitted without the largest budget.",
        points=tuple(f"{law_of(item.law)}: {item.verdict}" for item in findings.held_out),
    )


def isoflop(material: Material) -> Section:
    """Show the best size of every budget, by the surface law and by the runs of that budget."""
    findings = material.findings
    return Section(
        "isoflop",
        "IsoFLOP: the best size of each budget",
        "Runs of one budget share a colour. The line is the surface law, fitted to all runs; the "
        "star is its best size. The dotted curve, fitted to the runs of one budget, is a check: "
        "the open diamond is its minimum. Where noise may hide that the loss rises on both sides, "
        "the minimum is at the edge and gives a bound only.",
        existing(isoflop=law_figures.isoflop(findings)),
        tables=(checklist.isoflop(findings),) if findings.isoflops else (),
        empty="No budget has three sizes yet.",
    )


def residuals(material: Material) -> Section:
    """Show where the surface law is wrong."""
    return Section(
        "residuals",
        "Residuals: where the law is wrong",
        "Relative residuals of the surface law. A trend along an axis means that the form misses "
        "something there; check a run that lies far from the others.",
        law_figures.residuals(material.findings),
        columns=3,
        tables=(checklist.influence(material.findings),) if material.findings.influence else (),
        empty="No surface law L(N, D) could be fitted: too few runs.",
    )


def symbols(material: Material) -> Section:
    """Show the laws as formulas, with exponents and floors of all forms."""
    findings = material.findings
    laws = [law for law in (findings.surface, findings.frontier) if law]
    fits = estimate_figures.fits_of(findings)
    best = float(findings.runs["bpd"].min()) if len(findings.runs) else 1.0
    return Section(
        "symbols",
        "The laws in symbols: exponents and floor",
        "The same exponent in different forms: trust it as far as the rows agree. Open grey marks "
        "are not identified by these runs, so their value is arbitrary; predictions average what "
        "fits, and their intervals say how far to trust them.",
        existing(
            exponents=estimate_figures.exponents(fits),
            floor=estimate_figures.floors(fits, best, findings.bits_unit),
        ),
        tables=tuple(
            checklist.parameters(law.general if isinstance(law, Law) else law) for law in laws
        ),
        links=(("Laws as JSON", "laws.json", json_uri(laws_to_plain(findings))),) if laws else (),
        empty="No law could be fitted: too few runs.",
    )


def allocation(material: Material) -> Section:
    """Show how a budget is best spent."""
    return Section(
        "allocation",
        "Compute-optimal size and data",
        "How to split a budget between parameters N* and tokens D*. Diamonds are the IsoFLOP "
        "minima, which need no law. If the law does not determine the size, the minima or the "
        "best run are used instead.",
        estimate_figures.allocation(material.findings),
        tables=(checklist.sizes(material.findings),) if material.findings.allocation else (),
        empty="Nothing to recommend yet: too few runs.",
    )


def validation(material: Material) -> Section:
    """Show the roll-outs."""
    findings, law = material.findings, material.findings.surface
    tables = (
        (checklist.forms(law, findings.baselines), checklist.coverage(findings.coverage))
        if law
        else ()
    )
    return Section(
        "validation",
        "Validation: errors on runs not seen",
        "Every form is fitted to the cheaper, smaller or shorter runs only and predicts the "
        "others; each mark is one such prediction. The law is the average of the forms: a "
        "form with half the error weighs 16 times as much. A useful law stays below the grey "
        "lines, which are guesses without a law.",
        existing(validation=estimate_figures.validation(law, findings.baselines)),
        tables=tables,
        empty="No roll-out was possible: too few runs.",
    )
