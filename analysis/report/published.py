"""Published numbers on the same data, beside the best of a study.

`published.csv` is keyed by data set, size, labels and metric; each number has its protocol and its
source. Only comparable numbers are shown together: a likelihood with uniform noise beside
likelihoods, never the bound of Gaussian noise; FID beside FID, never a distance in other features.
"""

from pathlib import Path

import pandas as pd

from analysis.report.section import Table
from analysis.study.settings import setting_in_words
from tarflow.human import bits, number

NUMBERS = Path(__file__).with_suffix(".csv")
NAMES = {"bpd": "bits per dimension", "fid": "FID"}


def published(scored: pd.DataFrame, finished: pd.DataFrame) -> tuple[Table, ...]:
    """Return a table for every metric that the study and others have measured on the same data.

    Args:
        scored: Finished runs joined to their sample scores.
        finished: Every finished run.
    """
    known = pd.read_csv(NUMBERS)
    likelihoods = finished[finished["bpd_kind"] == "dequantised"]
    tables = [
        _beside(metric, rows, known[known["metric"] == metric])
        for metric, rows in (
            ("bpd", likelihoods),
            ("fid", scored[scored["half"] == "all"].dropna(subset=["fid"])),
        )
    ]
    return tuple(table for table in tables if table is not None)


def _beside(metric: str, rows: pd.DataFrame, known: pd.DataFrame) -> Table | None:
    """Return the best row among the numbers of its data set; None if there are none."""
    keys = rows.apply(_key, axis=1, result_type="reduce") if len(rows) else pd.Series(dtype=object)
    theirs = list(zip(known["data"], known["image_size"], known["labels"], strict=True))
    rows = rows[keys.isin(theirs)]
    if rows.empty:
        return None
    best = rows.sort_values([metric, "run_id"]).iloc[0]
    same = known[[key == _key(best) for key in theirs]].sort_values("value")
    write = bits if metric == "bpd" else number
    lines = [
        (item["model"], item["family"], f"{item['value']:.2f}", item["protocol"], item["source"])
        for _, item in same.iterrows()
    ]
    ours = (
        best["name"],
        "this study",
        write(best[metric]),
        _protocol(metric, best),
        best["run_id"],
    )
    at = int((same["value"] < best[metric]).sum())
    labels = "with labels" if best["classes"] else "without labels"
    caption = f"{NAMES[metric]}, {Path(best['data']).name}, {labels}: published and this study"
    columns = ("model", "family", NAMES[metric], "measured on", "source")
    return Table(columns, (*lines[:at], ours, *lines[at:]), caption)


def _key(row: pd.Series) -> tuple[str, int, str]:
    """Return the data of a run: the last part of its path, its size, and whether it has labels."""
    name = Path(str(row["data"])).name
    side = round((row["tokens"] / row["images"]) ** 0.5 * row["patch"])
    return name, side, "yes" if row["classes"] else "no"


def _protocol(metric: str, best: pd.Series) -> str:
    if metric == "bpd":
        return f"uniform dequantisation, {best['split']} split"
    return f"{best['n']:,.0f} samples, {best['n_reference']:,.0f} of {best['reference']}, " + (
        setting_in_words(best)
    )
