"""An address on an object store serves as a folder does; with a real S3 server on loopback."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
import torch
from pyarrow import fs
from small_studies import rows, wee, write_study
from training_runs import LONG, SHORT, assert_same, family

from analysis.study.forecast import calibration
from sweeps import lease, scaling
from sweeps.design.presets import load
from sweeps.design.study import grid, resolve_study
from sweeps.searching import journal
from sweeps.searching.space import TrainingSpace
from tarflow import record, storage
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.forecasts import read_forecasts, write_outcome
from tarflow.model.weights import load_model, save_model
from tarflow.storage import Remote, cache_folder, locate
from tarflow.train.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from tarflow.train.loop import train
from tarflow.train.schedule import shared_images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
ACCOUNT = f"account:{base64.b64encode(b'key of an emulator').decode()}"
ROW = {"run_id": "0123456789", "label": "w64", "role": "grid", "status": "done"}


@contextlib.contextmanager
def serving(*command):
    """Start a server, and yield its address on loopback; {port} in its command is a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = subprocess.Popen(
        [part.format(port=port) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait()


@pytest.fixture(scope="module")
def server():
    """Start moto's S3 server."""
    with serving(sys.executable, "-m", "moto.server", "-p", "{port}") as address:
        yield address


def gcs_bucket(address, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    return "gs://bucket"


def azure_container(address, monkeypatch):
    account, key = ACCOUNT.split(":")
    settings = f"AccountName={account};AccountKey={key};BlobEndpoint={address}/{account};"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", settings)
    storage._filesystem("abfs", "").create_dir("container")
    return "abfs://container"


EMULATORS = {
    "gs": (
        gcs_bucket,
        "gcp-storage-emulator",
        ("start", "--in-memory", "--default-bucket=bucket", "--host=127.0.0.1", "--port={port}"),
    ),
    "abfs": (
        azure_container,
        "azurite-blob",
        ("--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort={port}"),
    ),
}


@pytest.fixture(params=["s3", *EMULATORS])
def anywhere(request, monkeypatch):
    """A bucket of each kind of store; Google's and Azure's are emulated."""
    if request.param == "s3":
        yield request.getfixturevalue("bucket")
        return
    prepare, program, options = EMULATORS[request.param]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed: see CONTRIBUTING.md")
    monkeypatch.setenv("AZURITE_ACCOUNTS", ACCOUNT)
    storage._filesystem.cache_clear()
    with serving(program, *options) as address:
        yield locate(prepare(address, monkeypatch))
    storage._filesystem.cache_clear()


@pytest.fixture
def environment(server, monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage._filesystem.cache_clear()
    yield server
    storage._filesystem.cache_clear()


@pytest.fixture
def bucket(environment):
    store = fs.S3FileSystem(endpoint_override=environment, allow_bucket_creation=True)
    name = f"bucket-{time.time_ns()}"
    store.create_dir(name)
    return locate(f"s3://{name}")


def test_files_of_an_address_are_those_of_a_folder(anywhere):
    out = anywhere / "study"
    assert not out.exists()
    assert list(out.glob("runs/*/result.json")) == []
    path = out / "runs" / "a" / "result.json"
    path.write_text("{}")
    (out / "runs" / "b" / "error.txt").write_text("é")
    assert (out.is_dir(), path.is_file(), path.is_dir()) == (True, True, False)
    assert list(out.glob("runs/*/result.json")) == [path]
    assert sorted(each.name for each in (out / "runs").glob("*")) == ["a", "b"]
    assert path.stat().st_size == 2
    assert abs(path.stat().st_mtime - time.time()) < 60
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    (out / "runs").rmdir()
    assert not list(out.glob("runs/*/*"))
    with pytest.raises(TypeError, match="not a file of this machine"):
        os.fspath(path)


def test_what_a_run_leaves_comes_back(anywhere, random_flow):
    folder = anywhere / "study" / "runs" / "a"
    record.write_json(folder / "result.json", {"run": ROW, "evaluations": []})
    record.gather(anywhere / "study")
    assert record.read_table(anywhere / "study" / "runs.parquet").num_rows == 1
    flow = random_flow(torch.float32)
    save_model(folder / "model.safetensors", flow.state_dict(), RunConfig(model=flow.config))
    loaded, _ = load_model(Path(str(folder)) / "model.safetensors")  # as a command line has it
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), flow.parameters(), strict=True)
    )
    for images in (64, 128, 192):
        save_checkpoint(folder / "state", images, {"x": torch.full((3,), images)}, {"curve": []})
    newest = folder / "state" / f"{192:015d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    tensors, facts = load_checkpoint(folder / "state")
    assert (facts["images"], tensors["x"].tolist()) == (128, [128, 128, 128])
    remove_checkpoints(folder / "state")
    assert load_checkpoint(folder / "state") is None


def test_forecasts_on_the_store_are_found_and_counted(bucket):
    earlier = {"run_id": "a", "flops": 1e9, "law": "E", "predicted": 2.0, "low": 1.9, "high": 2.1}
    earlier |= {"in_words": "Predicted 2.", "achieved": None, "achieved_se": None}
    record.write_json(bucket / "study" / "final" / "a.json", earlier)
    row = {"run_id": "a", "bpd": 2.05, "bpd_se": 0.1, "split": "validation"}
    found = write_outcome(bucket / "study", row)
    assert read_forecasts(bucket / "study") == [found]
    assert str(calibration(bucket / "study")).startswith("1 of 1 forecasts in bucket-")


def test_a_branch_finds_its_trunk_on_the_store(bucket, tmp_path):
    trunk = family(bucket / "trunks", SHORT)
    train(LONG, bucket / "runs" / "long", trunk=trunk)
    branch = train(SHORT, bucket / "runs" / "short", trunk=trunk)
    assert branch.inherited == shared_images(SHORT)
    assert_same(branch, train(SHORT, tmp_path))


def test_a_wrong_bucket_key_or_endpoint_is_one_line_within_seconds(
    bucket, environment, monkeypatch, capsys
):
    def refusal(address):
        storage._filesystem.cache_clear()
        monkeypatch.setattr(sys, "argv", ["scaling", "tiny", "--out", str(address), "--yes"])
        start = time.monotonic()
        with pytest.raises(SystemExit, match="2"):
            scaling.main()
        assert time.monotonic() - start < 30
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "there is no bucket s3://nobody-has-this" in refusal("s3://nobody-has-this/study")
    require_keys(environment, after=0)
    try:
        assert "credentials" in refusal(bucket / "study")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "credentials" in refusal(bucket / "study")
    finally:
        require_keys(environment, after=10**9)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "endpoint" in refusal(bucket / "study")
    assert "Unrecognized filesystem" in refusal("nothing://bucket/study")


def require_keys(server, after):
    """Let the server check credentials from this number of requests on."""
    asked = urllib.request.Request(
        f"{server}/moto-api/reset-auth", str(after).encode(), {"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(asked).close()


def test_an_account_of_azure_must_be_named(monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"which storage account\? .*AZURE_STORAGE_ACCOUNT"):
        locate("abfs://container/study").exists()


def test_an_address_has_one_owner(anywhere, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    out = anywhere / "study"
    with lease.lease(out) as first:
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
            lease.lease(out),
        ):
            pass
        first.beat()
        assert not first.lost
    with lease.lease(out) as second:
        thief = second.owner | {"host": "elsewhere", "beat": time.time()}
        (out / lease.FILE).write_text(json.dumps(thief))
        second.beat()
        assert second.lost
    with pytest.raises(UserError, match="on elsewhere"), lease.lease(out):
        pass


def test_of_two_that_take_an_address_at_once_one_wins(bucket, monkeypatch):
    """Both have read that it is free; the one that wrote first finds the other's name."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "alive", lambda _: False)
    first, second = (lease.Lease(bucket / lease.FILE) for _ in range(2))
    first.owner["pid"] = 1
    monkeypatch.setattr(lease.time, "sleep", lambda _: second._write())
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        first.take()


def test_a_journal_is_on_the_store_after_every_trial(bucket):
    space = TrainingSpace(resolve_study(load("tiny")), 1e9)
    study = journal.open_study(space, journal.open_journal(bucket))
    trial = study.ask()
    space(trial)
    study.tell(trial, [1.0] * len(space.objectives))
    again = journal.open_study(space, journal.open_journal(bucket))  # as on another machine
    assert [each.params for each in journal.completed(again)] == [trial.params]
    assert isinstance(bucket / journal.FILE, Remote)
    assert optuna.trial.TrialState.RUNNING not in [each.state for each in again.trials]


@pytest.mark.slow
@pytest.mark.ray
def test_a_whole_study_on_an_address_that_is_killed_and_resumed(bucket, tmp_path):
    study = wee("wee")
    path, out = write_study(tmp_path, study), bucket / "studies" / "wee"
    command = [sys.executable, "-m", "sweeps.scaling", str(path), "--out", str(out), "--yes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 600
        while not list(out.glob("runs/*/result.json")):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    time.sleep(5)  # its workers end, too
    finished = {each: each.stat().st_mtime for each in out.glob("runs/*/result.json")}
    expected = {run.run_id for run in grid(resolve_study(study))}
    assert 0 < len(finished) < len(expected)

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert set(rows(out)) == expected
    assert all(each.stat().st_mtime == stamp for each, stamp in finished.items())
    assert not list(out.glob("runs/*/state/*.json"))
    assert "</html>" in (out / "report.html").read_text()
    assert (out / "best.yaml").is_file()
    assert {each.name for each in tmp_path.iterdir()} == {path.name}

    whole = tmp_path / "whole"
    local = [*command[:-2], str(whole), "--yes"]
    assert subprocess.run(local, env=environment).returncode == 0
    assert {key: row["bpd"] for key, row in rows(out).items()} == {
        key: row["bpd"] for key, row in rows(whole).items()
    }


@pytest.mark.parametrize("home", [None, "/", "/nonexistent"])
def test_the_cache_of_a_user_without_a_home_is_a_temporary_folder(monkeypatch, tmp_path, home):
    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    for name in ("TARFLOW_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if home:
        monkeypatch.setenv("HOME", home)
    assert cache_folder() == tmp_path / f"tarflow-{os.getuid()}" / ".cache" / "tarflow"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/tarflow")
    monkeypatch.setenv("TARFLOW_CACHE", "/scratch")
    assert cache_folder() == Path("/scratch")
    if not home:
        monkeypatch.setenv("TARFLOW_CACHE", "~/scratch")
        with pytest.raises(UserError, match="TARFLOW_CACHE: ~/scratch has no home folder"):
            cache_folder()
