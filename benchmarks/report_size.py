"""Measure the report of planted studies: seconds to build, megabytes, seconds until it answers.

Run with OMP_NUM_THREADS=1: `python benchmarks/report_size.py`; `--check` fails if a bar is missed.
Each study is a grid of sizes, budgets and seeds on a planted law, each run with a curve of 100
points, the values of 500 images and samples. Bars: 10,000 runs in 30 s and 25 MB; 200 runs in
5 MB; a usual page answers within 1 s in headless Chromium. Planting the large study takes minutes.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fit_speed import study_of
from PIL import Image

from tarflow.record import CURVE, IMAGES

POINTS, SCORED = 100, 500  # of each curve; images with a value
STUDIES = {  # widths, budgets, seeds; a little more than is needed, as some runs are too short
    20: (5, 5, 1),
    200: (10, 11, 2),
    10_000: (25, 20, 25),
}
SECONDS, LARGE_MB, USUAL_MB, READY = 30.0, 25.0, 5.0, 1.0  # bars
NOTE_READY = """new MutationObserver((_, observer) => {
  if (!document.documentElement?.dataset.ready) return;
  window.readyAt = performance.now();
  observer.disconnect();
}).observe(document, { attributes: true, subtree: true });"""  # milliseconds since navigation


def plant(folder: Path, runs: int) -> None:
    """Write a study of this many runs."""
    widths, budgets, seeds = STUDIES[runs]
    table = study_of(
        [16 * (number + 1) for number in range(widths)],
        np.geomspace(4e10, 4e13, budgets),
        seeds,
    ).head(runs)
    rng = np.random.default_rng(0)
    images, pictures = folder / "images.parquet", folder / "samples.png"
    folder.mkdir(parents=True)
    values = {"index": range(SCORED), "label": [0] * SCORED}
    values |= {name: rng.gamma(9, 0.18, SCORED) for name in ("bpd", "loss")}
    pq.write_table(pa.table(values, schema=IMAGES), images)
    Image.fromarray(rng.integers(0, 255, (112, 112), dtype=np.uint8)).save(pictures)
    for row in table.to_dict("records"):
        home = folder / "runs" / str(row["run_id"])
        home.mkdir(parents=True)
        pq.write_table(curve(row, rng), home / "curve.parquet")
        os.link(images, home / "images.parquet")
        os.link(pictures, home / "samples.png")
        result = {"run": finished(row), "evaluations": [evaluation(row, rng)]}
        (home / "result.json").write_text(json.dumps(result))
    images.unlink()
    pictures.unlink()


def finished(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a run with the columns that are the same for all."""
    config = json.loads(row["config"])
    seconds = row["flops"] / 2e10
    return row | {
        "images": config["images"], "batch": config["batch"], "flops_marginal": row["flops"],
        "wall_seconds": seconds + 3, "train_seconds": seconds, "evaluate_seconds": 3.0,
        "device_seconds": seconds + 3, "mfu": 0.6, "loss": row["bpd"] - 0.7, "split": "validation",
        "precision": "float32", "versions": json.dumps({"python": "3"}), "git": "0123456789ab",
        "host": "laptop", "data": "digits", "started": "2026-01-02T03:04:05Z",
    }  # fmt: skip


def curve(row: dict[str, Any], rng: np.random.Generator) -> pa.Table:
    """Return the loss curve of a run."""
    share = np.geomspace(0.002, 1, POINTS)
    loss = row["bpd"] - 0.7 + 0.3 / share**0.3 + 0.004 * rng.standard_normal(POINTS)
    seen = np.maximum(1, share * row["tokens"] / 49).astype(int)
    columns = {
        "images": seen, "flops": share * row["flops"], "loss": loss, "lr": np.full(POINTS, 3e-3),
        "grad_norm": np.full(POINTS, 0.5), "seconds": share * row["flops"] / 2e10,
    }  # fmt: skip
    return pa.table(columns, schema=CURVE)


def evaluation(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the scores of a run's samples."""
    return {
        "run_id": row["run_id"], "guidance": 0.0, "part": "both", "annealed": True,
        "rule": "log-scale", "guided_blocks": "all", "temperature": 1.0, "denoise": 1.0,
        "solver": "sequential", "seed": 0, "half": "all", "n": 500, "n_reference": 500,
        "reference": "digits/validation", "feature_extractor": "classifier",
        "kid": 0.1 * row["bpd"] + 0.004 * rng.standard_normal(), "kid_se": 0.004,
        "seconds_per_image": 0.01,
    }  # fmt: skip


def build(folder: Path) -> dict[str, float]:
    """Write the report; return its seconds, processor seconds, megabytes and peak memory."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "analysis", "report", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = [used.ru_utime + used.ru_stime for used in (before, after)]
    return {
        "seconds": time.perf_counter() - begin,
        "processor": spent[1] - spent[0],
        "MB": (folder / "report.html").stat().st_size / 1e6,
        "memory": after.ru_maxrss / 1e3,  # of the largest child so far
    }


def ready(page: Path, tries: int = 3) -> float:
    """Return the seconds from opening a page until it answers, the best of some tries."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as session:
        browser = session.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        seconds = []
        for _ in range(tries):
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            tab.add_init_script(NOTE_READY)
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("html[data-drawn]", timeout=120_000)
            seconds.append(float(tab.evaluate("window.readyAt / 1000")))
            tab.close()
        browser.close()
    return min(seconds)


def main() -> int:
    """Print a line per study, and say which bars are missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--runs", type=int, nargs="*", choices=list(STUDIES), default=None)
    parser.add_argument("--folder", type=Path, help="keep the planted studies here")
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as scratch:
        for runs in options.runs or STUDIES:
            folder = (options.folder or Path(scratch)) / f"study-{runs}"
            if not folder.exists():
                plant(folder, runs)
            built = build(folder)
            answers = ready(folder / "report.html")
            print(
                f"{runs:6} runs  {built['seconds']:5.1f} s ({built['processor']:.1f} of CPU)  "
                f"{built['MB']:5.1f} MB  {built['memory']:5.0f} MB of memory  "
                f"{answers:.2f} s until it answers",
                flush=True,
            )
            bars = {"s of CPU": (built["processor"], SECONDS), "MB": (built["MB"], LARGE_MB)}
            if runs <= 200:
                bars = {"MB": (built["MB"], USUAL_MB), "s until it answers": (answers, READY)}
            missed += [
                f"{runs} runs: {value:.3g} {unit}, the bar is {bar:g}"
                for unit, (value, bar) in bars.items()
                if value > bar
            ]
    for line in missed:
        print(line)
    return int(bool(missed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
