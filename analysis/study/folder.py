"""Read the tables and pictures of a study folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.study.names import run_names
from analysis.study.settings import run_and_setting
from tarflow.errors import UserError
from tarflow.record import EVALUATIONS, gather, read_json, read_table


def read_study(study: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs and evaluations tables of a study, rebuilt first if a run is newer.

    The column `name` names runs for readers, and marks those that the study has pinned.

    Raises:
        UserError: If the folder holds no study, or tables of another version.
    """
    tables = [study / "runs.parquet", study / "evaluations.parquet"]
    results = [path.stat().st_mtime for path in study.glob("runs/*/result.json")]
    built = min((path.stat().st_mtime if path.exists() else 0.0) for path in tables)
    if not results and not built:
        if not (study / "runs").is_dir():
            near = f"; did you mean studies/{study}?" * (Path("studies") / study).is_dir()
            raise UserError(f"{study} holds no study: it has neither runs/ nor runs.parquet{near}")
        gather(study)
    elif results and max(results) >= built:
        gather(study)
    runs, evaluations = (read_table(path).to_pandas() for path in tables)
    pinned = runs["run_id"].isin(read_settings(study).get("pinned") or [])
    names = pd.Series(run_names(runs), index=runs.index, dtype=object)
    runs = runs.assign(name=names.where(~pinned, names + " · pinned"))
    return runs, evaluations.reindex(columns=EVALUATIONS.names)  # older tables lack columns


def read_settings(study: Path) -> dict[str, Any]:
    """Return the contents of study.yaml as plain values; nothing without a readable file."""
    try:
        plain = yaml.safe_load((study / "study.yaml").read_text("utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return plain if isinstance(plain, dict) else {}


def note_of(settings: Mapping[str, Any]) -> str:
    """Return the note that a study was given with `--note`, from its settings; may be empty."""
    return str(settings.get("note") or "")


def sample_pictures(study: Path, runs: Iterable[str]) -> dict[tuple[Any, ...], Path]:
    """Return the pictures of samples of some runs, by `settings.run_and_setting`."""
    rows = []
    for folder in (study / "runs" / run_id for run_id in runs):
        if (picture := folder / "samples.png").exists():
            result = read_json(folder / "result.json") or {}
            rows += [(row, picture) for row in result.get("evaluations", [])]
        rows += [
            (row, picture)
            for picture in folder.glob("evaluations/*.png")
            for row in read_json(picture.with_suffix(".json")) or []
        ]
    return {run_and_setting(row): picture for row, picture in rows}


def tables_of_runs(study: Path, runs: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """Return the table of this file name of every run that has one, by run id."""
    paths = {run_id: study / "runs" / run_id / name for run_id in runs["run_id"]}
    return {
        run_id: read_table(path).to_pandas() for run_id, path in paths.items() if path.exists()
    }
