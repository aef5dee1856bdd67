"""A search continues from what a crash leaves of its journal."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

import optuna
import pytest

from sweeps.design.presets import load
from sweeps.design.study import resolve_study
from sweeps.searching.journal import (
    FILE,
    completed,
    cut_to_whole_lines,
    open_journal,
    open_study,
    tell_pruned,
)
from sweeps.searching.space import TrainingSpace


@pytest.fixture
def space():
    return TrainingSpace(resolve_study(load("tiny")), 1e9)


def try_one(space, out):
    """Carry out one trial, as a search does."""
    study = open_study(space, open_journal(out))
    trial = study.ask()
    space(trial)
    study.tell(trial, [1.0] * len(space.objectives))
    return study


@pytest.fixture
def journal(space, tmp_path):
    """A journal of two trials that have ended."""
    try_one(space, tmp_path)
    try_one(space, tmp_path)
    return tmp_path / FILE


DAMAGES = {
    "cut inside its last line": lambda content: content[:-9],
    "without its last line break": lambda content: content[:-1],
    "followed by NUL bytes": lambda content: content + bytes(4096),
    "NUL bytes in its last line": lambda content: content[:-30] + bytes(30),
    "half a character": lambda content: content + '{"ß'.encode()[:-1],
    "a new line glued to the stump": lambda content: content[:-9] + content.splitlines(True)[-1],
    "a number": lambda content: content + b"3\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_journal_is_cut_to_its_whole_lines(journal, space, capsys, damage):
    content = journal.read_bytes()
    damaged = damage(content)
    journal.write_bytes(damaged)
    open_journal(journal.parent)
    kept = journal.read_bytes()
    assert content.startswith(kept)
    assert len(content.splitlines()) - len(kept.splitlines()) == (not damaged.startswith(content))
    assert capsys.readouterr().err == (
        f"{journal} was damaged: cut {len(damaged) - len(kept)} bytes after its last whole line\n"
    )
    study = try_one(space, journal.parent)
    assert len(completed(study)) in (2, 3)  # the last line may have been the end of a trial
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    assert optuna.get_all_study_names(open_journal(journal.parent)) == [space.title]
    assert capsys.readouterr().err == ""


def test_a_journal_that_is_nothing_but_a_stump_starts_again(space, tmp_path):
    (tmp_path / FILE).write_bytes(b'{"op_co')
    assert len(completed(try_one(space, tmp_path))) == 1


def test_a_whole_journal_is_left_alone(journal, capsys):
    before = journal.read_bytes(), journal.stat().st_mtime_ns
    cut_to_whole_lines(journal, journal)
    assert (journal.read_bytes(), journal.stat().st_mtime_ns) == before
    assert capsys.readouterr().err == ""


def test_the_dashboard_shows_a_search(journal, space, tmp_path):
    pytest.importorskip("optuna_dashboard")
    study = open_study(space, open_journal(tmp_path))
    trial = study.ask()
    space(trial)
    tell_pruned(study, trial)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, str(journal), "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        dashboard = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end, studies = time.monotonic() + 60, None
        while studies is None:
            try:
                address = f"http://127.0.0.1:{port}/api/studies"
                with urllib.request.urlopen(address, timeout=5) as answer:
                    studies = json.load(answer)["study_summaries"]
            except OSError:
                running = dashboard.poll() is None and time.monotonic() < end
                assert running, (tmp_path / "log").read_text()
                time.sleep(0.2)
    finally:
        dashboard.terminate()
        dashboard.wait()
    names = optuna.get_all_study_names(open_journal(tmp_path))
    assert [study["study_name"] for study in studies] == names
