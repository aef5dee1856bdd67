"""The machines that runs are carried out on: joining a Ray cluster or starting a local one."""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tarflow.errors import UserError
from tarflow.storage import Remote, locate

CONNECT_SECONDS = 3.0  # for a cluster on this machine to answer
ANSWER_SECONDS = 15.0  # for a machine to start a process
GROWING_SECONDS = 1200.0  # for a rented machine to start and install


@dataclass(frozen=True)
class Cluster:
    """What Ray found or started."""

    cpus: int
    gpus: float
    nodes: int


@contextlib.contextmanager
def cluster(gpus: int = 0) -> Iterator[Cluster]:
    """Join the cluster of RAY_ADDRESS or of this machine's `ray start`, or start a local one.

    Args:
        gpus: that the plan counts on. A cluster that has fewer is asked to grow: its first GPU is
            waited for, and the rest are counted as there, so that runs queue for them.

    Raises:
        UserError: if no GPU has come after `GROWING_SECONDS`.
    """
    ours = not ray.is_initialized()
    if ours:
        address = "local" if _left_behind() else None
        ray.init(
            address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
        )
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield _grown(gpus) if gpus > _here().gpus and _here().cpus == 0 else _here()
    finally:
        if ours:
            ray.shutdown()


def _left_behind() -> bool:
    """Tell whether the cluster that `ray start` noted on this machine does not answer any more.

    Ray would wait for it for minutes; an address that the user gives is not second-guessed.
    """
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if os.environ.get("RAY_ADDRESS") or not note.exists():
        return False
    host, _, port = note.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return True
    return False


def _here() -> Cluster:
    """Return what the cluster has now."""
    found = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Cluster(int(found.get("CPU", 0)), float(found.get("GPU", 0)), len(_nodes()))


def _grown(gpus: int) -> Cluster:
    """Ask a cluster whose head only drives for its workers, and return what it will be."""
    request_resources(bundles=[{"GPU": 1}] * gpus)
    end = time.monotonic() + GROWING_SECONDS
    while (here := _here()).gpus == 0:
        if time.monotonic() > end:
            raise UserError(
                f"no GPU has joined the cluster in {GROWING_SECONDS / 60:.0f} minutes: see "
                "`ray status` there"
            )
        time.sleep(1)
    times = max(1.0, gpus / here.gpus)
    return Cluster(int(here.cpus * times), here.gpus * times, here.nodes)


def check_shared(out: Path, where: Cluster) -> None:
    """Make sure that all machines of a cluster see the folder of the study.

    Raises:
        UserError: naming a machine that does not.
    """
    if where.nodes < 2 and not isinstance(out, Remote):
        return
    token = out / f".token-{uuid.uuid4().hex}"
    token.touch()

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        return locate(path).exists()

    try:
        for node in _nodes():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(sees.options(scheduling_strategy=there).remote(str(token))):
                raise UserError(
                    f"{out} is not visible on {node['NodeManagerHostname']}; choose an --out on a "
                    "disk that all machines share, or on an object store such as s3://bucket/study"
                )
    finally:
        token.unlink(missing_ok=True)


def slots(needs: Mapping[str, float], where: Cluster) -> int:
    """Return how many small runs fit the cluster at a time.

    Raises:
        UserError: if not even one does.
    """
    count = int(where.cpus // needs["cpu"])
    if "gpu" in needs:
        count = min(count, int(where.gpus / needs["gpu"]))
    if count < 1:
        raise UserError(
            f"a run needs {needs['cpu']:g} CPUs, the cluster has {where.cpus}: "
            "lower base.execution.threads"
        )
    return count


def room(needs: Mapping[str, float]) -> int:
    """Return how many workers the machines that answer hold, each with these resources."""
    return sum(
        min(int(node["Resources"].get(name, 0) // each) for name, each in needs.items())
        for node in _answering()
    )


def _answering() -> list[dict[str, Any]]:
    """Return the machines that carry out a task: Ray takes a while to miss one that is gone."""

    @ray.remote(num_cpus=0, max_retries=0)
    def ping() -> None:
        return None

    asked = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[ping.options(scheduling_strategy=there).remote()] = node
    ended, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = []
    for answer in ended:
        with contextlib.suppress(RayError):
            ray.get(answer)
            found.append(asked[answer])
    return found


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
