"""Measure the overhead of a sweep: seconds between one small run and the next.

Run it on an idle machine: python benchmarks/sweep_overhead.py
The bar is a median under 0.3 s. The exit code is 1 if it is missed.

A run writes config.yaml when it begins and result.json when it ends. A free slot takes the next
run, so the gap after the k-th end lasts until run number k + slots begins.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sweeps.design.presets import load
from sweeps.design.study import PlannedRun, grid, resolve_study
from sweeps.lease import lease
from sweeps.running.batch import BatchContext
from sweeps.running.cluster import join
from sweeps.running.runner import run_all
from sweeps.watching.live import LivePage
from tarflow.config import EvaluationConfig

RUNS = 24
BAR = 0.3  # seconds


def small_runs() -> list[PlannedRun]:
    """Return runs that take a fraction of a second each."""
    study = load("tiny")
    base = replace(study.base, evaluation=EvaluationConfig(decoder_images=64, samples=0))
    study = replace(study, base=base, budgets=(4e8,), sizes=study.sizes[:1], held_out=None)
    return grid(resolve_study(replace(study, replicated=None, seeds=RUNS)))


def main() -> int:
    """Run the sweep and print the gaps between its runs."""
    runs = small_runs()
    with tempfile.TemporaryDirectory() as folder, lease(out := Path(folder)) as study_lease:
        start = time.time()
        with join() as cluster:
            begun = time.time()
            expected = {run.run_id: 1.0 for run in runs}
            context = BatchContext(out, cluster, study_lease, Console(quiet=True), LivePage(out))
            outcome = run_all(runs, expected, context)
            ended = time.time()
        begins = sorted(path.stat().st_mtime for path in out.glob("runs/*/config.yaml"))
        ends = sorted(path.stat().st_mtime for path in out.glob("runs/*/result.json"))
    if outcome.left or outcome.failed:
        print(f"{outcome.left} runs left, {len(outcome.failed)} failed: no measurement")
        return 1
    gaps = [begin - end for begin, end in zip(begins[cluster.cpus :], ends, strict=False)]
    median = statistics.median(gaps)
    ninth = statistics.quantiles(gaps, n=10)[-1]
    run_seconds = outcome.device_seconds / len(runs)
    print(f"{len(runs)} runs of {run_seconds:.2f} s on {cluster.cpus} cores")
    print(f"Ray is up after          {begun - start:6.2f} s")
    print(f"first run begins after   {begins[0] - begun:6.2f} s more (processes, imports)")
    print(f"between two runs, median {median:6.3f} s   bar {BAR} s; 90% below {ninth:.3f} s")
    print(f"after the last run       {ended - ends[-1]:6.2f} s")
    return int(median > BAR)


if __name__ == "__main__":
    sys.exit(main())
