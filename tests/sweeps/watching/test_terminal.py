"""What a user sees of a study in a terminal: a real one of 60 columns, on the screen it draws."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_studies import wee, write_study

from sweeps import scaling
from sweeps.design.study import Point
from sweeps.watching.bars import as_table

COLUMNS, ROWS = 60, 50
SCRIPT = Path(scaling.__file__)
pyte = pytest.importorskip("pyte")


def in_terminal(*arguments):
    """Carry out a study in a terminal; return its exit code, what it wrote, and every screen."""
    environment = os.environ | {"NO_COLOR": "1", "RAY_ADDRESS": "local", "TERM": "xterm"}
    environment.pop("COLUMNS", None)  # would count more than the terminal
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (ROWS, COLUMNS))
    command = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment,
        start_new_session=True,
    )
    os.close(side)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    screens, written = [], b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        stream.feed(data)
        written += data
        screens.append("\n".join(line.rstrip() for line in screen.display))
    os.close(main)
    return command.wait(), written.decode(errors="replace"), screens


def test_a_bar_is_as_long_as_the_share_that_is_done():
    console = Console(width=COLUMNS, file=io.StringIO(), no_color=True)
    running = [
        {"label": f"run {share:.0%}", "share": share, "loss": -0.5, "left": 4.0}
        for share in (0.0, 0.5, 1.0)
    ]
    console.print(as_table({"running": running, "counts": "0 of 3 done"}, COLUMNS))
    lengths = [line.count("━") for line in console.file.getvalue().splitlines()[:3]]
    assert lengths[0] == 0
    assert 0 < 2 * lengths[1] == lengths[2]


@pytest.mark.ray
def test_a_terminal_shows_a_bar_per_run_and_keeps_a_line_per_end(tmp_path, call):
    slow = Point(size="c8-b2-l1", budget=3e10)  # long enough for a bar to move
    study, out = write_study(tmp_path, replace(wee("seen"), held_out=slow)), tmp_path / "out"
    code, written, screens = in_terminal(study, "--out", out)
    assert code == 0
    assert any(re.search(r"starting Ray on \d+ cores$", screen.rstrip()) for screen in screens)
    bar = re.compile(r"^c8-b2-l1-3e10-s0 [━╸ ]+\d+% loss -?\d+\.\d+ +\S+ \w+ left$", re.M)
    shown = {line for screen in screens for line in screen.split("\n")}
    assert any(map(bar.search, shown)), sorted(shown)
    last = screens[-1]
    ended = re.findall(r"^c\d+-b2-l1-\de\d+-s\d \d\.\d+ bits per dimension, ", last, re.M)
    assert len(ended) == 4, last
    assert re.search(r"^4 of 4 done · best \S+ bits per dimension$", last, re.M)
    assert not bar.search(last)
    assert re.search(r"^expected: .*\n(.*\n)?after 3 runs: .*\n(.*\n)?spent: ", last, re.M)
    assert "overhead" not in last
    assert not re.search(r"\x1b\[[\d;]*3\dm", written)  # NO_COLOR
    code, printed = call(scaling, study, "--out", out, "--quiet", "--tracker", "tensorboard")
    assert code == 0
    assert printed.out.startswith("report: ")
    assert "FLOPs; to do" not in printed.out
    assert len(list((out / "tensorboard").iterdir())) == 4 + 1  # runs, and the study
