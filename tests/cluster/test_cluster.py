"""Cluster files: what Ray's own loader accepts, what a node needs, and Slurm's script for real."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = ("gpu.yaml", "local.yaml")


def loaded(name):
    """The file as `ray up` sees it: defaults filled in, checked against Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster" / name).read_text()))
    validate_config(config)
    return config


def commands(config):
    return [
        *config["head_setup_commands"],  # Ray has put setup_commands in front of both
        *config["worker_setup_commands"],
        *config["head_start_ray_commands"],
        *config["worker_start_ray_commands"],
    ]


def pins(config):
    """The exact requirements that the nodes install, by name."""
    words = " ".join(config["setup_commands"]).replace('"', " ").split()
    return {r.name: r for r in (Requirement(word) for word in words if "==" in word)}


@pytest.mark.parametrize("name", ["gpu.yaml", "local.yaml", "kuberay.yaml", "slurm.sh"])
def test_each_file_opens_with_use_cost_and_security(name):
    lines = (ROOT / "cluster" / name).read_text().splitlines()
    comments = [line for line in lines if line.startswith("# ")]
    for word in ("Use it" if name != "kuberay.yaml" else "kubectl apply", "cost", "Security"):
        assert any(word in line for line in comments), word


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file_and_bash_every_command(name):
    for command in commands(loaded(name)):
        ended = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
        assert ended.returncode == 0, (command, ended.stderr)


@pytest.mark.parametrize("name", FILES)
def test_nodes_get_all_that_the_package_is_built_from(name):
    mounts = loaded(name)["file_mounts"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    sent = {Path(remote).name: local for remote, local in mounts.items()}
    assert needed <= sent.keys()
    for remote, local in mounts.items():
        assert remote.startswith(("~/tarflow-platform/", "~/.ray/")), "would shadow the package"
        assert local.startswith("~") or (ROOT / local).exists(), local


@pytest.mark.parametrize("name", FILES)
def test_versions_are_exact_tested_and_allowed(name):
    found = pins(loaded(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {r.name: r for r in map(Requirement, project["dependencies"])}
    assert {"ray", "torch", "optuna", "numpy", "pyarrow"} <= found.keys()
    for package, pin in found.items():
        (version,) = (spec.version for spec in pin.specifier)
        assert version in allowed[package].specifier
    assert "default" in found["ray"].extras  # dashboard and state API
    assert str(found["ray"].specifier) == f"=={importlib.metadata.version('ray')}"


def test_all_clusters_run_the_same_versions():
    aws, local = (pins(loaded(name)) for name in FILES)
    assert aws == local
    ray = next(spec.version for spec in aws["ray"].specifier)
    text = (ROOT / "cluster" / "kuberay.yaml").read_text()
    assert f"FROM rayproject/ray:{ray}-" in text
    assert f"=={ray}'" in text
    assert yaml.safe_load(text)["spec"]["rayClusterSpec"]["rayVersion"] == ray


@pytest.mark.parametrize("name", FILES)
def test_every_node_checks_the_token_and_the_dashboard_stays_inside(name):
    config = loaded(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for setup in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert any("RAY_AUTH_MODE=token" in command for command in setup)
        assert "chmod 600 ~/.ray/auth_token" in setup
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in start


def test_cloud_machines_start_at_none_and_end_when_idle():
    config = loaded("gpu.yaml")
    workers = {k: v for k, v in config["available_node_types"].items() if k != "head"}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert all(kind["resources"]["GPU"] > 0 for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= config["max_workers"]
    assert any("InstanceMarketOptions" in kind["node_config"] for kind in workers.values())
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert 0 < config["idle_timeout_minutes"] <= 15


def test_cloud_machines_are_private_and_may_write_results():
    config = loaded("gpu.yaml")
    assert config["provider"]["use_internal_ips"]
    assert config["auth"]["ssh_proxy_use_node_id"]
    assert config["provider"]["region"] in config["auth"]["ssh_proxy_command"]
    for kind in config["available_node_types"].values():
        machine = kind["node_config"]
        assert {"SubnetIds", "SecurityGroupIds", "IamInstanceProfile"} <= machine.keys()
        assert machine["MetadataOptions"] == {"HttpTokens": "required"}


def test_workers_of_a_local_cluster_are_started():
    """The default autoscaler never starts them (ray-project/ray#57153)."""
    config = loaded("local.yaml")
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert start.index("RAY_enable_autoscaler_v2=0") < start.index("ray start")
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])


def test_kubernetes_job_has_its_required_fields():
    job = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert "sweeps/scaling.py" in job["spec"]["entrypoint"]
    assert "--yes" in job["spec"]["entrypoint"]  # nobody is there to answer
    assert job["spec"]["shutdownAfterJobFinishes"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["authOptions"] == {"mode": "token"}
    (gpu,) = cluster["workerGroupSpecs"]
    assert gpu["minReplicas"] == gpu["replicas"] == 0 < gpu["maxReplicas"]
    head, worker = (
        group["template"]["spec"]["containers"][0] for group in (cluster["headGroupSpec"], gpu)
    )
    assert head["image"] == worker["image"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_slurm_script_is_sound_and_says_how_to_start_it(tmp_path):
    script = ROOT / "cluster" / "slurm.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    ended = subprocess.run(
        ["bash", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "start this with: sbatch cluster/slurm.sh" in ended.stderr


@pytest.mark.ray
def test_slurm_script_runs_the_sweep_on_every_machine(tmp_path):
    """Both "machines" are this one: `srun` and `scontrol` are replaced, Ray is real."""
    tools, home, submit = tmp_path / "bin", tmp_path / "home", tmp_path / "submit"
    for folder in (tools, home, submit / "sweeps"):
        folder.mkdir(parents=True)
    host = socket.gethostname()
    (tools / "scontrol").write_text(f"#!/bin/sh\nprintf '%s\\n' {host} other\n")
    (tools / "srun").write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'  # drop srun's own flags
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (submit / "sweeps" / "scaling.py").write_text(
        "import sys, ray\n"
        "ray.init(address='auto', logging_level='ERROR')\n"
        "print('args', *sys.argv[1:])\n"
        "print('nodes', len(ray.nodes()), 'cpus', int(ray.cluster_resources()['CPU']))\n"
        "sys.exit(7)\n"
    )
    # Short, since sockets below it have at most 107 characters; apart from any other Ray here.
    temporary = Path(f"/tmp/slurm-test-{os.getpid()}")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_TMPDIR": str(temporary),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "two",
        "SLURM_SUBMIT_DIR": str(submit),
        "SLURM_CPUS_PER_TASK": "3",
    }
    try:
        temporary.mkdir()
        ended = subprocess.run(
            ["bash", ROOT / "cluster" / "slurm.sh", "digits", "--yes"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert "args digits --yes" in ended.stdout, ended.stdout + ended.stderr
    assert "nodes 2 cpus 6" in ended.stdout
    assert ended.returncode == 7  # the sweep's own code, as DESIGN promises
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
