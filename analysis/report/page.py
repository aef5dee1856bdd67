"""The report of a study: one HTML page that opens offline and calls no server."""

from pathlib import Path

import pandas as pd

from analysis.findings import Findings, find
from analysis.report import run_data
from analysis.report.section import Material, Section
from analysis.report.sections import ablation, laws, quality, runs, samples
from analysis.report.summary import summarise
from analysis.report.template import csv_uri, fill
from analysis.study import read_study
from tarflow import record


def write_report(study: Path, seed: int = 0) -> Path:
    """Read a study folder, fit its laws, and write its `report.html`.

    Args:
        study: A folder with `runs/` or `runs.parquet`.
        seed: Seed of the draws.

    Returns:
        The path of the page. With too few runs for a law, the page says so and shows the runs.

    Raises:
        UserError: If the folder holds no study, or tables of another version.
    """
    table, evaluations = read_study(study)
    findings = find(table, evaluations, seed=seed)
    page = study / "report.html"
    record.write_text(page, render(study, table, evaluations, findings, seed))
    return page


def render(
    study: Path,
    table: pd.DataFrame,
    evaluations: pd.DataFrame,
    findings: Findings,
    seed: int,
) -> str:
    """Return the page as HTML.

    Args:
        study: Folder of the study.
        table: Every run, failed ones too.
        evaluations: Rows of the evaluations table.
        findings: What the study shows.
        seed: Seed of the draws.
    """
    scored = findings.finished.merge(
        evaluations, on="run_id", suffixes=("", "_sampling"), validate="one_to_many"
    )
    material = Material(
        study=study,
        table=table,
        scored=scored,
        findings=findings,
        reference=record.read_json(study / "reference.json") or {},
        outcome=record.read_json(study / "outcome.json") or {},
        seed=seed,
    )
    summary = summarise(findings, table, scored)
    shown = sections(material)
    pictured = {
        picture.run
        for section in shown
        if section.key == "samples"
        for picture in (*section.strips, *section.pictures)
    }
    return fill(
        "report.html.j2",
        kind="TarFlow scaling study",
        name=study.resolve().name,
        facts=summary.facts,
        study=study,
        command=f"python -m analysis report {study}",
        data={"runs": run_data.run_data(material, pictured)},
        summary=summary,
        sections=shown,
        run_columns=run_data.COLUMNS,
        runs=run_data.run_rows(material),
        filters=run_data.filters(material),
        runs_csv=csv_uri(table.drop(columns=["config", "versions"])),
    )


def sections(material: Material) -> list[Section]:
    """Return every section in reading order. A study without laws begins with what it compares."""
    ablations = ablation.sections(material)
    scores = [
        quality.quality(material),
        quality.disagreement(material),
        *quality.others(material),
    ]
    images = runs.images(material)
    end = [runs.cost(material), runs.reproducibility(material)]
    if ablations and material.findings.runs.empty:
        return [*ablations, *scores, runs.curves(material), images, *end]
    return [
        laws.law(material),
        runs.curves(material),
        laws.isoflop(material),
        laws.residuals(material),
        laws.exponents(material),
        laws.allocation(material),
        laws.validation(material),
        laws.final(material),
        *ablations,
        *scores,
        samples.samples(material),
        images,
        quality.search(material),
        *end,
    ]
