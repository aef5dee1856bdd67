import socket
import subprocess
import sys

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
    assert not clusters._stale_address()
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        assert not clusters._stale_address()
    assert clusters._stale_address()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert not clusters._stale_address()
