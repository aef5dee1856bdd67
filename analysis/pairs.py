"""Compare two studies run by run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.study import read_study
from tarflow.errors import UserError
from tarflow.record import read_table


@dataclass(frozen=True)
class Pair:
    """The same run in two studies."""

    label: str
    seed: int
    bpd_a: float
    bpd_b: float
    error: float  # standard error of the paired difference over images; nan without them

    @property
    def difference(self) -> float:
        """Bits per dimension of b minus those of a."""
        return self.bpd_b - self.bpd_a


def paired(a: Path, b: Path) -> list[Pair]:
    """Return the finished runs that two studies share by data, label and seed.

    Raises:
        UserError: If a folder holds no study, or none of their runs can be paired.
    """
    keys = ["data_hash", "split", "label", "seed"]
    first, second = (read_study(study)[0].query("status == 'done'") for study in (a, b))
    both = first.merge(second, on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise UserError(f"{a} and {b} share no finished run with the same data, label and seed")
    return [
        Pair(
            label=row["label"],
            seed=int(row["seed"]),
            bpd_a=row["bpd_a"],
            bpd_b=row["bpd_b"],
            error=_paired_error(a / "runs" / row["run_id_a"], b / "runs" / row["run_id_b"]),
        )
        for _, row in both.sort_values(["label", "seed"]).iterrows()
    ]


def _paired_error(a: Path, b: Path) -> float:
    """Return the standard error over images of the mean difference of two runs' BPD."""
    paths = [folder / "images.parquet" for folder in (a, b)]
    if not all(path.exists() for path in paths):
        return float("nan")
    first, second = (read_table(path).to_pandas().set_index("index")["bpd"] for path in paths)
    difference = (second - first).dropna()
    if len(difference) < 2:
        return float("nan")
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))
