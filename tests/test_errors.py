"""How commands end."""

import subprocess
import sys
from pathlib import Path

import pytest

import analysis.__main__
import tarflow.__main__

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command", [["-m", "tarflow", "cost"], ["-m", "analysis", "fit"], ["sweeps/search.py"]]
)
def test_a_reader_that_leaves_early_is_no_error(command):
    started = subprocess.Popen(
        [sys.executable, *command, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    started.stdout.close()  # as `| head` does, but surely before the first line
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait() == 141


def test_a_pipe_that_breaks_elsewhere_is_an_error():
    code = (
        "from tarflow.errors import exit_code_of\n"
        "def act(): raise BrokenPipeError('to a worker')\n"
        "exit_code_of(act)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == 1
    assert b"BrokenPipeError: to a worker" in ended.stderr


@pytest.mark.parametrize("program", [tarflow.__main__, analysis.__main__])
def test_help_tells_a_default_in_words_rather_than_none(program, capsys):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tarflow ")
    for name in program.COMMANDS:
        with pytest.raises(SystemExit):
            program.main([name, "--help"])
        assert "None" not in capsys.readouterr().out
