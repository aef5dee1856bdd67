import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_studies import rows, wee, with_ray, write_study

from sweeps import driver, scaling
from sweeps.design.study import Point, grid, resolve_study
from sweeps.lease import FILE, STALE_SECONDS, lease
from sweeps.pricing.plan import STARTING_SECONDS
from sweeps.running.cluster import Cluster, check_shared
from sweeps.watching.progress import Progress
from tarflow.config_files import to_yaml
from tarflow.errors import UserError
from tarflow.record import read_table
from tarflow.train.schedule import shared_images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def stamps(out):
    """Return what changes if a finished run is touched: inode and time of its files."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for result in out.glob("runs/*/result.json")
        for path in result.parent.iterdir()
    }


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, script.name, *map(str, arguments)],
        cwd=script.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@with_ray
def test_a_killed_study_resumes_and_ends_as_if_it_had_not_been_killed(tmp_path):
    """With the script alone in an empty folder, and the default study folder.

    What was branched and killed must equal what was trained from the beginning, every run alone.
    """
    script = Path(shutil.copy(scaling.__file__, tmp_path))
    study = replace(wee("wee"), held_out=Point(size="c8-b2-l1", budget=1.6e10))
    write_study(tmp_path, study)
    out = tmp_path / "studies" / "wee"
    longest = out / "runs" / grid(resolve_study(study))[-1].run_id
    driver = start(script, "wee.yaml")
    try:
        deadline = time.monotonic() + 120
        while not (list(out.glob("runs/*/result.json")) and list(longest.glob("state/*.json"))):
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = start(script, "wee.yaml")  # while the first one is alive
        printed = second.communicate(timeout=60)[0]
        assert second.returncode == 2
        assert f"in use by process {driver.pid}" in printed
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    wait_until_quiet(out)
    finished = stamps(out)
    assert finished
    assert not (longest / "result.json").exists()
    assert list(longest.glob("state/*.json"))

    again = start(script, "wee.yaml")
    printed = again.communicate(timeout=120)[0]
    assert again.returncode == 0, printed
    assert finished.items() <= stamps(out).items()
    assert "partly" in printed

    whole, alone = tmp_path / "whole", replace(study, branches=False)
    (tmp_path / "alone.yaml").write_text(to_yaml(alone))
    assert scaling.scale(scaling.Options(study=str(tmp_path / "alone.yaml"), out=whole)) == 0
    assert {key: row["bpd"] for key, row in rows(out).items()} == {
        key: row["bpd"] for key, row in rows(whole).items()
    }
    planned = {run.run_id: run for run in grid(resolve_study(study))}
    assert set(rows(out)) == set(planned)
    (branch,) = [row for row in rows(out).values() if row["role"] == "branch"]
    assert branch["parent_id"] == longest.name
    point = shared_images(planned[branch["run_id"]].config)
    assert branch["flops_marginal"] == pytest.approx(
        branch["flops"] * (1 - point / branch["images"])
    )
    assert not (out / "trunks").exists()
    assert not (out / ".ray").exists()

    unchanged = stamps(whole)
    assert scaling.scale(scaling.Options(study=str(tmp_path / "alone.yaml"), out=whole)) == 0
    assert stamps(whole) == unchanged


def wait_until_quiet(out):
    """Wait until the workers of a killed driver are gone, too."""
    before = None
    while (now := sorted((str(p), p.stat().st_mtime_ns) for p in out.glob("runs/*/*"))) != before:
        before = now
        time.sleep(3)


@with_ray
def test_a_failed_run_is_a_row_a_message_and_exit_code_1(tmp_path, capsys):
    """The wide model gets a rate at which it must diverge; the narrow one is sound."""
    study = wee("bad", lr_power=40.0)
    path, out = write_study(tmp_path, study), tmp_path / "out"
    code = scaling.scale(scaling.Options(study=str(path), out=out))
    printed = capsys.readouterr().out
    assert code == 1
    failed = [row for row in rows(out).values() if row["status"] == "failed"]
    assert [row["channels"] for row in failed] == [16]
    assert "Diverged" in failed[0]["error"]
    assert f"failed: {failed[0]['label']}: Diverged" in printed
    assert "1 run not done; run the same command again to resume, with --retry failed" in printed
    assert (out / "runs" / failed[0]["run_id"] / "error.txt").exists()
    finished = stamps(out)
    assert scaling.scale(scaling.Options(study=str(path), out=out)) == 1
    assert stamps(out) == finished  # it would diverge again
    printed = capsys.readouterr().out
    assert "failed for good" in printed
    assert "1 run failed for good; --retry failed carries them out again" in printed
    assert scaling.scale(scaling.Options(study=str(path), out=out, retry="failed")) == 1
    changed = {path.parent.name for path, stamp in stamps(out).items() if finished[path] != stamp}
    assert changed == {failed[0]["run_id"]}


@with_ray
def test_a_process_that_dies_is_a_row_and_a_sick_machine_stops(tmp_path, capsys, monkeypatch):
    """Every process dies at once; after the first few the rest is not tried."""
    monkeypatch.setattr(
        "sweeps.running.runner.train_planned", lambda config, **_: os._exit(config["index"] + 1)
    )
    study = wee("sick", seeds=3)
    path, out = write_study(tmp_path, study), tmp_path / "out"
    assert scaling.scale(scaling.Options(study=str(path), out=out)) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "stopped early: the first 4 runs all failed, 4 with ProcessDied: the" in printed
    errors = [row["error"] for row in rows(out).values()]
    assert 4 <= len(errors) < len(grid(resolve_study(study)))
    assert all("the process died" in error for error in errors)


@with_ray
def test_a_mistake_that_only_a_worker_finds_ends_the_study(tmp_path):
    study, out = wee("typo"), tmp_path / "out"
    evaluation = replace(study.base.evaluation, samples=8, features="efficientnt")
    path = write_study(tmp_path, replace(study, base=replace(study.base, evaluation=evaluation)))
    with pytest.raises(UserError, match="no features 'efficientnt'"):
        scaling.scale(scaling.Options(study=str(path), out=out))
    assert not list(out.glob("runs/*/result.json"))


@with_ray
def test_two_workers_train_what_one_does(tmp_path):
    """One run through Ray Train, its state divided, float64, against the same run as a trial."""
    study = wee("pair")
    base = replace(study.base, precision="float64")
    one = replace(
        study, base=base, sizes=study.sizes[:1], held_out=None, replicated=None, budgets=(2e8,)
    )
    execution = replace(base.execution, workers=2, sharding="shard")
    two = replace(one, name="two", base=replace(base, execution=execution))
    for each in (one, two):
        path = write_study(tmp_path, each)
        options = scaling.Options(study=str(path), out=tmp_path / each.name)
        assert scaling.scale(options) == 0
    (alone,), (together,) = (rows(tmp_path / each.name).values() for each in (one, two))
    assert together["run_id"] == alone["run_id"]
    assert together["bpd"] == pytest.approx(alone["bpd"], rel=1e-9)
    curves = [
        read_table(tmp_path / each.name / "runs" / alone["run_id"] / "curve.parquet").to_pydict()
        for each in (one, two)
    ]
    batch = base.batch
    assert curves[0]["images"][:20] == [batch * step for step in range(1, 21)]  # one row a step
    assert curves[1]["loss"] == pytest.approx(curves[0]["loss"], rel=1e-9)
    assert together["device_seconds"] == pytest.approx(2 * together["wall_seconds"])


@with_ray
def test_more_workers_than_the_cluster_has_are_refused(tmp_path):
    study = wee("big")
    execution = replace(study.base.execution, workers=64)
    path = write_study(tmp_path, replace(study, base=replace(study.base, execution=execution)))
    with pytest.raises(UserError, match="asks for 64 workers, the cluster has 2 CPUs"):
        scaling.scale(scaling.Options(study=str(path), out=tmp_path / "out"))


@with_ray
def test_a_folder_that_a_machine_does_not_see_is_refused(tmp_path, monkeypatch):
    """The local Ray stands for a cluster of two; what the driver writes must be seen there."""
    where = Cluster(cpus=2, gpus=0.0, nodes=2)
    check_shared(tmp_path, where)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(Path, "touch", lambda _: None)
    with pytest.raises(UserError, match="is not visible on"):
        check_shared(tmp_path, where)


def test_a_folder_has_one_owner(tmp_path):
    with lease(tmp_path) as first:
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()} on"),
            lease(tmp_path),
        ):
            pass
        first.beat()
        assert not first.lost
    with lease(tmp_path):
        pass


def test_a_dead_or_silent_owner_is_replaced(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with lease(tmp_path) as held:
        pass
    path, now = tmp_path / FILE, {"beat": time.time()}
    path.write_text(json.dumps(held.owner | now | {"pid": gone.pid}))
    with lease(tmp_path):  # dead on this host
        pass
    path.write_text(json.dumps(held.owner | now | {"host": "elsewhere", "pid": 1}))
    with pytest.raises(UserError, match="process 1 on elsewhere"), lease(tmp_path):
        pass
    now = {"beat": time.time() - STALE_SECONDS - 1}
    path.write_text(json.dumps(held.owner | now | {"host": "elsewhere", "pid": 1}))
    with lease(tmp_path) as second:
        assert not second.lost
        path.write_text(json.dumps(held.owner | now | {"host": "elsewhere"}))  # taken over
        second.beat()
        assert second.lost
    assert "elsewhere" in path.read_text()


def test_time_left_follows_the_pace_of_what_has_ended(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    runs = grid(resolve_study(wee("x")))
    expected = {run.run_id: 10.0 for run in runs}
    progress = Progress(len(runs), expected, 2, Console(quiet=True))
    assert progress.seconds_left() == 10.0 * len(runs) / 2
    progress.start(runs[0])
    now[0] = 20.0  # twice as long as expected
    progress.end(runs[0], {"status": "done", "bpd": 2.0})
    assert progress.seconds_left() == 20.0 * (len(runs) - 1) / 2
    progress.start(runs[1])
    now[0] = 35.0
    assert progress.seconds_left() == (5.0 + 20.0 * (len(runs) - 2)) / 2
    assert progress.counts().startswith(f"1 of {len(runs)} done · 1 running · best 2.000")
    now[0] = 60.0  # past its time, and nothing heard of it
    assert progress.seconds_left() == max(4.0, (4.0 + 20.0 * (len(runs) - 2)) / 2)
    progress.report(runs[1], {"images": runs[1].config.images / 4, "seconds": 500.0})
    assert progress.seconds_left() == 1500.0


def test_three_ended_runs_revise_what_the_command_should_take(monkeypatch, tmp_path):
    now = [0.0]
    for clock in ("monotonic", "time"):
        monkeypatch.setattr(time, clock, lambda: now[0])
    command = scaling.Scaling(scaling.Options(study="tiny", out=tmp_path, sampler_trials=0))
    plan = command.plan
    runs, expected = [row.run for row in plan.rows], {r.run.run_id: r.left for r in plan.rows}
    progress = Progress(len(runs), expected, 1, Console(quiet=True))
    for run in runs[:3]:
        assert progress.revised is None
        progress.start(run)
        now[0] += 2 * expected[run.run_id]
        progress.end(run, {"status": "done", "bpd": 2.0})
    outcome = SimpleNamespace(revised=progress.revised)
    revised = command.revised(outcome)
    assert revised["device_seconds"] == pytest.approx(2 * command.expected["device_seconds"])
    on_one_device = STARTING_SECONDS + 2 * sum(expected.values())
    assert revised["wall_seconds"] == pytest.approx(on_one_device)
    assert command.revised(SimpleNamespace(revised=None)) is None


def test_a_log_gets_a_line_per_change_and_otherwise_one_a_minute(monkeypatch):
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run, *others = grid(resolve_study(wee("x")))
    with Progress(1 + len(others), {}, 1, Console(file=log)) as progress:
        progress.start(run)
        for _ in range(130):  # snapshots are taken more often
            now[0] += 1.0
            progress.remind()
        assert log.getvalue().count("\n") == 2
        progress.end(run, {"status": "done", "bpd": 2.0})
        progress.remind()
    assert log.getvalue().count("\n") == 3


def test_a_terminal_that_nobody_sees_gets_no_repaints(monkeypatch):
    """As `ray submit` makes it when its output goes to a file."""
    main, side = pty.openpty()
    with open(side, "w") as terminal, open(main, "rb"):  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", terminal)
        assert not driver.console_for_people().is_terminal
        termios.tcsetwinsize(side, (40, 80))
        console = driver.console_for_people()
        assert (console.is_terminal, console.width) == (True, 80)
