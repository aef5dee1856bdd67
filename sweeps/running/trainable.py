"""What Ray carries out on any machine of a cluster: a run, or sampling from a finished one.

A run that fails leaves its row at once, since it would fail again. If its process dies, the driver
restarts the run, which resumes from its last checkpoint.
"""

import contextlib
import gc
import math
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.design.outcomes import is_pruned
from sweeps.design.sampling import SamplingTask
from sweeps.design.study import PlannedRun
from sweeps.failures import transient
from sweeps.lease import FILE, not_visible
from sweeps.pricing.sharing import runs_per_device
from sweeps.running.notice import heeding_notices
from tarflow import record
from tarflow.config import RunConfig
from tarflow.errors import StepOutOfMemory, UserError
from tarflow.storage import locate
from tarflow.train.checkpoint import remove_checkpoints
from tarflow.train.preemption import Preempted, catch_sigterm
from tarflow.train.trunk import trunk_of

if TYPE_CHECKING:
    from sweeps.running.batch import BatchContext
    from tarflow.train.state import TrainState

Report = Callable[[dict[str, Any]], None]
AfterStep = Callable[["TrainState"], None]
LOOK_SECONDS = 0.2  # between looks whether the process has to leave


def execute(
    run: PlannedRun,
    out: str,
    home: str,
    report: Report,
    rungs: Callable[[PlannedRun, Path], AfterStep] | None = None,
) -> dict[str, Any]:
    """Carry out one run in this process.

    Args:
        run: The run.
        out: Folder of the study.
        home: Working folder of the driver, which relative data paths refer to.
        report: Receives progress; see `tarflow.train.loop.train`.
        rungs: Makes, from the run and its folder, what compares a candidate at shares of its
            budget, called after each step; None if it is never compared.

    Returns:
        The row of the run; empty on all workers but the first.
    """
    from tarflow.evaluate.sample_quality import reference_quality
    from tarflow.run import run as train_and_score

    study = shared_folder(out)
    folder = study / "runs" / run.run_id
    trunk = trunk_of(run.config, run.trunk, run.branch_points, study) if run.trunk else None
    reference = study / "reference.json"  # scores of real images, once per study
    with workplace(home):
        try:
            row = train_and_score(
                run.config,
                folder,
                run.role,
                run.label,
                report,
                trunk,
                run.tags,
                after_step=rungs(run, folder) if rungs else None,
            )
        except SystemExit:  # stopped by the driver
            if is_pruned(folder):  # a checkpoint was perhaps being written at the decision
                remove_checkpoints(folder / "state")
            raise
        if row and run.config.evaluation.samples and not reference.exists():
            record.write_json(reference, reference_quality(run.config))
    return row


def shared_folder(out: str) -> Path:
    """Return the folder of a study, if it is the one that the driver holds.

    Machines may join a cluster after the driver has looked at all of them.

    Raises:
        UserError: If this machine does not see the driver's lease there.
    """
    study = locate(out)
    if not (study / FILE).exists():
        raise not_visible(study, socket.gethostname())
    return study


def execute_and_record(
    run: PlannedRun,
    out: str,
    home: str,
    report: Report,
    rungs: Callable[[PlannedRun, Path], AfterStep] | None = None,
) -> dict[str, Any]:
    """Carry out one single-worker run; a failure that would come again becomes its row.

    A run that runs out of memory is tried once more with half the micro-batch.

    Raises:
        UserError: For a user's mistake, which the other runs share.
        Preempted: If the process has to end.
        Exception: If the machine is to blame; another process may succeed.
    """
    from tarflow.run import record_failure

    try:
        try:
            return execute(run, out, home, report, rungs)
        except StepOutOfMemory as error:
            if error.micro_batch == 1:
                raise
            half = (error.micro_batch + 1) // 2
        gc.collect()  # what the failed attempt has left in memory
        return execute(with_micro_batch(run, half), out, home, report, rungs)
    except (UserError, Preempted):
        raise
    except Exception as error:
        if transient(f"{type(error).__name__}: {error}"):
            raise
        folder = locate(out) / "runs" / run.run_id
        return record_failure(run.config, folder, run.role, run.label, error, tags=run.tags)


def with_micro_batch(run: PlannedRun, images: int) -> PlannedRun:
    """Return a run that trains on this many images per pass, which changes only rounding."""
    execution = replace(run.config.execution, micro_batch=images)
    return replace(run, config=replace(run.config, execution=execution))


class Reporter:
    """Reports to Tune from a thread, since Tune never answers a process that is about to end."""

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[tuple[dict[str, Any], threading.Event] | None]
        self.reports = queue.SimpleQueue()
        self.stopped = False  # by Tune
        self.thread = threading.Thread(target=self._forward, daemon=True)
        self.thread.start()

    def _forward(self) -> None:
        from ray import tune

        try:
            while item := self.reports.get():
                tune.report(item[0])
                item[1].set()
        except SystemExit:  # how Tune stops a trial
            self.stopped = True

    def __call__(self, progress: dict[str, Any]) -> None:
        """Report without waiting."""
        self.reports.put((progress, threading.Event()))

    def ask(self, progress: dict[str, Any]) -> None:
        """Report, and wait until Tune has decided or the process has to leave.

        Raises:
            SystemExit: If Tune stops the trial.
        """
        answered = threading.Event()
        self.reports.put((progress, answered))
        with catch_sigterm() as stop_requested:
            while not answered.wait(LOOK_SECONDS) and not stop_requested.is_set():
                if self.stopped:
                    sys.exit(0)


@contextlib.contextmanager
def reporting() -> Iterator[Reporter]:
    """Yield a way to report to Tune; report this machine, and watch it."""
    import ray

    reporter = Reporter()
    reporter({"node": ray.get_runtime_context().get_node_id()})
    try:
        with heeding_notices():
            yield reporter
    finally:
        reporter.reports.put(None)
    reporter.thread.join()  # not after an error: if the process has to end, nobody answers


@contextlib.contextmanager
def workplace(home: str) -> Iterator[None]:
    """Work in the driver's folder, and leave a process that can be reused."""
    import torch

    if not gc.get_freeze_count():
        gc.freeze()  # keep what is imported by now: searching it would cost 0.2 s per run
    with contextlib.chdir(home if Path(home).is_dir() else os.curdir):
        yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_planned(
    config: Mapping[str, Any], runs: Sequence[PlannedRun], out: str, home: str
) -> None:
    """Carry out the run numbered `config["index"]`: a Tune function trainable."""
    from ray import tune

    run = runs[config["index"]]
    with reporting() as report:
        row = execute_and_record(run, out, home, report)
    tune.report({"run_id": run.run_id, "status": row["status"], "bpd": row.get("bpd")})


def sample_task(
    config: Mapping[str, Any], tasks: Sequence[SamplingTask], out: str, home: str
) -> None:
    """Draw and score the setting numbered `config["index"]`: a Tune function trainable."""
    from ray import tune

    row, *_ = sample(tasks[config["index"]], out, home)
    tune.report({"kid": math.nan if row["kid"] is None else row["kid"]})


def sample(task: SamplingTask, out: str, home: str) -> list[dict[str, Any]]:
    """Sample from a finished run in this process, and return the rows of its scores."""
    from tarflow.evaluate.checkpoint_scores import evaluate_setting

    with workplace(home):
        folder = shared_folder(out) / "runs" / task.model_id
        return evaluate_setting(folder, task.sampler, task.seed, task.parts)


def score_test_images(
    config: Mapping[str, Any], runs: Sequence[PlannedRun], out: str, home: str
) -> None:
    """Score the test images with the finished run numbered `config["index"]`: a Tune trainable."""
    from ray import tune

    from tarflow.evaluate.checkpoint_scores import score_on_test

    with workplace(home):
        scores = score_on_test(locate(out) / "runs" / runs[config["index"]].run_id)
    tune.report({"bpd": scores["bpd"]})


def single_threaded(run: PlannedRun) -> PlannedRun:
    """Give a run one thread unless it asks for more, so that small runs fit side by side."""
    execution = run.config.execution
    execution = replace(execution, threads=execution.threads or 1)
    return replace(run, config=replace(run.config, execution=execution))


def resources(configs: Sequence[RunConfig], context: "BatchContext") -> dict[str, float]:
    """Return the resources of one single-worker trial, enough for any of these runs.

    Args:
        configs: Configs of the runs.
        context: Knows the cluster, and what was measured on it.
    """
    threads, cluster = max(config.execution.threads or 1 for config in configs), context.cluster
    needs = {"cpu": float(threads)}
    if cluster.gpus and any(config.execution.device != "cpu" for config in configs):
        cores = cluster.cpus / cluster.gpus / threads  # with fewer, some GPUs would have none
        needs["gpu"] = 1 / runs_per_device(configs, context.sharing, cores)
    return needs
