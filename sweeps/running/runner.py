"""Carry out what a plan lists on a Ray cluster: runs, and sampler settings of finished runs.

Only `runs/<run id>/result.json` decides whether a run is done; Ray's own state is thrown away.
Single-worker runs are Tune trials side by side, longest first, in processes that are reused; a
branch waits for its trunk's checkpoint. Runs of several workers are Ray Train jobs beside them,
largest first (`gangs.py`). A run whose process or machine dies resumes from its last
checkpoint.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray import tune

from sweeps.design.branches import remove_trunks, start_points, with_branch_points
from sweeps.design.sampling import SamplingTask
from sweeps.design.study import PlannedRun
from sweeps.running.batch import (
    BatchContext,
    Outcome,
    ProgressCallback,
    ScoringCallback,
    StopConditions,
    occupied,
    run_batch,
    run_trials,
)
from sweeps.running.cluster import Cluster, check_shared, slots
from sweeps.running.run_queue import RunQueue
from sweeps.running.trainable import (
    resources,
    sample_task,
    score_test_images,
    single_threaded,
    train_planned,
)
from sweeps.watching.live import publishing
from sweeps.watching.progress import Progress
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.record import read_result

if TYPE_CHECKING:
    from sweeps.running.gangs import Gangs


def run_all(
    runs: Sequence[PlannedRun], expected: Mapping[str, float], context: BatchContext
) -> Outcome:
    """Carry out the runs that are not done yet.

    Args:
        runs: Resolved runs; those that are done stay as they are.
        expected: Expected seconds of each run by run id; longest go first.
        context: What all batches of the command share.

    Raises:
        UserError: If a run asks for more than the cluster has, if a machine does not see the
            study's folder, or if a worker finds a mistake in the config.
    """
    out, cluster = context.out, context.cluster
    results = {run.run_id: read_result(out / "runs" / run.run_id) for run in runs}
    rows = [result["run"] for result in results.values() if result]
    done = [row for row in rows if row["status"] == "done"]
    done_ids = {row["run_id"] for row in done}
    todo = [single_threaded(run) for run in runs if run.run_id not in done_ids]
    todo.sort(key=lambda run: -expected[run.run_id])
    starts = start_points(todo, out)
    todo = with_branch_points(todo, starts)
    small = [run for run in todo if run.config.execution.workers == 1]
    large = [run for run in todo if run.config.execution.workers > 1]
    configs = [run.config for run in small or large]
    needs = resources(configs, context) if configs else {"cpu": 1.0}
    count = slots(needs, cluster)
    _check_workers(large, cluster)
    check_shared(out, cluster)
    seconds = {run.run_id: expected[run.run_id] for run in todo}
    on_gpus = cluster.gpus > 0 and any(run.config.execution.device != "cpu" for run in todo)
    devices = occupied(needs)
    widths = {run.run_id: _devices(run.config, on_gpus) / devices for run in large}
    progress = Progress(len(todo), seconds, count, context.console, done, widths=widths)
    stop = StopConditions(progress, context, devices)
    with progress, publishing(progress, context.page):
        queue = RunQueue(small, stop, starts)
        with _gangs(large, queue, needs, context, stop) as gangs:
            while queue.wait(lambda: gangs is not None and gangs.alive):
                run_trials(
                    tune.with_parameters(
                        train_planned, runs=small, out=str(out), home=str(Path.cwd())
                    ),
                    needs,
                    stop,
                    ProgressCallback(lambda config: small[config["index"]], out, progress),
                    queue,
                    len(queue.left),
                )
    ended = {name: row for name, row in progress.rows.items() if row["status"] == "done"}
    remove_trunks(runs, done_ids | ended.keys(), out)
    spent = devices * sum(progress.worked[name] * progress.width(name) for name in ended)
    missing = tuple(run.label for run in todo if run.run_id not in progress.rows)
    return stop.outcome(spent, on_gpus, missing)


def sample_all(samplings: Mapping[SamplingTask, float], context: BatchContext) -> Outcome:
    """Sample from finished runs with the settings that a study asks for.

    Args:
        samplings: Settings that are still missing, each with its expected seconds.
        context: What all batches of the command share.

    Raises:
        UserError: As `run_all`.
    """
    tasks = list(samplings)
    needs = resources([task.config for task in tasks], context)
    count = slots(needs, context.cluster)
    check_shared(context.out, context.cluster)
    expected = {task.run_id: seconds for task, seconds in samplings.items()}
    progress = Progress(len(tasks), expected, count, context.console, objective="kid")
    return run_batch(
        context,
        tune.with_parameters(sample_task, tasks=tasks, out=str(context.out), home=str(Path.cwd())),
        needs,
        progress,
        ScoringCallback(lambda config: tasks[config["index"]], context.out, progress),
        lambda stop: RunQueue(tasks, stop),
        len(tasks),
    )


def score_on_test(runs: Sequence[PlannedRun], context: BatchContext) -> Outcome:
    """Score the test images with finished runs.

    Args:
        runs: Finished runs.
        context: What all batches of the command share.

    Raises:
        UserError: As `run_all`.
    """
    tasks = [replace(run, label=f"{run.label} on test images") for run in runs]
    needs = resources([task.config for task in tasks], context)
    progress = Progress(len(tasks), {}, slots(needs, context.cluster), context.console)
    return run_batch(
        context,
        tune.with_parameters(
            score_test_images, runs=tasks, out=str(context.out), home=str(Path.cwd())
        ),
        needs,
        progress,
        ScoringCallback(lambda config: tasks[config["index"]], context.out, progress),
        lambda stop: RunQueue(tasks, stop),
        len(tasks),
    )


@contextlib.contextmanager
def _gangs(
    runs: Sequence[PlannedRun],
    queue: RunQueue,
    needs: Mapping[str, float],
    context: BatchContext,
    stop: StopConditions,
) -> Iterator["Gangs | None"]:
    """Carry out runs of several workers beside others; yield None if there are none."""
    if not runs:
        yield None
        return
    from sweeps.running.gangs import Gangs  # imports torch, which the driver rarely needs

    with Gangs(runs, queue, needs, context, stop) as gangs:
        stop.keeps_room = gangs.keeps_room
        yield gangs


def _check_workers(runs: Sequence[PlannedRun], cluster: Cluster) -> None:
    """Refuse a run that would wait for ever."""
    for run in runs:
        workers = run.config.execution.workers
        if workers * run.config.execution.threads > cluster.cpus:
            raise UserError(
                f"{run.label} asks for {workers} workers, the cluster has {cluster.cpus} CPUs: "
                "lower base.execution.workers, or join a larger cluster through RAY_ADDRESS"
            )


def _devices(config: RunConfig, on_gpus: bool) -> int:
    """Return the number of GPUs, or else of cores, that a run of several workers occupies."""
    execution = config.execution
    return execution.workers * (1 if on_gpus else execution.threads)
