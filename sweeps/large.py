"""Runs of several workers, one after another, each a Ray Train job.

A run resumes from its own checkpoints, so Ray Train only carries out one attempt. When it fails,
the driver starts the next one on the machines that answer. Survivors see only a broken connection,
so a lost worker looks like a failed run.
"""

import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.batch import RETRIES, BatchContext, StopConditions, cause_of, record_death
from sweeps.cluster import Cluster, workers_that_fit
from sweeps.study import PlannedRun
from sweeps.trainable import Report, execute
from tarflow.errors import UserError
from tarflow.record import read_result
from tarflow.train.preemption import defer_sigterm


class SigtermTorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Connects the workers, and defers SIGTERM in them: they save together before they end."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the workers, each in its main thread."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(defer_sigterm)


class SigtermTorchConfig(TorchConfig):
    """A process group whose workers defer SIGTERM."""

    @property
    def backend_cls(self) -> type[SigtermTorchBackend]:
        """The class that sets it up."""
        return SigtermTorchBackend


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
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=on_driver).remote()
    progress, deaths, reached = stop.progress, 0, -1
    progress.start(run)
    while workers := _wait_for_workers(run, context.cluster, stop):
        error = _attempt(run, workers, context, stop, mailbox)
        if error is None:
            if result := read_result(context.out / "runs" / run.run_id):
                progress.end(run, result["run"])
            return
        images = ray.get(mailbox.get.remote()).get("images", 0)
        deaths, reached = (0 if images > reached else deaths) + 1, images
        cause = cause_of(error)
        if isinstance(cause, UserError) or deaths > RETRIES:
            record_death(run, context.out, error, progress)
            return
        reason = str(cause).partition("\n")[0]
        progress.note(f"{run.label} lost a worker ({reason}); resuming from its last checkpoint")


def _wait_for_workers(run: PlannedRun, cluster: Cluster, stop: StopConditions) -> int:
    """Wait for enough workers and return how many; 0 if there is a reason to stop."""
    execution, batch = run.config.execution, run.config.batch
    needs = {"CPU": float(execution.threads)}
    if cluster.gpus and execution.device != "cpu":
        needs["GPU"] = 1.0
    announced = False
    while not stop.stop_all():
        room = min(execution.workers, workers_that_fit(needs))
        divisors = (count for count in range(room, 0, -1) if batch % count == 0)
        count = execution.workers if room == execution.workers else next(divisors, 0)
        if count == execution.workers or count >= execution.min_workers > 0:
            return count
        if not announced:
            stop.progress.note(
                f"{run.label} waits for {execution.workers} workers, there is room for {room}"
            )
        announced = True
        time.sleep(1)
    return 0


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
        execute(run, out, home, report)

    with tempfile.TemporaryDirectory(prefix="tarflow-", ignore_cleanup_errors=True) as scratch:
        TorchTrainer(
            loop,
            torch_config=SigtermTorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": execution.threads, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=RunConfig(name=run.run_id, storage_path=scratch),
        ).fit()
