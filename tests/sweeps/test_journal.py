"""A search continues from what a crash leaves of its journal."""

import json

import optuna
import pytest

from sweeps.journal import FILE, completed, cut_to_whole_lines, open_journal, open_study
from sweeps.presets import load
from sweeps.space import TrainingSpace
from sweeps.study import resolve_study


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
