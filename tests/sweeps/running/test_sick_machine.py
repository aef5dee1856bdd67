import os
import time

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from small_studies import rows, wee, write_study

from sweeps import scaling
from sweeps.running import runner

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.mark.slow
@pytest.mark.ray
def test_a_sick_machine_is_avoided_and_every_run_ends_elsewhere(tmp_path, capsys, monkeypatch):
    """Every process dies on the second machine; with its retries there, runs would fail."""
    sound = runner.train_planned

    def train(config, **keywords):
        if os.environ.get("SICK"):
            tune.report({"node": ray.get_runtime_context().get_node_id()})
            time.sleep(1)
            os._exit(1)
        sound(config, **keywords)

    monkeypatch.setattr(runner, "train_planned", train)
    path, out = write_study(tmp_path, wee("sick", seeds=3)), tmp_path / "out"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1, env_vars={"SICK": "1"})
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert scaling.scale(scaling.Options(study=str(path), out=out)) == 0
    finally:
        cluster.shutdown()
    printed = capsys.readouterr().out
    assert "has lost 2 runs, 2 with ProcessDied: the process died" in printed
    assert printed.count("resuming from its last checkpoint") <= 3
    assert {row["status"] for row in rows(out).values()} == {"done"}
