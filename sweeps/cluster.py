"""The Ray cluster that carries out runs: joining one, or starting one on this machine."""

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

CONNECT_SECONDS = 5.0  # time for the head of a cluster to answer, twice
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the frame that opens HTTP/2 (RFC 9113, section 3.4)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS
ANSWER_SECONDS = 15.0  # time for a machine to start a process
GROWING_SECONDS = 1200.0  # time for a rented machine to start and install


@dataclass(frozen=True)
class Cluster:
    """Resources of the cluster that Ray joined or started."""

    cpus: int
    gpus: float
    nodes: int


@contextlib.contextmanager
def join(gpus: int = 0) -> Iterator[Cluster]:
    """Join the cluster of RAY_ADDRESS or of this machine's `ray start`, or start a local one.

    Args:
        gpus: Number of GPUs that the plan counts on. A cluster that has fewer is asked to grow:
            its first GPU is waited for, and the others count as present, so that runs queue for
            them.

    Raises:
        UserError: If RAY_ADDRESS names no cluster, or no GPU has joined after `GROWING_SECONDS`.
    """
    starts_ray = not ray.is_initialized()
    if starts_ray:
        ray.init(
            _address(), include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
        )
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        cluster = _current()
        yield _wait_for_gpus(gpus) if gpus > cluster.gpus and cluster.cpus == 0 else cluster
    finally:
        if starts_ray:
            ray.shutdown()


def _address() -> str | None:
    """Return what `ray.init` takes; a cluster that is gone is not joined, as Ray waits minutes.

    Raises:
        UserError: If RAY_ADDRESS names a cluster that does not answer, or cannot be joined.
    """
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    noted = note.read_text().strip() if note.exists() else ""
    asked = os.environ.get("RAY_ADDRESS", "")
    if asked in ("", "local"):
        return "local" if asked or (noted and not _answers(noted)) else None
    if "://" in asked:
        raise UserError(
            f"RAY_ADDRESS is {asked}: write HOST:PORT of the cluster's head, and run this on one "
            "of its machines, as `ray submit` does"
        )
    if not _answers(noted if asked == "auto" else asked):
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={asked}: write HOST:PORT of a head that runs, "
            "or unset RAY_ADDRESS to use this machine"
        )
    return None


def _answers(address: str) -> bool:
    """Tell whether the head of a cluster may be at HOST:PORT: a server that speaks HTTP/2.

    Ray would wait minutes for an answer of any other server.
    """
    host, _, port = address.rpartition(":")
    try:
        target = host.strip("[]"), int(port)
        with socket.create_connection(target, CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return bool(host)  # it would wait for a TLS handshake
            connection.sendall(HELLO)
            answer = connection.recv(len(EMPTY_SETTINGS))
    except (OSError, ValueError, OverflowError):
        return False
    return bool(host) and answer[3:4] == EMPTY_SETTINGS[3:4]  # the type of its first frame


def _current() -> Cluster:
    """Return what the cluster has now."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    return Cluster(cpus, gpus, len(_nodes()))


def _wait_for_gpus(gpus: int) -> Cluster:
    """Ask a cluster whose head runs nothing for workers, and return what it will become."""
    request_resources(bundles=[{"GPU": 1}] * gpus)
    end = time.monotonic() + GROWING_SECONDS
    while (cluster := _current()).gpus == 0:
        if time.monotonic() > end:
            raise UserError(
                f"no GPU has joined the cluster in {GROWING_SECONDS / 60:.0f} minutes: see "
                "`ray status` there"
            )
        time.sleep(1)
    growth = max(1.0, gpus / cluster.gpus)
    return Cluster(int(cluster.cpus * growth), cluster.gpus * growth, cluster.nodes)


def check_shared(out: Path, cluster: Cluster) -> None:
    """Make sure that every machine of a cluster sees the folder of the study.

    Raises:
        UserError: If a machine does not, naming it.
    """
    if cluster.nodes < 2 and not isinstance(out, Remote):
        return
    token = out / f".token-{uuid.uuid4().hex}"
    token.touch()

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        return locate(path).exists()

    try:
        for node in _nodes():
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            if not ray.get(sees.options(scheduling_strategy=on_node).remote(str(token))):
                raise UserError(
                    f"{out} is not visible on {node['NodeManagerHostname']}; choose an --out on a "
                    "disk that all machines share, or on an object store such as s3://bucket/study"
                )
    finally:
        token.unlink(missing_ok=True)


def slots(needs: Mapping[str, float], cluster: Cluster) -> int:
    """Return how many single-worker runs the cluster carries out at a time.

    Args:
        needs: Resources of one run: "cpu", and "gpu" if it needs one.
        cluster: The cluster.

    Raises:
        UserError: If not even one run fits.
    """
    count = int(cluster.cpus // needs["cpu"])
    if "gpu" in needs:
        count = min(count, int(cluster.gpus / needs["gpu"]))
    if count < 1:
        raise UserError(
            f"a run needs {needs['cpu']:g} CPUs, the cluster has {cluster.cpus}: "
            "lower base.execution.threads"
        )
    return count


def workers_that_fit(needs: Mapping[str, float]) -> int:
    """Return how many workers fit on the machines that answer.

    Args:
        needs: Resources of one worker, by Ray's names ("CPU", "GPU").
    """
    return sum(
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in needs.items())
        for node in _answering()
    )


def _answering() -> list[dict[str, Any]]:
    """Return the machines that carry out a task: Ray takes a while to notice a lost one."""

    @ray.remote(num_cpus=0, max_retries=0)
    def ping() -> None:
        return None

    pings = {}
    for node in _nodes():
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        pings[ping.options(scheduling_strategy=on_node).remote()] = node
    answers, _ = ray.wait(list(pings), num_returns=len(pings), timeout=ANSWER_SECONDS)
    nodes = []
    for answer in answers:
        with contextlib.suppress(RayError):
            ray.get(answer)
            nodes.append(pings[answer])
    return nodes


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
