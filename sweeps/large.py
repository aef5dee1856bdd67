"""Runs of several workers, one after another, each a Ray Train job.

A run resumes from its own checkpoints, so Ray Train only carries out one attempt. When it fails,
the driver starts the next one on the machines that answer. Survivors see only a broken connection,
so a lost worker looks like a failed run.
"""

import re
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.batch import RETRIES, BatchContext, StopConditions, cause_of, record_death
from sweeps.cluster import GROWING_SECONDS, Cluster, asked_for, workers_that_fit
from sweeps.notice import heeding_notices
from sweeps.study import PlannedRun
from sweeps.trainable import Report, execute
from tarflow import human
from tarflow.distributed import connect_through
from tarflow.errors import UserError
from tarflow.record import read_result
from tarflow.train.preemption import defer_sigterm

SOURCE = re.compile(r"^\[\S*:\d+\] ")  # where in PyTorch's code an error was raised


class WorkerBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Connects the workers through Ray's network, and defers SIGTERM: they save together.

    Workers that cannot be connected end here. Ray Train would leave them and the room reserved for
    them to the end of the driver, so that the next attempt would wait for that room for ever.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the workers, each in its main thread."""
        try:
            worker_group.execute(use_network_of_ray)
            super().on_start(worker_group, backend_config)
            worker_group.execute(defer_sigterm)
        except Exception:
            worker_group.abort()
            raise


def use_network_of_ray() -> None:
    """Connect this worker through the interface that carries its machine's address in Ray."""
    connect_through(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class WorkerConfig(TorchConfig):
    """A process group whose workers find each other, and defer SIGTERM."""

    @property
    def backend_cls(self) -> type[WorkerBackend]:
        """The class that sets it up."""
        return WorkerBackend


class Mailbox:
    """Holds the last report of a job until the driver fetches it."""

    def __init__(self) -> None:
        self.latest: dict[str, Any] = {}

    def put(self, latest: dict[str, Any]) -> None:
        """Replace the report."""
        self.latest = latest

    def get(self) -> dict[str, Any]:
        """Return the report."""
        return self.latest


def run_large(run: PlannedRun, context: BatchContext, stop: StopConditions) -> None:
    """Carry out one run of several workers, unless there is a reason to stop.

    Args:
        run: Run whose `execution.workers` is the number of workers. After losing machines it
            continues with no fewer than `execution.min_workers`; 0 waits for all.
        context: What all batches of the command share.
        stop: Stop conditions of the batch.
    """
    on_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
    mailbox = mailbox.options(scheduling_strategy=on_driver).remote()
    progress, deaths, reached = stop.progress, 0, -1
    while workers := _wait_for_workers(run, context.cluster, stop):
        progress.start(run)
        error = _attempt(run, workers, context, stop, mailbox)
        if error is None:
            if result := read_result(context.out / "runs" / run.run_id):
                progress.end(run, result["run"])
            return
        images = ray.get(mailbox.get.remote()).get("images", 0)
        deaths, reached = (0 if images > reached else deaths) + 1, images
        cause = cause_of(error)
        if isinstance(cause, UserError):
            record_death(run, context.out, error, progress)
            return
        if progress.interrupted(run, cause, context.out, workers).kind == "preemption":
            deaths = 0
            continue
        if deaths > RETRIES:
            record_death(run, context.out, error, progress)
            return
        reason = textwrap.shorten(
            SOURCE.sub("", str(cause).partition("\n")[0]), 100, placeholder=" …"
        )
        what = "did not start" if isinstance(error, ControllerError) else "lost a worker"
        progress.note(f"{run.label} {what} ({reason}); resuming from its last checkpoint")


def _wait_for_workers(run: PlannedRun, cluster: Cluster, stop: StopConditions) -> int:
    """Wait for enough workers and return how many; 0 if there is a reason to stop.

    Workers that do not come within `GROWING_SECONDS` are a reason to stop.
    """
    execution = run.config.execution
    needs = {"CPU": float(execution.threads)}
    if cluster.gpus and execution.device != "cpu":
        needs["GPU"] = 1.0
    if stop.stop_all():
        return 0
    room = workers_that_fit(needs)
    if count := _enough(run, room):
        return count
    wanted, longest = execution.workers, human.seconds(GROWING_SECONDS)
    stop.progress.note(
        f"{run.label} waits for {wanted} workers for at most {longest}, there is room for {room}"
    )
    end = time.monotonic() + GROWING_SECONDS
    with asked_for(needs, wanted):
        while not stop.stop_all():
            room = workers_that_fit(needs)
            if count := _enough(run, room):
                return count
            if time.monotonic() > end:
                stop.reason = (
                    f"{run.label} waited {longest} for {wanted} workers, there is room for {room}"
                )
            time.sleep(1)
    return 0


def _enough(run: PlannedRun, room: int) -> int:
    """Return how many workers to start where there is room for so many; 0 if it is too few."""
    execution = run.config.execution
    if room >= execution.workers:
        return execution.workers
    count = next((count for count in range(room, 0, -1) if run.config.batch % count == 0), 0)
    return count if count >= execution.min_workers > 0 else 0


def _attempt(
    run: PlannedRun, workers: int, context: BatchContext, stop: StopConditions, mailbox: Any
) -> Exception | None:
    """Carry out a run until it ends, fails or loses a worker; return what went wrong."""
    failures: list[Exception] = []

    def report(latest: dict[str, Any]) -> None:
        mailbox.put.remote(latest)

    def job() -> None:  # not in the main thread, where Ray Train would take Ctrl-C for itself
        try:
            train_on_workers(run, workers, context, report)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    while thread.is_alive() and not stop.stop_all():
        thread.join(0.5)
        if latest := ray.get(mailbox.get.remote()):
            stop.progress.report(run, latest)
    return failures[0] if failures else None


def train_on_workers(run: PlannedRun, workers: int, context: BatchContext, report: Report) -> None:
    """Carry out a run as a Ray Train job and wait for its end.

    Args:
        run: The run.
        workers: Number of data-parallel processes.
        context: What all batches of the command share.
        report: Receives progress of the first worker; is sent to the workers.
    """
    execution = run.config.execution
    use_gpu = bool(context.cluster.gpus) and execution.device != "cpu"
    run = replace(run, config=replace(run.config, execution=replace(execution, workers=workers)))
    out, home = str(context.out), str(Path.cwd())

    def loop() -> None:
        with heeding_notices():
            execute(run, out, home, report)

    once = FailureConfig(controller_failure_limit=0, max_preemption_failures=0)  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory(prefix="tarflow-", ignore_cleanup_errors=True) as scratch:
        TorchTrainer(
            loop,
            torch_config=WorkerConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": execution.threads, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=RunConfig(name=run.run_id, storage_path=scratch, failure_config=once),
        ).fit()
