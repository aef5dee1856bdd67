import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from sweeps import machines
from tarflow.config import ConfigError


@pytest.fixture
def head():
    """A cluster whose head only drives, as in cluster/gpu.yaml."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_workers_that_are_still_to_come_are_waited_for_and_counted(head, monkeypatch):
    monkeypatch.setattr(machines, "GROWING_SECONDS", 1.0)
    with pytest.raises(ConfigError, match="no GPU has joined"), machines.cluster(4):
        pass
    monkeypatch.setattr(machines, "GROWING_SECONDS", 60.0)
    late = threading.Timer(3, head.add_node, kwargs={"num_cpus": 2, "num_gpus": 1})
    start = time.monotonic()
    late.start()
    with machines.cluster(4) as where:
        assert time.monotonic() - start > 2
        assert (where.cpus, where.gpus) == (8, 4.0)
    late.join()
