"""The sections of the page about any table of runs."""

import pandas as pd

from analysis.laws.validation import baselines, coverage
from analysis.report import checklist
from analysis.report.figures import answer as figures
from analysis.report.figures import estimates
from analysis.report.section import Section, existing
from analysis.table.answer import Answer, write_loss
from tarflow.human import power


def sections(answer: Answer, loss: str) -> list[Section]:
    """Return every section in reading order; only the rows if they follow no law.

    Args:
        answer: What the table says.
        loss: Name of the column of losses.
    """
    rows = figures.rows_of(answer)
    if answer.law.nothing:
        return [_rows(answer, rows, loss)]
    used = rows.loc[list(answer.law.rows)]
    return [
        _rows(answer, rows, loss),
        *_sizes(answer, used, loss),
        _residuals(answer, used),
        _validation(answer),
        _parameters(answer, loss),
    ]


def _rows(answer: Answer, rows: pd.DataFrame, loss: str) -> Section:
    aid = "Each point is a row of the table."
    if "params" in rows and not answer.law.groups:
        aid += " Colours run from the smallest model, blue, to the largest, yellow."
    if not answer.law.nothing:
        aid += " Diamonds are the predictions above. Bands and bars hold one new run with 90% "
        aid += "probability."
    title = "The rows" if answer.law.nothing else "The rows and the law"
    return Section("rows", title, aid, {"law": figures.losses(answer, rows, loss)})


def _sizes(answer: Answer, rows: pd.DataFrame, loss: str) -> list[Section]:
    """Show the loss against size at several budgets, and the best sizes, if the law has them."""
    if not figures.has_sizes(answer):
        return []
    return [
        Section(
            "slices",
            "Loss against size, at several budgets",
            "Each curve is the law at one budget of 6 N D training FLOPs, with its 90% band; the "
            "star is the best size. Points are the rows near that budget. One curve is at "
            f"the budget above, {power(answer.budget, 3)} FLOPs.",
            {"slices": figures.slices(answer, rows, loss)},
        ),
        Section(
            "sizes",
            "The best size of each budget",
            "Parameters and tokens of the lowest loss by the law, with 90% intervals."
            + (" The diamond is the best size above." if answer.best_size else ""),
            figures.best_sizes(answer, rows),
            empty="These rows do not tell the best size within a factor of 10.",
        ),
    ]


def _residuals(answer: Answer, rows: pd.DataFrame) -> Section:
    return Section(
        "residuals",
        "Residuals: where the law is wrong",
        "Relative residuals of the law. A trend along an axis means that the forms miss something "
        "there; check a row that lies far from the others.",
        figures.residuals(answer, rows),
        columns=3,
    )


def _validation(answer: Answer) -> Section:
    law = answer.law.law
    windows = law.trials.windows
    guesses = baselines(windows, law.sample)
    aid = "Every form is fitted to the cheaper, smaller or shorter rows only and predicts the "
    aid += "others; each mark is one such prediction. The law is the average of the forms: a form "
    aid += "with half the error weighs 16 times as much."
    if guesses:
        aid += " A useful law stays below the grey lines, which are guesses without a law."
    return Section(
        "validation",
        "Validation: errors on rows not seen",
        aid,
        existing(validation=estimates.validation(law, guesses, write_loss)),
        tables=(checklist.forms(law, guesses), checklist.coverage(coverage(law.rollouts)))
        if windows
        else (),
        empty="No roll-out was possible: too few rows. The law is the simplest form, untested.",
    )


def _parameters(answer: Answer, loss: str) -> Section:
    law = answer.law.law
    fits = sorted(law.fits, key=lambda fit: len(fit.theta))
    labelled = [(fit, fit.name) for fit in fits]
    best = float(law.data.values.min())
    return Section(
        "parameters",
        "Parameters of every form, with intervals",
        "The same parameter in different forms: trust it as far as the forms agree. Open grey "
        "marks are not identified by these rows, so their value is arbitrary.",
        existing(
            exponents=estimates.exponents(labelled), floor=estimates.floors(labelled, best, loss)
        ),
        tables=tuple(map(checklist.parameters, fits)),
    )
