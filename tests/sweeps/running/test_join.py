import contextlib
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import ray
from ray.cluster_utils import Cluster
from small_studies import wee, write_study

from sweeps import scaling
from sweeps.running import cluster as clusters
from sweeps.watching.progress import Progress
from tarflow.errors import UserError


@pytest.fixture
def head():
    """A cluster whose head only drives, as in cluster/gpu.yaml."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@contextlib.contextmanager
def server(reply):
    """Answer whoever connects with some bytes; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = []

        def serve():
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    connections.append(listener.accept()[0])
                    connections[-1].sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.ray
def test_workers_that_are_still_to_come_are_waited_for_and_counted(head, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # Ray would not believe in its GPU
    monkeypatch.setattr(clusters, "GROWING_SECONDS", 1.0)
    with pytest.raises(UserError, match="no GPU has joined"), clusters.join(4):
        pass
    monkeypatch.setattr(clusters, "GROWING_SECONDS", 60.0)
    start = "start", f"--address={head.address}", "--num-cpus=2", "--num-gpus=1", "--block"
    late = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with clusters.join(4) as where:
            assert (where.cpus, where.gpus) == (8, 4.0)
    finally:
        late.terminate()
        late.wait()


@pytest.mark.ray
def test_the_machines_of_ray_up_are_waited_for_but_not_for_ever(tmp_path, monkeypatch):
    kinds = "{head: {}, worker: {min_workers: 1, max_workers: 4}}"
    (tmp_path / "ray_bootstrap_config.yaml").write_text(f"available_node_types: {kinds}\n")
    monkeypatch.setattr(clusters, "home_folder", lambda: tmp_path)
    monkeypatch.setattr(clusters, "JOINING_SECONDS", 1.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        for nodes, expected in ((1, 2), (2, 0)):
            said = []
            with clusters.join(say=said.append) as joined:
                assert joined.nodes == nodes
            assert len(said) == expected
            assert all("1 of 2 machines" in line for line in said)
            if nodes == 1:
                assert said[0].endswith("waiting for the others for at most 1 s")
                cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_machines_that_join_during_a_study_are_used(head, tmp_path, monkeypatch, capsys):
    head.add_node(num_cpus=1)
    study = replace(wee("grows"), budgets=(1.2e10,), held_out=None, replicated=None)
    study = replace(study, sizes=study.sizes[:1], seeds=4)  # long ones: a process takes seconds
    added, running = [], []
    start, end = Progress.start, Progress.end

    def count(progress, task):
        start(progress, task)
        running.append(len(progress.running))

    def add_one(progress, *arguments):
        end(progress, *arguments)
        if not added:
            added.append(head.add_node(num_cpus=1))

    monkeypatch.setattr(Progress, "start", count)
    monkeypatch.setattr(Progress, "end", add_one)
    path = write_study(tmp_path, study)
    assert scaling.scale(scaling.Options(study=str(path), out=tmp_path / "out")) == 0
    assert max(running) == 2
    assert "3 machines by now: 2 runs at a time" in capsys.readouterr().out


def test_a_dead_cluster_is_not_waited_for(tmp_path, monkeypatch):
    """`ray start` leaves a note of its address, which outlives it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert clusters._address() == "local"
    (tmp_path / "ray").mkdir()
    with server(clusters.EMPTY_SETTINGS) as port:
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        assert clusters._address() is None
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        assert clusters._address() is None
        monkeypatch.setenv("RAY_ADDRESS", f"localhost:{port}")
        assert clusters._address() is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert clusters._address() == "local"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("silent", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:"),
        ("web", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:"),
        ("127.0.0.1:9", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9"),
        ("192.0.2.1:6379", "no Ray cluster answers at RAY_ADDRESS=192.0.2.1:6379"),
        ("nonsense", "no Ray cluster answers at RAY_ADDRESS=nonsense"),
        ("host:99999", "no Ray cluster answers at RAY_ADDRESS=host:99999"),
        ("127.0.0.1:port", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:port"),
        ("auto", "no Ray cluster answers at RAY_ADDRESS=auto"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS is ray://127.0.0.1:10001: write HOST:PORT"),
        ("http://127.0.0.1:8265", "RAY_ADDRESS is http://127.0.0.1:8265: write HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_one_line_in_seconds(
    monkeypatch, tmp_path, address, words
):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray would wait for minutes"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 1.0)
    replies = {"silent": b"", "web": b"HTTP/1.1 400 Bad Request\r\n\r\n"}
    started = time.monotonic()
    with server(replies.get(address, b"")) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}" if address in replies else address)
        with pytest.raises(UserError) as caught, clusters.join():
            pass
    assert time.monotonic() - started < 15
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
