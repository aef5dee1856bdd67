"""The report of a study: one HTML page that opens offline and calls no server."""

import shlex
import time
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.advice import Recommendation, recommend
from analysis.budgets import plans
from analysis.findings import Findings, find
from analysis.forecast import read_ledger
from analysis.report.section import Chapter, Material, Section
from analysis.report.sections import ablation, budget, laws, ledger, quality, runs
from analysis.report.summary import summarise
from analysis.report.template import csv_uri, fill
from analysis.study import note_of, read_settings, read_study
from tarflow import human, record
from tarflow.errors import UserError

RUN_COLUMNS = (
    *("run", "id", "role", "status", "params", "images", "epochs"),
    *("FLOPs", "FLOPs spent", "BPD", "KID", "time", "note"),
)


def write_report(study: Path, seed: int = 0, live: bool = False) -> Path:
    """Read a study folder, fit its laws, and write its `report.html`.

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
    page = study / "report.html"
    record.write_text(page, render(study, table, evaluations, findings, seed, live))
    return page


def render(
    study: Path,
    table: pd.DataFrame,
    evaluations: pd.DataFrame,
    findings: Findings,
    seed: int,
    live: bool = False,
) -> str:
    """Return the page as HTML.

    Args:
        study: Folder of the study.
        table: Every run, failed ones too.
        evaluations: Rows of the evaluations table.
        findings: What the study shows.
        seed: Seed of the draws.
        live: Let the page reload itself, as the study is going on.
    """
    material = material_of(study, table, evaluations, findings, seed)
    summary = summarise(findings, table, material.scored, material.advice)
    return fill(
        "report.html.j2",
        kind="TarFlow scaling study",
        name=study.resolve().name,
        facts=summary.facts,
        command=f"python -m analysis report {shlex.quote(material.place)}",
        note=note_of(read_settings(study)),
        data={"budgets": budget.page_data(material)},
        live=progress_of(study) if live else None,
        summary=summary,
        first=laws.law(material),
        best_samples=runs.best_samples(material),
        chapters=chapters(material),
        run_columns=RUN_COLUMNS,
        runs=_run_rows(material),
        runs_csv=csv_uri(table.drop(columns=["config", "versions"])),
    )


def material_of(
    study: Path,
    table: pd.DataFrame,
    evaluations: pd.DataFrame,
    findings: Findings,
    seed: int,
) -> Material:
    """Return what the sections of a study's page are made from; arguments as of `render`."""
    scored = findings.finished.merge(
        evaluations, on="run_id", suffixes=("", "_sampling"), validate="one_to_many"
    )
    return Material(
        study=study,
        table=table,
        scored=scored,
        findings=findings,
        plans=plans(findings, scored),
        reference=record.read_json(study / "reference.json") or {},
        outcome=record.read_json(study / "outcome.json") or {},
        seed=seed,
        advice=_advice(findings),
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
    samples = (
        runs.samples(material),
        quality.quality(material),
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
        Chapter("looks", "What do samples look like?", "Samples", samples),
        Chapter("trained", "What did the runs do?", "Runs", trained),
        Chapter("spent", "What did it cost?", "Cost", (runs.cost(material),)),
        Chapter("made", "How was it made?", "Method", (runs.reproducibility(material),)),
    ]
    without_laws = compared and material.findings.runs.empty
    return [item for item in shown if not without_laws or item.key not in ("next", "trust")]


def all_sections(material: Material) -> list[Section]:
    """Return the first screen's section and those of every chapter, in reading order."""
    return [laws.law(material), *(s for item in chapters(material) for s in item.sections)]


def _run_rows(material: Material) -> list[list[tuple[str, float | str]]]:
    """Return the cells of the run table: the text shown and the value to sort by."""
    scored = material.scored.dropna(subset=["kid"])
    kid = scored.groupby("run_id")["kid"].first().to_dict()
    reasons = {item.run_id: item.reason for item in material.findings.left_out}
    rows = []
    for _, run in material.table.sort_values(["flops", "params"]).tail(runs.TABLE_ROWS).iterrows():
        note = run["error"] if isinstance(run["error"], str) else ""
        numbers = (
            (human.count, run["params"]),
            (human.count, run["images"]),
            (human.number, run["epochs"]),
            (human.power, run["flops"]),
            (human.power, run["flops_marginal"]),
            (human.bits, run["bpd"]),
            (human.number, kid.get(run["run_id"], float("nan"))),
            (human.seconds, run["wall_seconds"]),
        )
        words = [run["name"], run["run_id"], run["role"], run["status"]]
        cells: list[tuple[str, float | str]] = [(word, word) for word in words]
        cells += [
            (write(value), "" if human.missing(value) else float(value))
            for write, value in numbers
        ]
        note = note or reasons.get(run["run_id"], "")
        rows.append([*cells, (note, note)])
    return rows
