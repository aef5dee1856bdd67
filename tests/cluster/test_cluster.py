"""Cluster files: what Ray's own loader and KubeRay accept, and what a node needs."""

import copy
import importlib.metadata
import json
import lzma
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from sweeps import scaling
from tarflow.cost import ACCELERATORS

ROOT = Path(__file__).parents[2]
CLOUDS = ("gpu.yaml", "gcp.yaml")
FILES = (*CLOUDS, "local.yaml")
KUBERAY = ROOT / "cluster" / "kuberay.yaml"


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


def opening(name):
    """The comments at the top of a file, as one line."""
    lines = (ROOT / "cluster" / name).read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


@pytest.mark.parametrize("name", [*FILES, "kuberay.yaml", "slurm.sh"])
def test_each_file_opens_with_use_cost_and_security(name):
    text = opening(name)
    use = "kubectl apply" if name == "kuberay.yaml" else "Use it from the root"
    for word in (use, "costs", "Security:", "on all interfaces", "metrics", "docs/cluster.md"):
        assert word in text, word


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file_and_bash_every_command(name):
    for command in commands(loaded(name)):
        ended = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
        assert ended.returncode == 0, (command, ended.stderr)


@pytest.mark.parametrize("name", FILES)
def test_nodes_get_the_packages_in_folders_that_python_finds(name):
    config = loaded(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    sent = {Path(remote).name: local for remote, local in config["file_mounts"].items()}
    assert {*packages, "cluster"} <= sent.keys()
    for remote, local in config["file_mounts"].items():
        assert remote.startswith(("~/tarflow-platform/", "~/.ray/")), "would shadow the package"
        assert local.startswith("~") or (ROOT / local).is_dir(), "`ray up` warns of files"
    for setup in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert any("PYTHONPATH=$HOME/tarflow-platform " in command for command in setup)


def test_versions_are_exact_tested_and_allowed():
    lines = (ROOT / "cluster" / "requirements.txt").read_text().splitlines()
    pins = {r.name: r for r in (Requirement(line) for line in lines if not line.startswith("#"))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["features"]]
    allowed = {r.name: r for r in map(Requirement, needed)}
    assert pins.keys() == allowed.keys()
    for package, pin in pins.items():
        (spec,) = pin.specifier
        assert spec.operator == "=="
        assert spec.version in allowed[package].specifier
    assert "default" in pins["ray"].extras  # dashboard and state API
    ray = importlib.metadata.version("ray")
    assert str(pins["ray"].specifier) == f"=={ray}"
    assert f"FROM rayproject/ray:{ray}-" in (ROOT / "cluster" / "Dockerfile").read_text()
    assert yaml.safe_load(KUBERAY.read_text())["spec"]["rayClusterSpec"]["rayVersion"] == ray
    for name in FILES:
        assert f"ray[default]=={ray}" in opening(name)
        assert any("/cluster/requirements.txt" in c for c in loaded(name)["setup_commands"])


def test_the_image_gets_all_that_the_package_is_built_from_and_no_more():
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, "pyproject.toml", "README.md", "cluster/requirements.txt"}
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == needed


@pytest.mark.parametrize("name", CLOUDS)
def test_the_documented_command_prices_the_machines_that_it_rents(name):
    """The plan must not ask for the price of an H100 and then rent L4s, or the reverse."""
    text = opening(name)
    submit = next(
        line for line in (ROOT / "cluster" / name).read_text().splitlines() if "ray submit" in line
    )
    words = shlex.split(submit.partition(" -- ")[2])
    accelerator, price = (words[words.index(flag) + 1] for flag in ("--accelerator", "--price"))
    kinds = loaded(name)["available_node_types"]
    rented = {
        kind for kind, settings in kinds.items() if settings["max_workers"] and kind != "head"
    }
    assert {kind.partition("_")[0].upper() for kind in rented} == {accelerator}
    assert all(kind.upper().startswith(tuple(ACCELERATORS)) for kind in kinds if kind != "head")
    (kind,) = rented
    machine = kinds[kind]["node_config"]
    rented_type = machine.get("InstanceType") or machine["machineType"]
    assert f"{rented_type} (1 x {accelerator}) {price} $/h" in text
    most = float(re.search(r"at most (\d) ", text)[1]) * float(price)
    head = float(re.search(r"head \S+ (0\.\d+) \$/h", text)[1])
    assert f"at most {most + head:.2f} $/h" in text
    plan = scaling.Scaling(
        scaling.Options(study=words[0], accelerator=accelerator, price=float(price), dry_run=True)
    ).plan
    assert plan.rate.accelerator == accelerator
    assert plan.money == pytest.approx(plan.device_hours * float(price))


@pytest.mark.parametrize("name", FILES)
def test_every_node_checks_the_token_and_the_dashboard_stays_inside(name):
    config = loaded(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for setup in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert any("RAY_AUTH_MODE=token" in command for command in setup)
        assert "chmod 600 ~/.ray/auth_token" in setup
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("name", FILES)
def test_a_study_that_runs_is_not_ended_by_a_restart(name, tmp_path):
    """The first command of the head, run as Ray runs it, while a sweep runs there or does not."""
    guard, stop, _ = loaded(name)["head_start_ray_commands"]
    assert stop == "ray stop"
    home = tmp_path / "home"  # where `ray submit` puts the script
    home.mkdir()
    script = home / f"{['scaling', 'search', 'final'][FILES.index(name)]}.py"
    script.write_text("input()")
    guard = guard.replace("[ /](", f"{home}/(")  # other sweeps may run here
    check = ["bash", "-c", guard]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    sweep = subprocess.Popen([sys.executable, "-u", script, "digits"], stdin=subprocess.PIPE)
    try:
        refused = subprocess.run(check, capture_output=True, text=True, check=False)
    finally:
        sweep.communicate(b"\n")
    assert refused.returncode == 1
    assert f"{script} digits" in refused.stdout
    assert "restarting Ray would end it" in refused.stderr


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_machines_start_at_none_and_end_when_idle(name):
    config = loaded(name)
    workers = {k: v for k, v in config["available_node_types"].items() if k != "head"}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert all(kind["resources"]["GPU"] > 0 for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= config["max_workers"]
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert 0 < config["idle_timeout_minutes"] <= 15
    spot = workers["l4_spot"]["node_config"]
    assert "SPOT" in str(spot.get("scheduling", spot.get("InstanceMarketOptions"))).upper()


def test_machines_of_amazon_are_private_and_only_the_head_may_rent():
    config = loaded("gpu.yaml")
    assert config["provider"]["use_internal_ips"]
    assert config["auth"]["ssh_proxy_use_node_id"]
    assert config["provider"]["region"] in config["auth"]["ssh_proxy_command"]
    profiles = {}
    for name, kind in config["available_node_types"].items():
        machine = kind["node_config"]
        assert {"SubnetIds", "SecurityGroupIds", "ImageId"} <= machine.keys()
        assert machine["MetadataOptions"] == {"HttpTokens": "required"}
        profiles[name] = machine["IamInstanceProfile"]["Name"]
    assert profiles.pop("head") == "tarflow-head"
    assert set(profiles.values()) == {"tarflow-node"}


def test_machines_of_google_are_private_and_only_the_head_may_rent():
    config = loaded("gcp.yaml")
    provider, proxy = config["provider"], config["auth"]["ssh_proxy_command"]
    assert provider["use_internal_ips"]
    assert config["auth"]["ssh_proxy_use_node_id"]
    assert f"--zone {provider['availability_zone']}" in proxy
    assert f"--project {provider['project_id']}" in proxy
    for name, kind in config["available_node_types"].items():
        machine = kind["node_config"]
        (interface,) = machine["networkInterfaces"]
        assert "accessConfigs" not in interface
        emails = [account["email"] for account in machine.get("serviceAccounts", [])]
        # Ray gives the head an account of its own, which may start and end machines.
        assert emails == (
            [] if name == "head" else ["tarflow-node@PROJECT.iam.gserviceaccount.com"]
        )


def test_workers_of_a_local_cluster_are_started():
    """The default autoscaler never starts them (ray-project/ray#57153)."""
    config = loaded("local.yaml")
    (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert start.index("RAY_enable_autoscaler_v2=0") < start.index("ray start")
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])


def kuberay_schema():
    """What KubeRay 1.7 accepts as a RayJob, where unknown fields are mistakes."""

    def close(schema):
        if isinstance(schema, list):
            return [close(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        schema = {key: close(part) for key, part in schema.items()}
        if schema.get("x-kubernetes-int-or-string"):
            schema = {"type": ["integer", "string"]}
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        return schema

    packed = (Path(__file__).parent / "rayjob-v1.json.xz").read_bytes()
    schema = close(json.loads(lzma.decompress(packed)))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_kuberay_accepts_the_job_and_notices_a_mistake():
    schema, job = kuberay_schema(), yaml.safe_load(KUBERAY.read_text())
    jsonschema.validate(job, schema)
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["authOptions"] = {"mode": "secret"}
    with pytest.raises(jsonschema.ValidationError, match="'secret' is not one of"):
        jsonschema.validate(wrong, schema)
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema)


def test_the_documented_cluster_that_stays_is_that_of_the_job(monkeypatch, capsys):
    """A RayCluster's spec has the schema of a RayJob's rayClusterSpec."""
    (program,) = re.findall(
        r"python -c '(.*?)' *\|", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(ROOT)
    exec(program, {})
    cluster = yaml.safe_load(capsys.readouterr().out)
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    job = kuberay_schema()["properties"]["spec"]["properties"]["rayClusterSpec"]
    jsonschema.validate(cluster["spec"], job)


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
