"""The sections of the laws: fits, minima, roll-outs, and how a budget is best spent."""

from analysis.forecast import read_forecasts
from analysis.human import percent
from analysis.laws.intervals import LEVEL
from analysis.report import checklist
from analysis.report.figures import estimates as plots_estimates
from analysis.report.figures import laws as plots_law
from analysis.report.section import Block, Material, some


def law(material: Material) -> Block:
    """Show the runs and the law of compute."""
    found = material.findings
    aid = "Each point is a finished run, each line one model size."
    if found.frontier:
        aid += " The law is fitted to the ringed runs, the best of each budget."
    if plots_law.held_out_on_compute(found):
        aid += " The dotted law has not seen the largest budget; the diamond is its prediction "
        aid += f"there, with the {percent(LEVEL)} band."
    return Block(
        "law",
        "Loss against compute",
        aid,
        some(law=plots_law.runs_against_flops(found)),
        empty="No run has finished yet.",
    )


def isoflop(material: Material) -> Block:
    """Show the parabola of every budget."""
    return Block(
        "isoflop",
        "IsoFLOP: the best size of each budget",
        "Runs of one budget share a colour. The diamond is the minimum of the parabola with its "
        "90% interval; an open diamond says that the best size lies beyond those tried. Where "
        "the dotted surface leaves the parabola, one of the two is wrong.",
        some(isoflop=plots_law.isoflop(material.findings)),
        empty="No budget has three sizes yet.",
    )


def residuals(material: Material) -> Block:
    """Show what the surface law leaves over."""
    return Block(
        "residuals",
        "What the law leaves over",
        "Relative residuals of the surface law. A trend along an axis means that the form misses "
        "something there; a lone point is worth a second look.",
        plots_law.residuals(material.findings),
        columns=3,
        tables=(checklist.influence(material.findings),) if material.findings.influence else (),
        empty="No surface law L(N, D) could be fitted: too few runs.",
    )


def exponents(material: Material) -> Block:
    """Show exponents and floors across forms."""
    return Block(
        "exponents",
        "Exponents and floor, with intervals",
        "The same exponent across forms: believe it as far as the rows agree. Open grey marks are "
        "not identified by these runs, their value is arbitrary.",
        some(
            exponents=plots_estimates.exponents(material.findings),
            floor=plots_estimates.floors(material.findings),
        ),
        empty="No law could be fitted: too few runs.",
    )


def allocation(material: Material) -> Block:
    """Show how a budget is best spent."""
    return Block(
        "allocation",
        "Compute-optimal size and data",
        "How a budget is best split between parameters N* and tokens D*. Diamonds are the IsoFLOP "
        "minima, which need no law. Where the law leaves the size open, the minima or the best "
        "run take its place.",
        plots_estimates.allocation(material.findings),
        tables=(checklist.sizes(material.findings),) if material.findings.allocation else (),
        empty="Nothing to recommend yet: too few runs.",
    )


def validation(material: Material) -> Block:
    """Show the roll-outs."""
    found = material.findings
    tables = (checklist.model_choice(found), checklist.coverage(found)) if found.rollouts else ()
    return Block(
        "validation",
        "Validation: errors on runs not seen",
        "Every form is fitted to cheaper runs only and predicts the dearer ones; each mark is one "
        "such prediction. A law is worth having if it stays below the grey lines, which need no "
        "law.",
        some(validation=plots_estimates.validation(found)),
        tables=tables,
        empty="No roll-out was possible: too few runs.",
    )


def final(material: Material) -> Block:
    """Show final runs beside their forecasts."""
    forecasts = read_forecasts(material.study)
    return Block(
        "final",
        "The final run: predicted against achieved",
        "What the law said before the run was trained, and what came out, on the test split that "
        "nothing else reads.",
        {},
        tables=(checklist.final(forecasts),) if forecasts else (),
        empty="" if forecasts else "No final run yet. This command trains best.yaml:",
        command="" if forecasts else f"python sweeps/final.py {material.study}",
    )
