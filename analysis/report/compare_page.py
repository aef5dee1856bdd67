"""A comparison of studies as one HTML page."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from analysis.comparing.comparison import Compared, Comparison
from analysis.comparing.words import conclusions, details, reservations
from analysis.report.section import Table
from analysis.report.sections.compare import chapters
from analysis.report.template import fill
from analysis.study.folder import note_of
from tarflow.human import MISSING, bits, count, power
from tarflow.record import write_text


def write_comparison(page: Path, comparison: Comparison) -> None:
    """Write a comparison as a page that opens offline.

    Args:
        page: The file to write.
        comparison: What the studies show.

    Raises:
        UserError: If the page cannot be written.
    """
    names = [study.name for study in comparison.studies]
    contrasts = comparison.contrasts
    html = fill(
        "compare.html.j2",
        kind="Comparison of TarFlow scaling studies",
        name=" · ".join(names),
        facts=f"{len(names)} studies of the same images",
        command=f"python -m analysis compare {' '.join(map(shlex.quote, names))}",
        data={},
        leading=[line for contrast in contrasts for line in conclusions(contrast)],
        others=[line for contrast in contrasts for line in details(contrast)],
        reservations=reservations(comparison),
        studies=_studies(comparison),
        notes={study.name: note_of(study.settings) for study in comparison.studies},
        chapters=chapters(comparison),
    )
    write_text(page, html)


def _studies(comparison: Comparison) -> Table:
    rows = tuple(_study(study) for study in comparison.studies)
    columns = ("study", "finished runs", "sizes", "budgets", "best run", "law at largest budget")
    return Table(columns, rows)


def _study(study: Compared) -> tuple[str, ...]:
    runs = study.runs
    law = study.frontier
    return (
        study.name,
        str(len(study.findings.finished)),
        _range(count, runs["params"]),
        _range(power, runs["flops"]),
        bits(study.best),
        bits(float(law.at(law.largest)[0, 0])) if law else MISSING,
    )


def _range(write: Callable[[float], str], values: "pd.Series[float]") -> str:
    """Return the smallest and largest of some values in words."""
    return " to ".join(dict.fromkeys([write(values.min()), write(values.max())]))
