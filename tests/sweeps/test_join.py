import contextlib
import socket
import subprocess
import sys
import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from sweeps import cluster as clusters
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


def test_a_dead_cluster_is_not_waited_for(tmp_path, monkeypatch):
    """`ray start` leaves a note of its address, which outlives it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert clusters._address() is None
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
