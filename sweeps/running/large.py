"""A run of several workers as a Ray Train job, and what the driver knows of it.

A run resumes from its own checkpoints, so Ray Train only carries out one attempt. When it fails,
`gangs.py` starts the next one on the machines that answer. Survivors see only a broken
connection, so a lost worker looks like a failed run.
"""

import re
import tempfile
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig

from sweeps.design.study import PlannedRun
from sweeps.running.batch import BatchContext, cause_of
from sweeps.running.cluster import Cluster
from sweeps.running.controllers import Trainer
from sweeps.running.notice import heeding_notices
from sweeps.running.trainable import execute
from tarflow.distributed import connect_through
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


def enough(run: PlannedRun, room: int) -> int:
    """Return how many workers to start, given the room; 0 if it is too small.

    Args:
        run: The run.
        room: Number of its workers that fit on the cluster.
    """
    execution = run.config.execution
    if room >= execution.workers:
        return execution.workers
    count = next((count for count in range(room, 0, -1) if run.config.batch % count == 0), 0)
    return count if count >= execution.min_workers > 0 else 0


def needs_of_worker(run: PlannedRun, cluster: Cluster) -> dict[str, float]:
    """Return what a worker of a run occupies, by Ray's names ("CPU", "GPU")."""
    execution = run.config.execution
    on_gpu = bool(cluster.gpus) and execution.device != "cpu"
    return {"CPU": float(execution.threads), **({"GPU": 1.0} if on_gpu else {})}


def why(error: Exception) -> str:
    """Say in a few words why an attempt has failed."""
    what = "did not start" if isinstance(error, ControllerError) else "lost a worker"
    first = SOURCE.sub("", str(cause_of(error)).partition("\n")[0])
    return f"{what} ({textwrap.shorten(first, 100, placeholder=' …')})"


@dataclass(frozen=True)
class Processes:
    """Processes beside the driver that serve all jobs of a batch."""

    mailbox: Any  # see `start_mailbox`
    controllers: Any  # see `start_controllers`


def train_on_workers(
    run: PlannedRun, workers: int, context: BatchContext, processes: Processes
) -> None:
    """Carry out a run as a Ray Train job and wait for its end.

    Args:
        run: The run.
        workers: Number of data-parallel processes.
        context: What all batches of the command share.
        processes: Receive progress, and control the job.
    """
    execution = run.config.execution
    needs, mailbox = needs_of_worker(run, context.cluster), processes.mailbox
    run = replace(run, config=replace(run.config, execution=replace(execution, workers=workers)))
    out, home = str(context.out), str(Path.cwd())

    def report(latest: dict[str, Any]) -> None:
        mailbox.put.remote(run.run_id, latest)

    def loop() -> None:
        rank = get_context().get_world_rank()
        mailbox.place.remote(run.run_id, rank, ray.get_runtime_context().get_node_id())
        with heeding_notices():
            execute(run, out, home, report)

    once = FailureConfig(controller_failure_limit=0, max_preemption_failures=0)  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory(prefix="tarflow-", ignore_cleanup_errors=True) as scratch:
        Trainer(
            loop,
            controllers=processes.controllers,
            torch_config=WorkerConfig(backend="nccl" if "GPU" in needs else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu="GPU" in needs, resources_per_worker=needs
            ),
            run_config=RunConfig(name=run.run_id, storage_path=scratch, failure_config=once),
        ).fit()
