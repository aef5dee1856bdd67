"""What the cluster files promise about secrets and ports, on a Ray that is started as they do."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from small_studies import wee, write_study

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "local.yaml"
GCS, DASHBOARD, AGENT, CLIENT = 26379, 28265, 28266, 21001  # of this test; other Rays may run here
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


class Head:
    """A head started by the command of local.yaml, in the environment that its nodes have."""

    def __init__(self, tmp_path):
        self.home, self.temporary = tmp_path / "home", Path(f"/tmp/token-test-{os.getpid()}")
        for folder in (self.home, self.temporary):
            folder.mkdir()
        (generate,) = re.findall(r"^# +(\(umask.*)$", FILE.read_text(), re.M)
        self.printed = self.shell(generate)
        self.token = (self.home / ".ray" / "auth_token").read_text()
        config = yaml.safe_load(FILE.read_text())
        (bashrc,) = (c for c in config["setup_commands"] if "bashrc" in c)
        set_by_file = dict(re.findall(r"(\w+)=([\w-]+)", bashrc))
        self.node = self.environment(**set_by_file)
        (start,) = (c for c in config["head_start_ray_commands"] if "ray start" in c)
        for old, new in (
            ("--port=6379", f"--port={GCS} --dashboard-port={DASHBOARD} --num-cpus=2 --block"),
            ("--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
            (
                "ray start",
                f"exec ray start --ray-client-server-port={CLIENT} "
                f"--dashboard-agent-listen-port={AGENT}",
            ),
        ):
            assert old in start
            start = start.replace(old, new)
        self.log = (tmp_path / "ray.log").open("w")
        self.process = subprocess.Popen(
            ["bash", "-c", start], env=self.node, stdout=self.log, stderr=subprocess.STDOUT
        )

    def environment(self, **more):
        """Return the environment of a process that has only the settings given."""
        outside = {k: v for k, v in os.environ.items() if k not in AUTH}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"HOME": str(self.home), "RAY_TMPDIR": str(self.temporary), "PATH": path}
        return outside | own | {"PYTHONPATH": str(ROOT)} | more

    def shell(self, command, **more):
        """Return what a command prints."""
        ended = subprocess.run(
            ["bash", "-c", command],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.stdout + ended.stderr

    def status(self, **more):
        """Ask the cluster for its state, in a home without a token."""
        home = self.home.parent / "other"
        home.mkdir(exist_ok=True)
        for _ in range(30):
            printed = self.shell(f"ray status --address {self.address}", HOME=str(home), **more)
            if "No cluster status" not in printed:  # the head has only just started
                break
            time.sleep(1)
        return printed

    @property
    def address(self):
        """Where the head's store listens, as its log says."""
        return re.search(rf"--address='(\S+:{GCS})'", Path(self.log.name).read_text())[1]

    def wait(self):
        """Wait until Ray answers."""
        for _ in range(60):
            if "--address=" in Path(self.log.name).read_text():
                return
            assert self.process.poll() is None, Path(self.log.name).read_text()
            time.sleep(1)
        raise TimeoutError("Ray did not start")

    def close(self):
        """End Ray and remove its files."""
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    started = Head(tmp_path_factory.mktemp("security"))
    try:
        started.wait()
        yield started
    finally:
        started.close()


def http(path, token="", method="GET"):
    """The status of a request to the dashboard."""
    url = f"http://127.0.0.1:{DASHBOARD}{path}"
    request = urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.cluster
def test_the_token_is_made_without_showing_it(head):
    assert (head.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert len(head.token) > 20
    assert head.token not in head.printed


@pytest.mark.cluster
@pytest.mark.parametrize(
    "without",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
)
def test_the_store_refuses_who_has_not_the_token(head, without):
    assert "InvalidAuthToken" in head.status(**without)


@pytest.mark.cluster
def test_the_store_answers_who_has_the_token_from_a_file_or_the_environment(head):
    """As the machines of gpu.yaml have it, and as pods of Kubernetes have it."""
    by_file = {"RAY_AUTH_TOKEN_PATH": str(head.home / ".ray" / "auth_token")}
    for how in (by_file, {"RAY_AUTH_TOKEN": head.token}):
        assert "2.0 CPU" in head.status(RAY_AUTH_MODE="token", **how)


@pytest.mark.cluster
def test_dashboard_and_job_api_refuse_who_has_not_the_token(head):
    for method, path in (
        ("GET", "/nodes?view=summary"),
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
    ):
        assert http(path, method=method) == 401
        assert http(path, "0" * 64, method) == 403
    assert http("/nodes?view=summary", head.token) == 200


@pytest.mark.cluster
def test_the_token_is_in_no_log_table_or_report(head, tmp_path):
    study = write_study(tmp_path, wee("wee"))
    run = f"python {ROOT}/sweeps/scaling.py {study} --out {tmp_path}/out --sampler-trials 0 --yes"
    said = head.shell(run, **{**head.node, "RAY_ADDRESS": head.address})
    assert (tmp_path / "out" / "report.html").exists(), said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    logs = [path for path in head.temporary.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert len(logs) > 5
    secret = head.token.encode()
    assert [path for path in written + logs if secret in path.read_bytes()] == []
    assert head.token not in said + Path(head.log.name).read_text()


METHODS = (  # one of each service that Ray has, by gRPC
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/GetTraceback",
    "RayletDriver/ClusterInfo",
)
WORKER = """
import ray, time
ray.init(logging_level="ERROR")
ray.get(ray.remote(lambda: 0).remote())
print("ready", flush=True)
input()
"""


def refuses(host, port):
    """Tell whether a port refuses who has no token, and answers nothing else."""
    import_module("ray")
    grpc = import_module("grpc")
    answers = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
                answers.add("answered")
            except grpc.RpcError as error:
                answers.add(error.code().name)
    try:
        urllib.request.urlopen(f"http://{host}:{port}/", timeout=10).close()
        answers.add("answered")
    except urllib.error.HTTPError as error:
        with error:
            answers.add("UNAUTHENTICATED" if error.code == 401 else f"HTTP {error.code}")
    except (OSError, HTTPException):  # it speaks only gRPC
        pass
    return answers - {"UNIMPLEMENTED", "UNAVAILABLE"} == {"UNAUTHENTICATED"}


@pytest.mark.cluster
def test_every_port_that_listens_outside_checks_the_token(head):
    import_module("ray")  # ships psutil
    psutil = import_module("psutil")
    driver = subprocess.Popen(  # so that there are workers, which listen too
        [sys.executable, "-c", WORKER],
        env={**head.node, "RAY_ADDRESS": head.address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert driver.stdout.readline() == b"ready\n"
        ray = psutil.Process(head.process.pid)
        outside = {}
        for process in [ray, *ray.children(recursive=True)]:
            for connection in process.net_connections("tcp"):
                inside = connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                if connection.status == psutil.CONN_LISTEN and not inside:
                    outside[connection.laddr.port] = process.name()
        assert {"gcs_server", "raylet", "ray::DashboardAgent"} <= set(outside.values())
        host = head.address.partition(":")[0]
        assert {port: name for port, name in outside.items() if not refuses(host, port)} == {}
    finally:
        driver.communicate(b"\n")
