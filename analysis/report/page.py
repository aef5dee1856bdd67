"""The report of a study: one HTML page that opens offline and calls no server."""

from pathlib import Path

import pandas as pd

from analysis.findings import Findings, find
from analysis.report.section import Material, Section
from analysis.report.sections import ablation, laws, quality, runs
from analysis.report.summary import summarise
from analysis.report.template import csv_uri, fill
from analysis.study import note_of, read_settings, read_study
from tarflow import human, record

RUN_COLUMNS = (
    *("run", "id", "role", "status", "params", "images", "epochs"),
    *("FLOPs", "FLOPs spent", "BPD", "KID", "time", "note"),
)


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
    material = material_of(study, table, evaluations, findings, seed)
    summary = summarise(findings, table, material.scored)
    return fill(
        "report.html.j2",
        kind="TarFlow scaling study",
        name=study.resolve().name,
        facts=summary.facts,
        note=note_of(read_settings(study)),
        study=study,
        command=f"python -m analysis report {study}",
        data={},
        summary=summary,
        sections=sections(material),
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
        reference=record.read_json(study / "reference.json") or {},
        outcome=record.read_json(study / "outcome.json") or {},
        seed=seed,
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
        runs.samples(material),
        images,
        quality.search(material),
        *end,
    ]


def _run_rows(material: Material) -> list[list[tuple[str, float | str]]]:
    """Return the cells of the run table: the text shown and the value to sort by."""
    scored = material.scored.dropna(subset=["kid"])
    kid = scored.groupby("run_id")["kid"].first().to_dict()
    reasons = {item.run_id: item.reason for item in material.findings.left_out}
    rows = []
    for _, run in material.table.sort_values(["flops", "params"]).iterrows():
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
        words = [run["label"], run["run_id"], run["role"], run["status"]]
        cells: list[tuple[str, float | str]] = [(word, word) for word in words]
        cells += [
            (write(value), "" if human.missing(value) else float(value))
            for write, value in numbers
        ]
        note = note or reasons.get(run["run_id"], "")
        rows.append([*cells, (note, note)])
    return rows
