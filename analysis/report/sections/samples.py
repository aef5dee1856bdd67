"""The section of samples: how they sharpen with compute, and the best run of each size."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.report.figures.theme import Row
from analysis.report.run_data import by_compute, first_samples
from analysis.report.section import Material, Picture, Section, embedded, png_uri, sample_sheet
from tarflow.human import bits, bits_unit, count, number
from tarflow.record import read_table

STRIPS = 12  # runs in the strip: more do not fit on a screen
RUN_SEED = 0  # of the samples that a run draws when it ends; other settings use other seeds


def samples(material: Material) -> Section:
    """Show the first samples of runs of more and more compute, then the best run of each size."""
    findings = material.findings
    runs = findings.runs if len(findings.runs) else findings.finished
    best = _best_of_sizes(runs)
    compared = _compared(material, best)
    strips = [
        Picture(first, run["name"], _score(run), run["run_id"])
        for run in _spread(compared).to_dict("records")
        if (first := first_samples(material.study, run))
    ]
    return Section(
        "samples",
        "Samples of each size",
        _reading(material, compared, strips) if len(strips) > 1 else "Without selection.",
        {},
        strips=tuple(strips) if len(strips) > 1 else (),
        pictures=tuple(
            embedded(path, run["name"], _score(run), run["run_id"])
            for run in best.to_dict("records")
            if (path := material.study / "runs" / run["run_id"] / "samples.png").exists()
        ),
        empty="No run has written samples yet.",
    )


def previews(material: Material) -> tuple[Section, ...]:
    """Show the samples that the best run drew while it trained; nothing if it drew none."""
    for _, run in material.findings.finished.sort_values("bpd").iterrows():
        path = material.study / "runs" / run["run_id"] / "previews.parquet"
        if path.exists():
            break
    else:
        return ()
    strips = [
        Picture(
            png_uri(sample_sheet(row["samples"])), f"{count(row['images'])} images", _held_out(row)
        )
        for row in read_table(path).to_pylist()
    ]
    words = f"{run['name']}, the best run that drew samples while it trained, with the average of "
    words += "its weights so far. Each column turns the same noise into an image."
    title = "Samples while a run trained"
    return (Section("previews", title, words, {}, strips=tuple(strips)),)


def _held_out(row: Mapping[str, Any]) -> str:
    return "" if row["loss"] is None else f"loss of validation images {number(row['loss'])}"


def same_noise(scored: pd.DataFrame, ids: Collection[str]) -> bool:
    """Tell whether the samples of these runs begin with the same noise at each position.

    Args:
        scored: Runs joined to their sample scores.
        ids: Ids of the runs.
    """
    own = scored["seed_sampling"] == RUN_SEED
    rows = scored[own & scored["run_id"].isin(set(ids))]
    alike = rows[["data_hash", "patch", "classes"]].nunique() <= 1
    again = rows[["redrawn", "lost"]].fillna(1)  # unknown in tables of earlier releases
    known = set(rows["run_id"]) == set(ids)
    return bool(known and alike.all() and (again == 0).all(axis=None))


def _best_of_sizes(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.sort_values("bpd").drop_duplicates("params").sort_values("params")


def _compared(material: Material, best: pd.DataFrame) -> pd.DataFrame:
    """Return the best runs of sizes and of budgets, and final runs, in the order of compute.

    Runs of one budget are ordered from the worst to the best.
    """
    finished = material.findings.finished
    chosen = {*best["run_id"], *material.findings.frontier_points["run_id"]}
    compared = by_compute(
        finished[finished["run_id"].isin(chosen) | (finished["role"] == "final")]
    )
    return compared.sort_values(["budget", "bpd"], ascending=[True, False])


def _spread(runs: pd.DataFrame) -> pd.DataFrame:
    """Return at most `STRIPS` of the runs, the first and the last among them."""
    at = np.linspace(0, len(runs) - 1, min(len(runs), STRIPS)).round().astype(int)
    return runs.iloc[at]


def _score(run: Row) -> str:
    images = " of test images" if run["split"] == "test" else ""
    return f"{bits(run['bpd'])} {bits_unit(str(run.get('bpd_kind')))}{images}"


def _reading(material: Material, compared: pd.DataFrame, strips: list[Picture]) -> str:
    """Return how to read the strips."""
    words = "The best run of every size and of every budget, without selection. "
    if same_noise(material.scored, [strip.run for strip in strips]):
        words += "Each column turns the same noise into an image. Read downwards: more compute, "
        words += "and at equal compute fewer bits."
    else:
        words += "Read downwards: more compute, and at equal compute fewer bits."
    if len(compared) > len(strips):
        words += f" {len(strips)} of {len(compared)} such runs are shown."
    return words
