"""Measure the start-up time of common commands, beside an interpreter that does nothing.

Run it on an idle machine: python benchmarks/startup.py
The bars: a dry run under 3 s, the help of `python -m tarflow` under 1 s. The exit code is 1 if one
is missed.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCALING = str(Path(__file__).parents[1] / "sweeps" / "scaling.py")
COMMANDS = {
    "python -c pass": (["-c", "pass"], None),
    "python -m tarflow --help": (["-m", "tarflow", "--help"], 1.0),
    "python sweeps/scaling.py --help": ([SCALING, "--help"], None),
    "python sweeps/scaling.py --dry-run": ([SCALING, "--dry-run"], 3.0),
}
REPEATS = 7


def main() -> int:
    """Time every command in turn, several times, and print the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS + 1):
            for name, (arguments, _) in COMMANDS.items():
                start = time.perf_counter()
                command = [sys.executable, *arguments]
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                if repeat:  # the first round fills caches: bytecode, device speed
                    seconds[name].append(time.perf_counter() - start)
    bare = statistics.median(seconds["python -c pass"])
    missed = False
    for name, (_, bar) in COMMANDS.items():
        median = statistics.median(seconds[name])
        missed = missed or (bar is not None and median > bar)
        against = f"   bar {bar:g} s" if bar else ""
        print(f"{name:36} {median:6.2f} s   {median / bare:5.1f} x bare{against}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
