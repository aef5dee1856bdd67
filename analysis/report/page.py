"""The report of a study: one HTML page that opens offline and calls no server."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report import run_data
from analysis.report.picture import png_of
from analysis.report.section import Chapter, Material, Section
from analysis.report.sections import ablation, budget, laws, ledger, quality, runs, samples
from analysis.report.summary import summarise
from analysis.report.template import csv_uri, fill
from analysis.study.advice import Recommendation, recommend
from analysis.study.budgets import plans
from analysis.study.findings import Findings, find
from analysis.study.folder import note_of, read_settings, read_study
from analysis.study.forecast import read_ledger
from tarflow import record
from tarflow.errors import UserError


def write_report(study: Path, seed: int = 0, live: bool = False) -> Path:
    """Read a study folder, fit its laws, and write its `report.html` and `law.png`.

    Args:
        study: A folder with `runs/` or `runs.parquet`.
        seed: Seed of the draws.
        live: Let the page reload itself, as the study is going on.

    Returns:
        The path of the page. With too few runs for a law, the page says so and shows the runs.

    Raises:
        UserError: If the folder holds no study, or tables of another version.
    """
    table, evaluations = read_study(study)
    findings = find(table, evaluations, seed=seed, forecasts=read_ledger(study))
    return write_page(material_of(study, table, evaluations, findings, seed), live)


def write_page(material: Material, live: bool = False) -> Path:
    """Write `report.html` of a study, and its first figure as `law.png`.

    Args:
        material: What the page is made from.
        live: Let the page reload itself, as the study is going on.

    Returns:
        The path of the page.
    """
    page = material.study / "report.html"
    record.write_text(page, render(material, live))
    for figure in laws.law(material).figures.values():
        with record.replacing(material.study / "law.png") as picture:
            picture.write_bytes(png_of(figure))
    return page


def render(material: Material, live: bool = False) -> str:
    """Return the page as HTML; arguments as of `write_page`."""
    study, findings, table = material.study, material.findings, material.table
    summary = summarise(findings, table, material.scored, material.advice, study)
    shown = chapters(material)
    return fill(
        "report.html.j2",
        kind="TarFlow scaling study",
        name=study.resolve().name,
        facts=summary.facts,
        command=f"python -m analysis report {shlex.quote(material.place)}",
        note=note_of(read_settings(study)),
        data={
            "budgets": budget.page_data(material),
            "runs": run_data.run_data(material, _with_samples(shown)),
        },
        live=progress_of(study) if live else None,
        summary=summary,
        first=laws.law(material),
        best_samples=runs.best_samples(material),
        chapters=shown,
        run_columns=run_data.columns(material),
        runs=run_data.run_rows(material),
        filters=run_data.filters(material),
        runs_csv=csv_uri(table.drop(columns=["config", "versions"])),
    )


def material_of(
    study: Path,
    table: pd.DataFrame,
    evaluations: pd.DataFrame,
    findings: Findings,
    seed: int,
) -> Material:
    """Return what the sections of a study's page are made from.

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
    advice = _advice(findings)
    return Material(
        study=study,
        table=table,
        scored=scored,
        findings=findings,
        plans=plans(findings, scored, advice),
        reference=record.read_json(study / "reference.json") or {},
        outcome=record.read_json(study / "outcome.json") or {},
        seed=seed,
        advice=advice,
    )


def _advice(findings: Findings) -> Recommendation | None:
    try:
        return recommend(findings)
    except UserError:  # no finished run to start from
        return None


def progress_of(study: Path) -> dict[str, Any]:
    """Return how far a running study is, in words, and when the page was `written` (Unix time)."""
    progress = record.read_json(study / "progress.json") or {}
    return {"words": progress.get("counts", ""), "written": round(time.time())}


def chapters(material: Material) -> list[Chapter]:
    """Return every chapter in reading order. A study without laws begins with what it compares."""
    compared = ablation.sections(material)
    following = (
        *budget.budget(material),
        laws.following(material),
        laws.allocation(material),
        laws.isoflop(material),
    )
    trust = (
        ledger.ledger(material),
        laws.held_out(material),
        laws.validation(material),
        laws.residuals(material),
        laws.symbols(material),
    )
    looks = (
        samples.samples(material),
        *samples.previews(material),
        quality.quality(material),
        *quality.parting(material),
        quality.disagreement(material),
        *quality.others(material),
        quality.search(material),
    )
    trained = (runs.table(material), runs.curves(material), runs.images(material))
    ablated = Chapter("compared", "What did the comparison show?", "Comparison", tuple(compared))
    shown = [
        *([ablated] if compared else []),
        Chapter("next", "What should I train next?", "Next run", following),
        Chapter("trust", "Can I trust it?", "Trust", trust),
        Chapter("looks", "What do samples look like?", "Samples", looks),
        Chapter("trained", "What did the runs do?", "Runs", trained),
        Chapter("spent", "What did it cost?", "Cost", (runs.cost(material),)),
        Chapter("made", "How was it made?", "Method", (runs.reproducibility(material),)),
    ]
    if not compared or len(material.findings.runs):
        return shown
    return [_without_search(item) for item in shown if item.key not in ("next", "trust")]


def _without_search(chapter: Chapter) -> Chapter:
    """Return a chapter for an ablation, which shows samples beside its choices."""
    kept = [item for item in chapter.sections if item.key not in ("samples", "search")]
    return replace(chapter, sections=tuple(kept))


def all_sections(material: Material) -> list[Section]:
    """Return the first screen's section and those of every chapter, in reading order."""
    return [laws.law(material), *(s for item in chapters(material) for s in item.sections)]


def _with_samples(shown: list[Chapter]) -> set[str]:
    """Return the ids of the runs in the section of samples."""
    sections = [section for chapter in shown for section in chapter.sections]
    return {
        picture.run
        for section in sections
        if section.key == "samples"
        for picture in (*section.strips, *section.pictures)
    }
