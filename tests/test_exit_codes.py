"""How commands end."""

import subprocess
import sys
from pathlib import Path

import pytest

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
