"""Kills of real processes: at most one checkpoint interval is lost, and the driver says so."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_studies import wee, with_ray, write_study

from sweeps import scaling
from sweeps.design.study import grid, resolve_study
from tarflow.config_files import to_yaml
from tarflow.errors import UserError
from tarflow.model.weights import load_model
from tarflow.record import read_table
from tarflow.train.checkpoint import CheckpointWriter, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def long_study(name, budget=1.2e10, **execution):
    """Return a study of one run, some ten seconds long, that saves every half second."""
    study = wee(name)
    changed = replace(study.base.execution, checkpoint_seconds=0.5, threads=1, **execution)
    base = replace(study.base, execution=changed, precision="float64")
    return replace(
        study, base=base, sizes=study.sizes[:1], budgets=(budget,), held_out=None, replicated=None
    )


def the_run(study, out):
    (run,) = grid(resolve_study(study))
    return out / "runs" / run.run_id


def wait_for(what, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def images(folder):
    """Return the images of the newest state on disk."""
    return max((int(path.stem) for path in folder.glob("state/*.json")), default=0)


def seconds(folder):
    """Return the training time of the newest state on disk."""
    return json.loads(max(folder.glob("state/*.json")).read_text())["seconds"]


def losses(folder):
    return read_table(folder / "curve.parquet").to_pydict()["loss"]


def training(name):
    """Return the worker processes of a kind below this one, first the one that worked most."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            stats[int(path.parent.name)] = int(fields[1]), int(fields[11])  # parent, ticks
    ours = {os.getpid()}
    while more := {pid for pid, (parent, _) in stats.items() if parent in ours} - ours:
        ours |= more
    named = [pid for pid in ours if name in Path(f"/proc/{pid}/cmdline").read_text()]
    return sorted(named, key=lambda pid: -stats[pid][1])


def strike(folder, name, sent, struck, workers=1):
    """Once a run has saved a state, send its workers a signal; note the time and the images."""

    def work():
        wait_for(lambda: images(folder))
        time.sleep(0.3)  # somewhere between two states
        struck["images"] = images(folder)
        newest = folder / f"state/{struck['images']:015d}.json"
        pids = training(name)[:workers]
        struck["at"], struck["lost"] = time.monotonic(), time.time() - newest.stat().st_mtime
        for pid in pids:
            os.kill(pid, sent)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        struck["saved"], trained = images(folder), seconds(folder)
        wait_for(lambda: images(folder) > struck["saved"])
        again = seconds(folder) - trained  # training went on so long before the next state
        struck["recovered"] = time.monotonic() - struck["at"] - again

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Carry out the long run without any fault, alone, for comparison."""
    from tarflow.run import run

    folder = tmp_path_factory.mktemp("undisturbed")
    (planned,) = grid(resolve_study(long_study("long")))
    run(planned.config, folder)
    return losses(folder)


@pytest.mark.slow
@with_ray
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_resumes_from_its_last_checkpoint(tmp_path, capsys, undisturbed, sent):
    study, out = long_study("long"), tmp_path / "out"
    folder, struck = the_run(study, out), {}
    thread = strike(folder, "ray::ImplicitFunc", sent, struck)
    path = write_study(tmp_path, study)
    assert scaling.scale(scaling.Options(study=str(path), out=out)) == 0
    thread.join(1)
    printed = " ".join(capsys.readouterr().out.split())
    assert ("has to leave its machine; resuming from" in printed) == (sent == signal.SIGTERM)
    assert (": the process died" in printed) == (sent == signal.SIGKILL)
    assert losses(folder) == undisturbed  # no step was left out or done twice
    print(f"signal {sent}: recovered after {struck['recovered']:.1f} s")
    assert struck["recovered"] < 30
    if sent == signal.SIGTERM:
        assert struck["saved"] > struck["images"]


@pytest.mark.slow
@with_ray
@pytest.mark.parametrize(
    ("sent", "struck_workers", "sharding"),
    [(signal.SIGKILL, 1, "replicate"), (signal.SIGKILL, 1, "shard"), (signal.SIGTERM, 1, "shard")],
)
def test_a_job_of_two_workers_resumes_from_its_last_checkpoint(
    tmp_path, capsys, undisturbed, sent, struck_workers, sharding
):
    study, out = long_study("long", workers=2, sharding=sharding), tmp_path / "out"
    folder, struck = the_run(study, out), {}
    thread = strike(folder, "ray::RayTrainWorker", sent, struck, struck_workers)
    path = write_study(tmp_path, study)
    assert scaling.scale(scaling.Options(study=str(path), out=out)) == 0
    thread.join(1)
    printed = " ".join(capsys.readouterr().out.split())
    assert ("has to leave its machine; resuming from" in printed) == (sent == signal.SIGTERM)
    assert losses(folder) == pytest.approx(undisturbed, rel=0, abs=1e-9)
    print(
        f"signal {sent} to {struck_workers} of 2 workers ({sharding}): recovered after "
        f"{struck['recovered']:.1f} s, {struck['lost']:.2f} s of training lost"
    )
    assert struck["recovered"] < 30
    if sent == signal.SIGTERM:
        assert struck["saved"] > struck["images"]
    else:
        assert struck["lost"] < 1.5  # one is saved every half second, if writing is quick


@pytest.fixture
def machines(monkeypatch):
    """Start a cluster of two machines with a core each, of which the second may be removed."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()


def another(address):
    """Start one more machine; the cluster itself could do so in the main thread only."""
    join = "start", f"--address={address}", "--num-cpus=1", "--block"
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *join],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("fewest", [1, 0])
def test_a_run_continues_without_a_lost_machine_or_waits_for_it(
    tmp_path, undisturbed, machines, fewest
):
    cluster, other = machines
    study, out = long_study("long", workers=2, min_workers=fewest), tmp_path / "out"
    folder, started = the_run(study, out), []
    script = Path(scaling.__file__), write_study(tmp_path, study), "--out", out
    driver = subprocess.Popen([sys.executable, *script], stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: images(folder))
        cluster.remove_node(other, allow_graceful=False)
        left, before = time.monotonic(), images(folder)
        if not fewest:
            time.sleep(15)
            started.append(another(cluster.address))
            left, before = time.monotonic(), images(folder)
        wait_for(lambda: images(folder) > before)
        recovered = time.monotonic() - left
        printed = " ".join(driver.communicate(timeout=300)[0].split())
    finally:
        for process in (driver, *started):
            process.terminate()
            process.wait()
    assert driver.returncode == 0
    assert "resuming from its last checkpoint" in printed
    assert "raylet" not in printed  # Ray would print paragraphs
    assert ("waits for 2 workers for at most 20 min, there is room for 1" in printed) == (
        not fewest
    )
    assert losses(folder) == pytest.approx(undisturbed, rel=1e-9)
    print(f"at least {fewest or 2} workers: resumes after {recovered:.1f} s")
    assert recovered < 60


def train(config, folder, *launcher, **options):
    run = "-m", "tarflow", "train", str(config), "--out", str(folder)
    command = [sys.executable, *launcher, *run]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def resume(config, folder, *launcher):
    started = train(config, folder, *launcher)
    printed = started.communicate(timeout=300)[1]
    assert started.returncode == 0, printed


@pytest.fixture
def config(tmp_path):
    (planned,) = grid(resolve_study(long_study("long")))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(planned.config))
    return path


@pytest.mark.slow
def test_sigterm_saves_the_state_before_the_process_ends(tmp_path, config, undisturbed):
    config.write_text(
        config.read_text().replace("checkpoint_seconds: 0.5", "checkpoint_seconds: 99")
    )
    folder = tmp_path / "run"
    started = train(config, folder)
    wait_for(lambda: "of training left" in started.stderr.readline())
    started.send_signal(signal.SIGTERM)
    printed = started.communicate(timeout=60)[1]
    assert started.returncode == 143
    assert printed.splitlines()[-1].startswith("told to end: the state is saved")
    assert images(folder) > 0
    resume(config, folder)
    assert losses(folder) == undisturbed


NOTING = """
import threading, time
from tarflow.train.preemption import defer_sigterm, catch_sigterm

def work():
    with catch_sigterm() as stop_requested:
        print("begun", flush=True)
        stop_requested.wait()
        time.sleep(0.5)
        print("saved", flush=True)

defer_sigterm()
thread = threading.Thread(target=work, daemon=True)
thread.start()
thread.join()
print("still running", flush=True)
time.sleep(60)
"""


def test_a_listening_process_notes_sigterm_and_ends_at_the_next():
    process = subprocess.Popen([sys.executable, "-c", NOTING], stdout=subprocess.PIPE, text=True)
    try:
        for expected in ("begun", "saved", "still running"):
            assert process.stdout.readline().strip() == expected
            if expected != "saved":
                process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_sigterm_to_torchrun_saves_the_state_of_all_workers(
    tmp_path, config, undisturbed, sharding
):
    changed = config.read_text().replace("sharding: auto", f"sharding: {sharding}")
    config.write_text(changed.replace("checkpoint_seconds: 0.5", "checkpoint_seconds: 99"))
    folder = tmp_path / "run"
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    started = train(config, folder, *launcher)
    wait_for(lambda: "of training left" in started.stderr.readline())
    started.send_signal(signal.SIGTERM)
    printed = started.communicate(timeout=60)[1]
    assert started.returncode != 0
    assert "told to end: the state is saved" in printed
    assert images(folder) > 0
    resume(config, folder, *launcher)
    assert losses(folder) == pytest.approx(undisturbed, rel=0, abs=1e-9)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_states_before_whole(tmp_path, config, undisturbed):
    with mounted(tmp_path / "disk", "size=3m") as disk:
        folder, filler = disk / "run", disk / "filler"
        started = train(config, folder)
        wait_for(lambda: images(folder))
        with filler.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
            while handle.write(b"x" * 4096):
                pass
        printed = started.communicate(timeout=120)[1]
        assert started.returncode == 2
        last = printed.splitlines()[-1]
        assert last.startswith(f"error: cannot write {folder}")
        assert "No space left on device" in last
        assert "Traceback" not in printed
        assert load_checkpoint(folder / "state")
        assert not list(folder.glob("state/.*"))
        filler.unlink()
        resume(config, folder)
        assert losses(folder) == undisturbed


@pytest.mark.slow
@with_ray
def test_a_study_on_a_full_or_read_only_disk_ends_with_one_line(tmp_path, monkeypatch, capsys):
    path = write_study(tmp_path, wee("full"))

    def run_on(disk):
        """Run the study on a disk; return its exit code and what it says of an error."""
        monkeypatch.setattr(sys, "argv", ["scaling", str(path), "--out", str(disk / "out")])
        with pytest.raises(SystemExit) as ended:
            scaling.main()
        return ended.value.code, capsys.readouterr().err.strip()

    with mounted(tmp_path / "small", "size=256k") as disk:
        (disk / "filler").write_bytes(b"x" * (180 << 10))
        code, line = run_on(disk)
        assert (code, line.count("\n")) == (2, 0)
        assert line.startswith("error: cannot write")
        assert "No space left on device" in line
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run_on(disk) == (0, "")
    with mounted(tmp_path / "fixed", "ro") as disk:
        code, line = run_on(disk)
        assert (code, line.count("\n")) == (2, 0)
        assert "Read-only file system" in line


@contextlib.contextmanager
def mounted(folder, options):
    """Mount a small disk, where that is permitted."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_pickle_in_the_place_of_a_state_or_a_model_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run by the pickle"),)

    save_checkpoint(tmp_path / "state", 64, {"x": torch.ones(1)}, {})
    save_checkpoint(tmp_path / "state", 128, {"x": torch.ones(1)}, {})
    model = tmp_path / "model.safetensors"
    refusals = {
        pickle.dumps(Evil()): "is not a whole safetensors file",
        zipped(tmp_path, Evil()): "was saved by torch.save",
    }
    for content, refusal in refusals.items():
        (tmp_path / "state" / f"{128:015d}.safetensors").write_bytes(content)
        (tmp_path / "state" / f"{192:015d}.json").write_bytes(content)
        assert load_checkpoint(tmp_path / "state")[1]["images"] == 64
        model.write_bytes(content)
        with pytest.raises(UserError, match=refusal):
            load_model(model)
    assert not (tmp_path / "run by the pickle").exists()


def zipped(folder, thing):
    torch.save(thing, folder / "thing.pt")
    return (folder / "thing.pt").read_bytes()


def test_states_are_written_behind_training_one_at_a_time_and_errors_surface(tmp_path):
    going, most, lock, free = [0], [0], threading.Lock(), threading.Event()

    def slow(*arguments):
        with lock:
            going[0] += 1
            most[0] = max(most[0], going[0])
        free.wait()
        time.sleep(0.1)
        save_checkpoint(*arguments)
        with lock:
            going[0] -= 1

    with pytest.MonkeyPatch.context() as patch, CheckpointWriter(tmp_path) as writer:
        patch.setattr("tarflow.train.checkpoint.save_checkpoint", slow)
        weights = torch.zeros(4)
        writer.save(64, [("x", weights)], {})
        weights += 1  # training continues: the checkpoint is a snapshot
        free.set()
        writer.save(128, [("x", weights)], {})
        writer.wait()
    assert most == [1]
    assert load_checkpoint(tmp_path)[0]["x"].tolist() == [1, 1, 1, 1]
    (tmp_path / f"{128:015d}.safetensors").unlink()
    assert load_checkpoint(tmp_path)[0]["x"].tolist() == [0, 0, 0, 0]

    with pytest.MonkeyPatch.context() as patch, CheckpointWriter(tmp_path) as writer:
        patch.setattr("tarflow.train.checkpoint.save_checkpoint", lambda *_: time.sleep(0.05))
        writer.save(64, [("x", weights)], {})
        writer.wait()
        assert writer.interval(1.0) > 2.5  # it is to be 2% of that
        assert (writer.interval(1e4), writer.interval(0)) == (1e4, 0)

    shutil.rmtree(tmp_path)
    tmp_path.write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write"), CheckpointWriter(tmp_path) as writer:
        writer.save(64, [("x", weights)], {})
