import shutil
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from sweeps.running.versions import check_same_code
from tarflow.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def two_machines(tmp_path, monkeypatch):
    """A cluster of two nodes; the second one imports a copy of the packages, which is yielded."""
    monkeypatch.chdir(tmp_path)  # Ray puts the driver's folder on the path of every worker
    copy = tmp_path / "copy"
    for package in ("tarflow", "sweeps", "analysis"):
        shutil.copytree(ROOT / package, copy / package)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(copy)})
    ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    yield cluster, copy
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_machine_with_other_code_is_named(two_machines, tmp_path):
    cluster, copy = two_machines
    check_same_code()
    loop = copy / "tarflow" / "train" / "loop.py"
    before = loop.read_text()
    loop.write_text(before + "# edited\n")
    with pytest.raises(
        UserError, match=r"runs other code .*: tarflow/train/loop.py differs.*ray up -y"
    ):
        check_same_code()
    loop.write_text(before)
    old = tmp_path / "old"  # code of before this check
    (old / "sweeps").mkdir(parents=True)
    (old / "sweeps" / "__init__.py").touch()
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(old)})
    with pytest.raises(UserError, match=r"cannot run this code .*ModuleNotFoundError"):
        check_same_code()
