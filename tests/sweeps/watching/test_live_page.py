"""What readers see of a study while it runs: the page, and the progress on other machines."""

import io
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from rich.console import Console
from small_studies import rows, wee, with_ray, write_study
from synthetic import plant

from sweeps import scaling
from sweeps.design.declared import declare
from sweeps.design.presets import load
from sweeps.design.study import resolve_study
from sweeps.lease import FILE, lease
from sweeps.watching import live
from sweeps.watching.live import LivePage, publishing
from sweeps.watching.progress import Progress
from tarflow.config import RunConfig


@dataclass(frozen=True)
class Task:
    run_id: str
    config: RunConfig

    @property
    def label(self):
        return f"run [{self.run_id}]"


@pytest.fixture
def progress():
    return Progress(3, {}, 1, Console(file=io.StringIO(), width=200))


def end(progress, name, **row):
    task = Task(name, RunConfig())
    progress.start(task)
    progress.end(task, {"status": "done", "bpd": 1.5, **row})


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_page_is_live_from_the_first_run_that_ends(monkeypatch, tmp_path, progress):
    monkeypatch.setattr(live, "PUBLISH_SECONDS", 0.1)
    plant(tmp_path, limit=1)
    page = tmp_path / "report.html"
    with LivePage(tmp_path) as writer, publishing(progress, writer):
        time.sleep(0.5)
        assert writer._build is None
        end(progress, "a")
        wait_for(page.exists)
        wait_for(lambda: writer.due > 0)
        written = page.stat().st_mtime_ns
        end(progress, "b")
        time.sleep(0.5)
        assert writer._build is None  # one build is due 20 times as long after the last
        assert page.stat().st_mtime_ns == written
    text = page.read_text()
    assert 'id="live"' in text
    assert "1 of 3 done" in text


def test_a_report_that_crashes_is_told_and_costs_nothing_else(monkeypatch, tmp_path, progress):
    monkeypatch.setattr(live, "PUBLISH_SECONDS", 0.1)
    for name in ("runs", "evaluations"):
        (tmp_path / f"{name}.parquet").write_text("not a table")
    with LivePage(tmp_path) as writer, publishing(progress, writer):
        end(progress, "a")
        wait_for(lambda: "cannot read" in progress.console.file.getvalue())
        end(progress, "b")
    printed = progress.console.file.getvalue()
    assert "the page could not be written, runs continue: error: cannot read" in printed
    assert "2 of 3 done" in printed  # the batch went on
    assert not (tmp_path / "report.html").exists()


def watch(*arguments):
    return subprocess.Popen(
        [sys.executable, scaling.__file__, "--watch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_study_can_be_watched_until_its_driver_ends(tmp_path, progress):
    out = tmp_path / "study"
    declare(resolve_study(load("tiny")), out)
    with lease(out), LivePage(out) as writer:
        watcher = watch(out)
        assert "is driven by process" in watcher.stdout.readline()
        with publishing(progress, writer):
            end(progress, "a")
            end(progress, "b", status="failed", error="loss is [not] finite")
        assert "run [a] 1.500 bits per dimension" in watcher.stdout.readline()
        assert "run [b] failed: loss is [not] finite" in watcher.stdout.readline()
        assert watcher.poll() is None
    printed = watcher.communicate(timeout=30)[0]
    assert "has ended" in printed
    assert watcher.returncode == 0
    assert (out / FILE).read_text() == ""  # nobody took the lease


def test_there_is_nothing_to_watch(tmp_path, call):
    code, printed = call(scaling, "--watch", tmp_path / "none")
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    plant(tmp_path / "study", limit=2)
    code, printed = call(scaling, "--watch", tmp_path / "study")
    assert code == 0
    assert printed.out == f"no process drives {tmp_path / 'study'}; 2 runs done\n"


@with_ray
def test_a_driver_tells_watchers_and_leaves_a_page_that_rests(call, tmp_path):
    study = write_study(tmp_path, wee("wee"))
    out = tmp_path / "out"
    assert call(scaling, study, "--out", out)[0] == 0
    assert len(rows(out)) == 4
    assert '"4 of 4 done' in (out / live.FILE).read_text()
    assert 'id="live"' not in (out / "report.html").read_text()
