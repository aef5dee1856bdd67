"""Measure the driver of a large study: plan, status, tables and queue of runs that never train.

Run it on an idle machine: OMP_NUM_THREADS=1 python benchmarks/driver.py
Half of 10,000 planned runs have ended. Bars: plan and status in 2 s each, the tables rebuilt from
10,000 folders in 20 s, a millisecond to hand out a run, less than 1 GiB of memory. `--trials N`
also sends N runs that do nothing through Ray, and shows by how much its processes have grown.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from sweeps.design.presets import load
from sweeps.design.study import PlannedRun, Size, grid, resolve_study
from sweeps.pricing.plan import make_plan
from sweeps.pricing.words import table
from sweeps.running.batch import BatchContext, ScoringCallback, StopConditions, run_trials
from sweeps.running.runner import RunQueue
from sweeps.watching.progress import Progress
from sweeps.watching.watch import so_far
from tarflow import cost
from tarflow.config_files import to_dict
from tarflow.record import gather, write_json

WIDTHS, BUDGETS, SEEDS = range(8, 208, 8), 40, 10  # 10,000 runs
PLAN_SECONDS, QUEUE_SECONDS, TABLE_SECONDS, MEMORY = 2.0, 10.0, 20.0, 2**30  # bars


def large_study() -> Any:
    """Return a resolved study of 10,000 runs."""
    study = load("tiny")
    sizes = tuple(Size(channels=width, blocks=2, layers=1) for width in WIDTHS)
    budgets = tuple(1e12 * 1.1**step for step in range(BUDGETS))
    changes = {"held_out": None, "replicated": None, "branches": False, "seeds": SEEDS}
    return resolve_study(replace(study, sizes=sizes, budgets=budgets, **changes))


def end(run: PlannedRun, out: Path) -> dict[str, Any]:
    """Leave what a run leaves when it has ended, and return its row."""
    flops = cost.run_flops(run.config)
    row = {
        "run_id": run.run_id, "label": run.label, "role": run.role, "status": "done",
        "config": json.dumps(to_dict(run.config)), "images": run.config.images, "flops": flops,
        "flops_marginal": flops, "bpd": 2.0, "loss": 1.0, "wall_seconds": 61.0,
        "train_seconds": 60.0, "evaluate_seconds": 1.0, "device_seconds": 61.0,
    }  # fmt: skip
    folder = out / "runs" / run.run_id
    folder.mkdir(parents=True)
    write_json(folder / "result.json", {"run": row, "evaluations": []})
    return row


def timed(what: str, work: Callable[[], Any], bar: float) -> bool:
    """Time a piece of work, print it, and tell whether it met its bar."""
    start, before = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - start, time.process_time() - before
    print(f"{what:<34} {seconds:6.2f} s ({processor:.2f} of CPU; bar {bar:g})", flush=True)
    return processor <= bar


def main() -> int:
    """Print the measurements; return 1 if a bar is missed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=0, help="also through Ray")
    trials = options.parse_args().trials
    study, runs = (study := large_study()), grid(study)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for run in runs[: len(runs) // 2]:
            end(run, out)
        kept: dict[str, Any] = {}
        met = [
            timed("plan", lambda: kept.update(plan=make_plan(study, out)), PLAN_SECONDS),
            timed("table of the plan", lambda: table(kept["plan"]), PLAN_SECONDS),
            timed("status", lambda: so_far(out), PLAN_SECONDS),
            timed("queue", lambda: walk(runs, out), QUEUE_SECONDS),
        ]
        for run in runs[len(runs) // 2 :]:
            end(run, out)
        met.append(timed("tables of 10,000 folders", lambda: gather(out), TABLE_SECONDS))
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{memory / 2**20:.0f} MiB of memory at most (bar {MEMORY / 2**20:.0f})")
    if trials:
        through_ray(runs[:trials])
    return 0 if all(met) and memory <= MEMORY else 1


def batch_of(runs: list[PlannedRun], out: Path, slots: int) -> StopConditions:
    """Return the stop conditions of a batch of runs, with its progress."""
    progress = Progress(len(runs), {run.run_id: 1.0 for run in runs}, slots, Console(quiet=True))
    lease: Any = SimpleNamespace(lost=False)
    context = BatchContext(out, None, lease, Console(quiet=True), None)  # type: ignore[arg-type]
    return StopConditions(progress, context, 1.0)


def walk(runs: list[PlannedRun], out: Path) -> None:
    """Hand out all runs and end each at once, with a look at the progress a hundred times."""
    stop = batch_of(runs, out, 64)
    queue = RunQueue(runs, stop)
    for number, run in enumerate(runs):
        assert queue.suggest(run.run_id)
        stop.progress.start(run)
        stop.progress.end(run, {"status": "done", "bpd": 2.0, "wall_seconds": 1.0})
        queue.on_trial_complete(run.run_id)
        if number % 100 == 0:
            stop.progress.counts()


def nothing(_config: dict[str, Any]) -> dict[str, Any]:
    """Stand in for a run."""
    return {"status": "done", "bpd": 2.0, "wall_seconds": 0.0}


def through_ray(runs: list[PlannedRun]) -> None:
    """Send runs that do nothing through Ray, and print by how much the head has grown."""
    from sweeps.running.cluster import join  # starts Ray

    with tempfile.TemporaryDirectory() as folder, join() as cluster:
        stop = batch_of(runs, Path(folder), cluster.cpus)
        callback = ScoringCallback(
            lambda config: runs[config["index"]], stop.context.out, stop.progress
        )
        before, start = resident(), time.perf_counter()
        run_trials(nothing, {"cpu": 1}, stop, callback, RunQueue(runs, stop), len(runs))
        seconds, after = time.perf_counter() - start, resident()
        ended = len(stop.progress.rows)
    print(f"{ended} runs through Ray: {seconds:.0f} s, {1000 * seconds / ended:.0f} ms each")
    for name in sorted(after.keys() & before.keys()):
        print(f"  {name}: {before[name] / 2**20:.0f} to {after[name] / 2**20:.0f} MiB")


def resident() -> dict[str, int]:
    """Return the resident memory of the driver and of Ray's processes for the whole cluster."""
    sizes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
            pages = int((folder / "statm").read_text().split()[1])
        except OSError:
            continue
        name = Path(line).name
        if int(folder.name) == os.getpid():
            name = "driver"
        if name in ("driver", "gcs_server", "raylet"):
            sizes[name] = sizes.get(name, 0) + pages * resource.getpagesize()
    return sizes


if __name__ == "__main__":
    sys.exit(main())
