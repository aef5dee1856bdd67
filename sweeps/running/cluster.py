"""The Ray cluster that carries out runs: joining one, or starting one on this machine."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.hardware import cores
from sweeps.lease import not_visible
from sweeps.running.notice import draining
from tarflow import human
from tarflow.errors import UserError, interrupt
from tarflow.storage import Remote, home_folder, locate

CONNECT_SECONDS = 5.0  # time for the head of a cluster to answer, twice
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the frame that opens HTTP/2 (RFC 9113, section 3.4)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS
ANSWER_SECONDS = 15.0  # time for a machine to start a process
SIGHT_SECONDS = 60.0  # time for a machine to look at a folder, perhaps on an object store
JOINING_SECONDS = 300.0  # time for a machine of one's own to start Ray, after the head
GROWING_SECONDS = 1200.0  # time for a rented machine to start and install


@dataclass(frozen=True)
class Cluster:
    """Resources of the cluster that Ray joined or started."""

    cpus: int
    gpus: float
    nodes: int


@contextlib.contextmanager
def join(gpus: int = 0, say: Callable[[str], None] = print) -> Iterator[Cluster]:
    """Join the cluster of RAY_ADDRESS or of this machine's `ray start`, or start a local one.

    The machines that `ray up` starts at once are waited for, up to `JOINING_SECONDS`.

    Args:
        gpus: Number of GPUs that the plan counts on. A cluster that has fewer is asked to grow:
            its first GPU is waited for, and the others count as present, so that runs queue for
            them.
        say: Tells the user what is waited for.

    Raises:
        UserError: If RAY_ADDRESS names no cluster, or no GPU has joined after `GROWING_SECONDS`.
    """
    starts_ray = not ray.is_initialized()
    if starts_ray:
        address = _address()
        if address == "local":
            say(f"starting Ray on {cores()} cores")
        ray.init(
            address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
        )
        # At SIGTERM Ray's own handler prints a stack and cleans up nothing.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        if starts_ray and address != "local":
            _wait_for_machines(say)
        cluster = current()
        yield _wait_for_gpus(gpus, say) if gpus > cluster.gpus and cluster.cpus == 0 else cluster
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
        return None if noted and not asked and _answers(noted) else "local"
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


def current() -> Cluster:
    """Return what the cluster has now."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    return Cluster(cpus, gpus, len(living()))


def grown(cluster: Cluster) -> Cluster:
    """Return what a cluster has had, or has now if that is more."""
    now = current()
    return Cluster(
        max(cluster.cpus, now.cpus), max(cluster.gpus, now.gpus), max(cluster.nodes, now.nodes)
    )


def _wait_for_machines(say: Callable[[str], None]) -> None:
    """Wait for the machines that `ray up` starts at once; continue with those that have come."""
    expected = _machines_of_ray_up()
    if (count := len(living())) >= expected:
        return
    say(
        f"{count} of {expected} machines have joined; waiting for the others for at most "
        f"{human.seconds(JOINING_SECONDS)}"
    )
    if not _in_time(lambda: len(living()) >= expected, JOINING_SECONDS):
        say(
            f"continuing with {len(living())} of {expected} machines; runs will also use those "
            "that join later (see `ray status`)"
        )


def _machines_of_ray_up() -> int:
    """Return how many machines the cluster of this head starts with; 1 if `ray up` has no part."""
    path = home_folder() / "ray_bootstrap_config.yaml"  # which `ray up` leaves on the head
    config = yaml.safe_load(path.read_text()) if path.is_file() else {}
    kinds = config.get("available_node_types", {}).values()
    return 1 + sum(int(kind.get("min_workers", 0)) for kind in kinds)


def _wait_for_gpus(gpus: int, say: Callable[[str], None]) -> Cluster:
    """Ask a cluster whose head runs nothing for workers, and return what it will become."""
    longest = human.seconds(GROWING_SECONDS)
    with asked_for({"GPU": 1.0}, gpus):
        if current().gpus == 0:
            say(f"waiting for the first of {gpus} GPUs for at most {longest}")
        if not _in_time(lambda: current().gpus > 0, GROWING_SECONDS):
            raise UserError(f"no GPU has joined the cluster in {longest}: see `ray status` there")
    cluster = current()
    growth = max(1.0, gpus / cluster.gpus)
    return Cluster(int(cluster.cpus * growth), cluster.gpus * growth, cluster.nodes)


@contextlib.contextmanager
def asked_for(needs: Mapping[str, float], count: int) -> Iterator[None]:
    """Ask the cluster to grow for the duration of the block.

    Ray forgets placement groups when their driver ends, however it ends. Requests by
    `request_resources` would keep machines rented for ever.

    Args:
        needs: Resources of one worker, by Ray's names ("CPU", "GPU").
        count: Number of workers. Each is asked for alone, so that a cluster that cannot hold all
            of them grows as far as it can.
    """
    groups = [placement_group([dict(needs)]) for _ in range(count)]
    try:
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def _in_time(ready: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is ready; tell whether it came in time."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def check_shared(out: Path, cluster: Cluster) -> None:
    """Make sure that every machine of a cluster sees the folder of the study.

    A machine that does not answer within `SIGHT_SECONDS` is checked when a run starts there.

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
        for node, answer in answers_of(living(), sees, SIGHT_SECONDS, str(token)):
            host = node["NodeManagerHostname"]
            if isinstance(answer, RayTaskError):
                raise UserError(f"{host}: {answer.cause}")
            if answer is False:
                raise not_visible(out, host)
    finally:
        token.unlink(missing_ok=True)


def answers_of(
    nodes: Iterable[dict[str, Any]], task: Any, seconds: float, *arguments: Any
) -> list[tuple[dict[str, Any], Any]]:
    """Carry out a remote function on several machines.

    Args:
        nodes: What `ray.nodes` says of each of them.
        task: The remote function.
        seconds: Longest wait.
        arguments: Arguments of the function.

    Returns:
        The machines that answer in time, each with what the function returned, or the error.
    """
    sent = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        sent[task.options(scheduling_strategy=on_node).remote(*arguments)] = node
    answers = []
    for ready in ray.wait(list(sent), num_returns=len(sent), timeout=seconds)[0]:
        try:
            answers.append((sent[ready], ray.get(ready)))
        except RayError as error:
            answers.append((sent[ready], error))
    return answers


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


def machines() -> dict[str, dict[str, float]]:
    """Return what each machine that stays has, by node id and Ray's names ("CPU", "GPU")."""
    leaving = draining()
    return {
        node["NodeID"]: node["Resources"] for node in living() if node["NodeID"] not in leaving
    }


def unused() -> dict[str, dict[str, float]]:
    """Return what no process has reserved of each machine, in the same form."""
    return available_resources_per_node()  # type: ignore[no-untyped-call, no-any-return]


def answering() -> set[str]:
    """Return the node ids of machines that stay and carry out a task.

    Ray takes a while to notice a lost one.
    """

    @ray.remote(num_cpus=0, max_retries=0)
    def ping() -> None:
        return None

    answers = answers_of(living(), ping, ANSWER_SECONDS)
    there = {node["NodeID"] for node, answer in answers if not isinstance(answer, RayError)}
    return there - draining()


def living() -> list[dict[str, Any]]:
    """Return what Ray says of the machines that it takes to be alive."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
