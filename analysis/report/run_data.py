"""What the page knows of each run: rows of its table, filters, and data for its scripts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from analysis.laws.validation import levels
from analysis.report.figures.theme import Row
from analysis.report.section import Material, png_uri, sample_sheet
from tarflow import human

FILTERS = {  # groups of runs that a reader may ask for, and the column that orders them
    "size": "params",
    "budget": "flops",
    "noise": "noise_std",
    "role": "role",
    "status": "status",
}
TABLE_ROWS = 1000  # of the run table; its CSV has all
CURVE_POINTS = 60  # per run: what a curve an inch high can show
ALL_CURVE_POINTS = 100_000  # of all runs together, which bounds the file
PICTURE_BYTES = 400_000  # of the samples embedded for runs that no section shows
PER_ROW, GAP = 8, 2  # images in a row of samples.png, and the pixels around them


@dataclass(frozen=True)
class RunRow:
    """A row of the run table; the first cell is the name of the run."""

    run_id: str
    label: str
    status: str
    cells: tuple[tuple[str, float | str], ...]  # what is shown, and the value to sort by


@dataclass(frozen=True)
class Filter:
    """A choice between groups of runs."""

    key: str  # size, budget, noise, role, status or tag
    options: tuple[str, ...]  # at least two, or one tag


def columns(material: Material) -> tuple[str, ...]:
    """Return the headings of the run table."""
    first = ("run", "role", "status", "params", "images", "epochs", "FLOPs", "FLOPs spent")
    return (*first, material.findings.bpd_name, "KID", "time", "note")


def run_rows(material: Material) -> list[RunRow]:
    """Return the rows of the run table in the order of compute."""
    kid = _kid(material)
    notes = _notes(material)
    rows = []
    for run in listed(material).to_dict("records"):
        run_id = run["run_id"]
        numbers = (
            (human.count, run["params"]),
            (human.count, run["images"]),
            (human.number, run["epochs"]),
            (human.power, run["flops"]),
            (human.power, run["flops_marginal"]),
            (human.bits, run["bpd"]),
            (human.number, kid.get(run_id, (float("nan"), 0.0))[0]),
            (human.seconds, run["wall_seconds"]),
        )
        cells = [(word, word) for word in (run["name"], run["role"], run["status"])]
        cells += [
            (write(value), "" if human.missing(value) else float(value))
            for write, value in numbers
        ]
        cells.append((notes.get(run_id, ""),) * 2)
        rows.append(RunRow(run_id, run["label"], run["status"], tuple(cells)))
    return rows


def filters(material: Material) -> list[Filter]:
    """Return the choices that set some runs apart, their options in ascending order."""
    table = listed(material)
    groups = run_groups(table)
    choices = []
    for key, column in FILTERS.items():
        options = groups.loc[table.sort_values(column).index, key].drop_duplicates()
        if len(options) > 1:
            choices.append(Filter(key, tuple(options)))
    if tags := sorted({tag for words in groups["tag"] for tag in words.split(", ") if tag}):
        choices.append(Filter("tag", tuple(tags)))
    return choices


def run_data(material: Material, shown: set[str]) -> list[dict[str, Any]]:
    """Return what the scripts of the page know of each run, in the order of compute.

    Args:
        material: The study.
        shown: Ids of runs whose samples a section of the page shows.
    """
    kid, notes = _kid(material), _notes(material)
    table = listed(material)
    groups = run_groups(table).itertuples(index=False)
    points = int(np.clip(ALL_CURVE_POINTS // max(1, len(table)), 8, CURVE_POINTS))
    room = PICTURE_BYTES
    runs = []
    for run, words in zip(table.to_dict("records"), groups, strict=True):
        run_id = run["run_id"]
        entry = {
            "id": run_id,
            "label": run["label"],
            "name": run["name"],
            **dict(zip((*FILTERS, "tag"), words, strict=True)),
            "flops": _plain(run["flops"]),
            "bpd": _plain(run["bpd"]),
            "kid": _plain(kid.get(run_id, (None, None))[0]),
            "config": _config(run),
            "facts": _facts(run, kid.get(run_id)),
            "note": notes.get(run_id, ""),
            "curve": _thinned(material.curves.get(run_id), points),
        }
        if run_id not in shown and room > 0:
            samples = first_samples(material.study, run)
            room -= len(samples)
            entry["samples"] = samples
        runs.append(entry)
    return runs


def listed(material: Material) -> pd.DataFrame:
    """Return the runs to list by compute; of many, those of the most compute."""
    return by_compute(material.table).tail(TABLE_ROWS)


def by_compute(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs in the order of compute; runs of nearly equal FLOPs by their size."""
    return table.assign(budget=_budgets(table)).sort_values(["budget", "params", "flops", "seed"])


def run_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Return in words which size, budget, noise, role, status and tags each run has."""
    noises = zip(table["noise_type"], table["noise_std"], strict=True)
    tags = table.get("tags", pd.Series("", index=table.index))  # older tables have none
    return pd.DataFrame(
        {
            "size": [f"{human.count(params)} params" for params in table["params"]],
            "budget": [f"{human.power(flops)} FLOPs" for flops in _budgets(table)],
            "noise": [_noise(*noise) for noise in noises],
            "role": table["role"],
            "status": table["status"],
            "tag": tags.fillna(""),
        },
        index=table.index,
    )


def first_samples(study: Path, run: Row) -> str:
    """Return a row of the first samples of a run as a data URI; empty if it has none.

    They are the first row of its picture, or the first of each row if every class has one.
    """
    path = study / "runs" / run["run_id"] / "samples.png"
    if not path.exists():
        return ""
    sheet = sample_sheet(path.read_bytes())
    side = sheet.info["side"] or json.loads(run["config"])["model"]["image_size"]
    step, height = side + GAP, side + 2 * GAP
    if sheet.info["rows"] == "images":
        return png_uri(sheet.crop((0, 0, sheet.width, height)))
    strip = Image.new(sheet.mode, (sheet.height, height))
    for at in range(0, sheet.height - GAP, step):
        strip.paste(sheet.crop((0, at, height, at + height)), (at, 0))
    return png_uri(strip)


def _budgets(table: pd.DataFrame) -> "pd.Series[float]":
    """Return the mean FLOPs of the runs of nearly the same budget as each run."""
    flops = table["flops"].to_numpy(float)
    means = np.full(len(flops), np.nan)
    known = np.flatnonzero(flops > 0)
    for group in levels(flops[known]) if len(known) else []:
        means[known[group]] = np.exp(np.log(flops[known[group]]).mean())
    return pd.Series(means, index=table.index)


def _kid(material: Material) -> dict[str, tuple[float, float]]:
    """Return the first KID of each run and its standard error."""
    first = material.scored.dropna(subset=["kid"]).drop_duplicates("run_id")
    return dict(zip(first["run_id"], zip(first["kid"], first["kid_se"], strict=True), strict=True))


def _notes(material: Material) -> dict[str, str]:
    """Return by run why it failed, or why no law reads it."""
    errors = material.table.dropna(subset=["error"])
    return {item.run_id: item.reason for item in material.findings.left_out} | {
        run_id: error
        for run_id, error in zip(errors["run_id"], errors["error"], strict=True)
        if error
    }


def _noise(kind: str, std: float) -> str:
    return "uniform" if kind == "uniform" else human.number(std)


def _config(run: Row) -> str:
    noise = _noise(run["noise_type"], run["noise_std"])
    layers = run.get("layer_split") or f"{run['layers']:.0f}"
    return (
        f"{run['channels']:.0f} channels · {run['blocks']:.0f} blocks of {layers} "
        f"layer{'' if layers == '1' else 's'} · patch {run['patch']:.0f} · noise {noise} · "
        f"learning rate {human.number(run['lr'])} · batch {run['batch']:.0f} · "
        f"seed {run['seed']:.0f}"
    )


def _facts(run: Row, kid: tuple[float, float] | None) -> list[tuple[str, str]]:
    facts = []
    if not human.missing(run["bpd"]):
        images = " of test images" if run["split"] == "test" else ""
        facts.append(
            (
                f"{human.bits_unit(run['bpd_kind'])}{images}",
                _measured(human.bits, run["bpd"], run["bpd_se"]),
            )
        )
    if kid:
        facts.append(("KID of its samples", _measured(human.number, *kid)))
    facts.append(("compute", f"{human.power(run['flops'])} FLOPs"))
    seen = f"{human.count(run['images'])} images, {human.number(run['epochs'])} epochs"
    facts.append(("training", seen))
    if not human.missing(run["wall_seconds"]):
        facts.append(("time", human.seconds(run["wall_seconds"])))
    if isinstance(run.get("tags"), str) and run["tags"]:
        facts.append(("tags", run["tags"]))
    return facts


def _measured(write: Callable[[float], str], value: float, error: float) -> str:
    return write(value) + ("" if human.missing(error) else f" ± {write(error)}")


def _thinned(curve: pd.DataFrame | None, points: int) -> list[list[float]]:
    """Return images seen and training loss at some points of a curve, denser at its start."""
    if curve is None:
        return []
    images, losses = (curve[column].to_numpy(float) for column in ("images", "loss"))
    known = np.flatnonzero(np.isfinite(losses) & (images > 0))
    if len(known) < 2:
        return []
    at = np.geomspace(1, len(known), min(points, len(known))).round().astype(int) - 1
    kept = known[np.unique(at)]
    return [images[kept].astype(int).tolist(), losses[kept].round(4).tolist()]


def _plain(value: float | None) -> float | None:
    """Return a number that JSON can hold."""
    return None if value is None or human.missing(value) else float(f"{value:.6g}")
