"""The section of forecasts: what was predicted before runs were trained, and what came out."""

import json
import shlex
from collections.abc import Sequence

import pandas as pd

from analysis.report.figures import ledger as ledger_figures
from analysis.report.section import Material, Section, Table, existing
from analysis.study.forecast import calibration, claim
from analysis.study.names import run_names
from tarflow.forecasts import Forecast
from tarflow.human import MISSING, bits, interval, percent

ORIGINS = {"final": "final run", "best": "best.yaml", "next": "--next"}


def ledger(material: Material) -> Section:
    """Show every forecast of the study with its outcome, and how those beside it came out."""
    forecasts = material.findings.forecasts
    names = _names(forecasts, material.table)
    unit = material.findings.bits_unit
    overall = calibration(material.study)
    so_far = f"So far, {overall}." if overall else ""
    words = (
        "A forecast is written down before its run is trained, and never changed. It is compared "
        "on the images that the law was fitted to; test images are other ones, so there the run "
        "is expected to differ as much as the best run of the grid does."
    )
    words = " ".join(filter(None, [claim(forecasts), words, so_far]))
    return Section(
        "forecasts",
        "Forecasts: what was predicted, and what came out",
        words,
        existing(forecasts=ledger_figures.forecasts(forecasts, names, unit)),
        tables=(_outcomes(forecasts, names, unit), _sources(forecasts, names))
        if forecasts
        else (),
        empty=""
        if forecasts
        else "No forecast yet. This command writes one down, trains the "
        "run of best.yaml, and compares:",
        command="" if forecasts else f"python sweeps/final.py {shlex.quote(material.place)}",
    )


def _outcomes(forecasts: Sequence[Forecast], names: Sequence[str], unit: str) -> Table:
    return Table(
        ("run", "predicted", "90% interval", "achieved", "what came out", "on test images"),
        tuple(
            (
                name,
                bits(item.predicted),
                _interval(item),
                _with_error(item.achieved, item.achieved_se),
                _outcome(item),
                _with_error(item.test_bpd, item.test_se)
                + (
                    f", expected {bits(item.test_predicted)}"
                    if item.test_predicted is not None
                    else ""
                ),
            )
            for item, name in zip(forecasts, names, strict=True)
        ),
        f"{unit.capitalize()}, lower is better; ± is the standard error over images",
    )


def _sources(forecasts: Sequence[Forecast], names: Sequence[str]) -> Table:
    return Table(
        ("run", "written", "for", "by the law", "fitted to rows", "code"),
        tuple(
            (
                name,
                item.time.replace("T", " ").replace("+00:00", " UTC") or MISSING,
                ORIGINS.get(item.origin, item.origin),
                item.law or MISSING,
                item.table_hash or MISSING,
                item.git or MISSING,
            )
            for item, name in zip(forecasts, names, strict=True)
        ),
        "How each forecast was made",
    )


def _outcome(item: Forecast) -> str:
    if item.predicted is None:
        return item.in_words
    if item.error is None:
        return "scored on test images only" if item.done else "not trained yet"
    off = f"{percent(abs(item.error))} too {'high' if item.error > 0 else 'low'}"
    place = {True: "inside", False: "outside", None: "no interval"}[item.inside]
    return f"{place}, {off}"


def _interval(item: Forecast) -> str:
    if item.low is None or item.high is None:
        return MISSING
    words = interval((item.low, item.high), bits)
    return words if item.level == 0.9 else f"{words} ({percent(item.level)})"


def _with_error(value: float | None, error: float | None) -> str:
    return bits(value) if error is None else f"{bits(value)} ± {bits(error)}"


def _names(forecasts: Sequence[Forecast], table: pd.DataFrame) -> list[str]:
    """Return names of the runs: those of the study, or else by their configs."""
    known = dict(zip(table["run_id"], table["name"], strict=True))
    rows = pd.DataFrame([_row(item) for item in forecasts if item.config])
    if len(rows):
        known = dict(zip(rows["run_id"], run_names(rows), strict=True)) | known
    return [known.get(item.run_id, item.run_id) for item in forecasts]


def _row(item: Forecast) -> dict[str, object]:
    """Return what a name is made of, by the columns of `runs.parquet`."""
    config = json.loads(item.config)
    model = {name: config["model"][name] for name in ("channels", "blocks", "layers", "patch")}
    return model | {
        "run_id": item.run_id,
        "label": item.run_id,
        "flops": item.flops,
        "lr": config["optim"]["lr"],
        "noise_std": config["noise"]["std"],
        **{name: config[name] for name in ("batch", "seed")},
    }
