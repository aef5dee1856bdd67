"""Runs of several workers, one after another, each a Ray Train job.

The run goes on from its own state, so Ray Train is only asked to carry out one attempt. When it
fails, the next one is begun here, on the machines that answer: workers that are left see no more
of a lost one than a broken connection, which cannot be told from a fault of the run.
"""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.failures import RETRIES, cause_of, end_failed
from sweeps.machines import Cluster, room
from sweeps.study import Planned
from sweeps.trainable import Report, carry_out
from sweeps.watch import Watch
from tarflow.errors import UserError
from tarflow.record import read_result
from tarflow.train.preemption import defer_sigterm


class TogetherBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Connects the workers, and lets them note SIGTERM: they save together before they end."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the workers, each in its main thread."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(defer_sigterm)


class Together(TorchConfig):
    """The process group, by `TogetherBackend`."""

    @property
    def backend_cls(self) -> type[TogetherBackend]:
        """What sets it up."""
        return TogetherBackend


class Mailbox:
    """Holds the last report of a job for the driver to fetch."""

    def __init__(self) -> None:
        """Begin empty."""
        self.latest: dict[str, Any] = {}

    def put(self, latest: dict[str, Any]) -> None:
        """Replace the report."""
        self.latest = latest

    def get(self) -> dict[str, Any]:
        """Return the report."""
        return self.latest


def run_large(run: Planned, out: Path, where: Cluster, storage: Path, watch: Watch) -> None:
    """Carry out one run of several workers, unless there is a reason to stop meanwhile.

    Args:
        run: `execution.workers` says on how many workers; `execution.min_workers`, if it is not
            0, on how few it goes on when machines are lost. Otherwise they are waited for.
        out: folder of the study.
        where: the cluster.
        storage: for Ray Train's own files, which nobody reads again.
        watch: of the batch.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
    deaths, reached = 0, -1
    watch.progress.start(run)
    while workers := _workers(run, where, watch):
        error = _attempt(
            run, workers, out, where, storage / f"{run.run_id}-{deaths}", watch, mailbox
        )
        if error is None:
            if result := read_result(out / "runs" / run.run_id):
                watch.progress.end(run, result["run"])
            return
        images = ray.get(mailbox.get.remote()).get("images", 0)
        deaths, reached = (0 if images > reached else deaths) + 1, images
        cause = cause_of(error)
        if isinstance(cause, UserError) or deaths > RETRIES:
            end_failed(run, out, error, watch)
            return
        said = str(cause).partition("\n")[0]
        watch.progress.note(f"{run.label} lost a worker ({said}); going on from the last state")


def _workers(run: Planned, where: Cluster, watch: Watch) -> int:
    """Wait for enough workers and return how many; 0 if there is a reason to stop."""
    execution, batch = run.config.execution, run.config.batch
    needs = {"CPU": float(execution.threads)}
    if where.gpus and execution.device != "cpu":
        needs["GPU"] = 1.0
    said = False
    while not watch.stop_all():
        there = min(execution.workers, room(needs))
        fits = (count for count in range(there, 0, -1) if batch % count == 0)
        count = execution.workers if there == execution.workers else next(fits, 0)
        if count == execution.workers or count >= execution.min_workers > 0:
            return count
        if not said:
            watch.progress.note(
                f"{run.label} waits for {execution.workers} workers, there is room for {there}"
            )
        said = True
        time.sleep(1)
    return 0


def _attempt(
    run: Planned,
    workers: int,
    out: Path,
    where: Cluster,
    storage: Path,
    watch: Watch,
    mailbox: Any,
) -> Exception | None:
    """Carry out a run until it ends, fails or loses a worker; return what went wrong."""
    failures: list[Exception] = []

    def report(latest: dict[str, Any]) -> None:
        mailbox.put.remote(latest)

    def job() -> None:  # not in the main thread, where Ray Train would take Ctrl-C for itself
        try:
            train(run, workers, str(out), str(Path.cwd()), storage, where.gpus, report)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    while thread.is_alive() and not watch.stop_all():
        thread.join(0.5)
        if latest := ray.get(mailbox.get.remote()):
            watch.progress.report(run, latest)
    return failures[0] if failures else None


def train(
    run: Planned, workers: int, out: str, home: str, storage: Path, gpus: float, report: Report
) -> None:
    """Carry out a run as a Ray Train job and wait for its end.

    Args:
        run: what to do.
        workers: data-parallel processes.
        out: folder of the study.
        home: working folder of the driver.
        storage: for Ray Train's own files.
        gpus: that the cluster has; with none the workers meet over gloo.
        report: gets progress of the first worker; is sent to the workers.
    """
    execution = run.config.execution
    use_gpu = bool(gpus) and execution.device != "cpu"
    run = replace(run, config=replace(run.config, execution=replace(execution, workers=workers)))

    def loop() -> None:
        carry_out(run, out, home, report)

    TorchTrainer(
        loop,
        torch_config=Together(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": execution.threads, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(name=storage.name, storage_path=os.fspath(storage.parent)),
    ).fit()
