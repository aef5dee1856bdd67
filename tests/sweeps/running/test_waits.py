"""Every wait is announced with its length, and ends; nothing stays reserved after it."""

import io
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from small_studies import wee, with_ray, write_study

from sweeps import scaling
from sweeps.design.branches import StartPoint
from sweeps.design.study import grid, resolve_study
from sweeps.running import cluster as clusters
from sweeps.running import gangs, run_queue
from sweeps.running.batch import BatchContext, StopConditions
from sweeps.running.trainable import shared_folder
from sweeps.watching.progress import Progress
from tarflow.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
ASKING = """
import time
import ray
from sweeps.running.cluster import asked_for

ray.init(include_dashboard=False, log_to_driver=False)
with asked_for({"GPU": 1.0}, 3):
    print("asked", flush=True)
    time.sleep(600)
"""


def states():
    return [group["state"] for group in ray.util.placement_group_table().values()]


def pair(name):
    """Return a study of one run of two workers."""
    study = wee(name)
    execution = replace(study.base.execution, workers=2)
    base = replace(study.base, execution=execution)
    return replace(study, base=base, sizes=study.sizes[:1], held_out=None, replicated=None)


@pytest.fixture
def unconnected(monkeypatch):
    """A cluster whose workers find no network; must come before tests that share another one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.usefixtures("unconnected")
def test_workers_that_cannot_connect_leave_nothing_reserved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gangs, "RETRIES", 0)
    path = write_study(tmp_path, pair("apart"))
    assert scaling.scale(scaling.Options(study=str(path), out=tmp_path / "out")) == 1
    assert states() == ["REMOVED"]
    assert "failed: RuntimeError: [enforce fail" in capsys.readouterr().out  # not Ray's wrapping


@with_ray
def test_workers_that_do_not_come_are_a_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(gangs, "GROWING_SECONDS", 2.0)
    (run,) = grid(resolve_study(pair("short")))
    run = replace(
        run,
        config=replace(run.config, execution=replace(run.config.execution, workers=3, threads=1)),
    )
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(1, {}, 2, console)
    owned = SimpleNamespace(lost=False)
    context = BatchContext(tmp_path, clusters.current(), owned, console, None)
    stop, seen = StopConditions(progress, context, 3.0), []
    with gangs.Gangs([run], run_queue.RunQueue([], stop), {"cpu": 1.0}, context, stop) as batch:
        while batch.alive:
            seen += states()
            time.sleep(0.1)
    assert console.file.getvalue() == (
        f"{run.label} waits for 3 workers for at most 2 s, there is room for 2\n"
    )
    assert stop.reason == f"{run.label} waited 2 s for 3 workers, there is room for 2"
    assert "PENDING" in seen  # which tells an autoscaler what is missing
    assert set(states()) == {"REMOVED"}


@with_ray
def test_what_a_killed_driver_has_asked_for_is_forgotten():
    driver = subprocess.Popen([sys.executable, "-c", ASKING], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout.readline() == "asked\n"
        assert states().count("PENDING") == 3
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    deadline = time.monotonic() + 60
    while "PENDING" in states():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_machine_without_the_folder_of_the_driver_refuses_to_train(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not visible on .*choose an --out"):
        shared_folder(str(tmp_path))


def test_a_branch_waits_for_a_late_checkpoint_but_not_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_queue, "LOOK_SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run, trunk, *_ = grid(resolve_study(wee("late")))
    progress = Progress(2, {}, 1, Console(soft_wrap=True))
    context = BatchContext(tmp_path, None, None, None, None)
    stop = StopConditions(progress, context, 1.0)
    after = {run.run_id: StartPoint(64, 64, trunk.run_id)}
    queue = run_queue.RunQueue([trunk, run], stop, after)
    assert queue.suggest("trunk") == {"index": 0}
    assert queue.suggest("a") is None
    progress.report(trunk, {"images": 64})
    for now[0] in (1.0, 600.0):
        assert queue.suggest("a") is None
    now[0] = 602.0
    assert queue.suggest("a") == {"index": 1}
    assert "starts without the checkpoint of its trunk, which did not come in 10 min" in (
        capsys.readouterr().out
    )
