"""Predict the most expensive fifth of real tables from the rest, by the average and by each form.

The tables are those of three public repositories (MIT and Apache-2.0), as CSV files in one folder:
`mlfoundations_overtrain.csv`, `olmo_ladder_final.csv` and `gemstones_width_depth.csv`, four, four
and two validation losses each, the first for each of its three training sets.

Printed for each table: the root-mean-square error of ln(loss) of the average, of its members alone
and of the best of them in hindsight; how many held-out rows lie in their 90% intervals, how wide
those are in ln(loss), and their interval score. Then geometric means, one vote for each table of
the same origin.

Run with OMP_NUM_THREADS=1: `python benchmarks/held_out.py FOLDER`; half a minute.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.laws.fit import fit
from analysis.laws.forms import SURFACE_FORMS, Form
from analysis.table.law import TableLaw, fit_table

SHARE = 0.8  # of the rows, the cheapest, that the law sees
OVERTRAIN = ("loss_openlm", "loss_c4_val", "loss_paloma_redpajama", "loss_paloma_ptb")
LADDER = ("c4_en", "pile", "dolma_stack", "wikitext_103")
EVERY = 5  # of the 35 checkpoints of a run of Gemstones, every fifth


def tables(folder: Path) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Return the origin, name and rows of every table."""
    runs = pd.read_csv(folder / "mlfoundations_overtrain.csv")
    for data, part in runs.groupby("train_dataset"):
        for loss in OVERTRAIN:
            yield f"overtrain {data}", loss, part[["params", "tokens"]].assign(loss=part[loss])
    runs = pd.read_csv(folder / "olmo_ladder_final.csv")
    for loss in LADDER:
        rows = runs[["params_non_embed", "tokens"]].assign(loss=runs[loss])
        yield "ladder", loss, rows.rename(columns={"params_non_embed": "params"})
    runs = pd.read_csv(folder / "gemstones_width_depth.csv")
    for name, part in runs.groupby("val_set"):
        every = part.groupby("run_name").cumcount() % EVERY == EVERY - 1
        rows = part[every][["params", "tokens", "loss", "run_name"]]
        yield "gemstones", str(name), rows.rename(columns={"run_name": "run"})


def judge(rows: pd.DataFrame) -> dict[str, float]:
    """Return the errors of the average and of each form, and how its intervals did."""
    compute = rows["params"].to_numpy(float) * rows["tokens"].to_numpy(float)
    seen = compute <= np.quantile(compute, SHARE)
    law = fit_table(rows[seen].reset_index(drop=True))
    at = {name: rows[name][~seen].to_numpy(float) for name in ("params", "tokens")}
    achieved = np.log(rows["loss"][~seen].to_numpy(float))
    low, high = (np.log(ends) for ends in law.law.band(**at))
    outside = np.maximum(low - achieved, 0) + np.maximum(achieved - high, 0)
    errors = {form.name: _alone(law, form, at, achieved) for form in SURFACE_FORMS}
    return {
        "average": _rms(np.log(law.law.predict(**at)) - achieved),
        **errors,
        "best": min(errors.values()),
        "inside": float(np.mean(outside == 0)),
        "width": float(np.mean(high - low)),
        "score": float(np.mean(high - low + 20 * outside)),
    }


def _alone(law: TableLaw, form: Form, at: dict[str, np.ndarray], achieved: np.ndarray) -> float:
    alone = fit(form, law.law.data, draws=0)
    return _rms(np.log(alone.predict(**at)) - achieved)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def main() -> None:
    """Print a line for each table, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the three tables")
    judged = []
    for origin, name, rows in tables(parser.parse_args().folder):
        judged.append({"origin": origin, "table": name, **judge(rows)})
        line = pd.DataFrame(judged[-1:]).round(4).to_string(index=False, header=len(judged) == 1)
        print(line, flush=True)
    table = pd.DataFrame(judged)
    errors = ["average", *(form.name for form in SURFACE_FORMS), "best"]
    means = np.exp(np.log(table.set_index("origin")[errors]).groupby(level=0).mean())
    print("\ngeometric means of the errors\n", means.round(4).to_string())
    overall = np.exp(np.log(means).mean())
    print("\nall", overall.round(4).to_dict())
    print(f"average over the best single form in hindsight: {overall.average / overall.best:.3f}")
    bands = table.groupby("origin")[["inside", "width", "score"]].mean()
    print("\nintervals\n", bands.round(3).to_string())
    print("\nall", bands.mean().round(3).to_dict(), "least", round(table["inside"].min(), 2))


if __name__ == "__main__":
    main()
