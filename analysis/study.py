"""Read what a study folder holds."""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.settings import SETTING
from tarflow.errors import UserError
from tarflow.record import EVALUATIONS, gather, read_json, read_table


def read_study(study: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the run and evaluation tables of a study, rebuilt if a run is newer than they are.

    Raises:
        UserError: if the folder holds no study, or tables of another version.
    """
    tables = [study / "runs.parquet", study / "evaluations.parquet"]
    results = [path.stat().st_mtime for path in study.glob("runs/*/result.json")]
    built = min((path.stat().st_mtime if path.exists() else 0.0) for path in tables)
    if not results and not built:
        if not (study / "runs").is_dir():
            raise UserError(f"{study} holds no study: it has neither runs/ nor runs.parquet")
        gather(study)
    elif results and max(results) >= built:
        gather(study)
    runs, evaluations = (read_table(path).to_pandas() for path in tables)
    return runs, evaluations.reindex(columns=EVALUATIONS.names)  # older tables lack some


def pictures_of(study: Path) -> dict[tuple[Any, ...], Path]:
    """Return the pictures of samples, by run id and the values of `correlation.SETTING`."""
    found = {}
    for picture in [*study.glob("runs/*/samples.png"), *study.glob("runs/*/evaluations/*.png")]:
        own = picture.name == "samples.png"
        beside = picture.with_name("result.json") if own else picture.with_suffix(".json")
        plain = read_json(beside)
        for row in (plain or {}).get("evaluations", []) if own else plain or []:
            found[(row["run_id"], *(row.get(name) for name in SETTING))] = picture
    return found


def tables_of(study: Path, runs: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """Return the table of this name of every run that has left one, by run id."""
    found = {}
    for run_id in runs["run_id"]:
        path = study / "runs" / run_id / name
        if path.exists():
            found[run_id] = read_table(path).to_pandas()
    return found
