"""Measure what `ray submit` adds to a study on a cluster of three machines.

Run it as root on an idle machine: python benchmarks/submitted_study.py [STUDY ...]
The bars: a training step has been taken within 30 s of the command, and less than 25% of the time
of the slots is spent outside the runs of `digits`. The exit code is 1 if one is missed.

The machines are those of tests/cluster: namespaces on this box, which share its cores. They offer
one core each.
"""

import datetime
import json
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/cluster"))

from machines import SHARED, what_is_missing  # noqa: E402
from test_machines import FILE, Boxes, laptop_and_nodes, start_cluster  # noqa: E402

FIRST, OUTSIDE = 30.0, 0.25  # bars: seconds, and a share of the slots' time


def main() -> int:
    """Submit each study to a warm cluster, and print its times."""
    if reason := what_is_missing():
        sys.exit(f"error: the test cluster {reason}")
    names = sys.argv[1:] or ["tiny", "digits"]
    with tempfile.TemporaryDirectory() as folder, laptop_and_nodes(Path(folder)) as boxes:
        start_cluster(boxes)
        met = [submit(name, boxes) for name in names]
        boxes.run(f"ray down --yes {FILE}")
    return 0 if all(met) else 1


def submit(name: str, boxes: Boxes) -> bool:
    """Carry out a study, print its times, and tell whether it meets the bars."""
    submitted = time.time()
    boxes.run(f"ray submit {FILE} sweeps/scaling.py -- {name} --out {SHARED}/{name} --yes")
    whole = time.time() - submitted
    out = boxes.work / "shared" / name
    first = min(map(first_steps, out.glob("runs/*"))) - submitted
    outcome = json.loads((out / "outcome.json").read_text())
    outside = 1 - outcome["device_seconds"] / (outcome["devices"] * outcome["wall_seconds"])
    print(f"{name}, {datetime.date.today():%d %B %Y}: {whole:.0f} s from `ray submit` to its end")
    print(f"  the first training steps end after {first:.1f} s (bar {FIRST:g})")
    print(f"  {outside:.0%} of the time of {outcome['devices']:g} slots is outside runs", end="")
    print(f" (bar {OUTSIDE:.0%})" if name == "digits" else "")
    for line in (boxes.work / "log").read_text().splitlines():
        if line.startswith(("expected:", "after 3 runs:", "spent:")):
            print(f"  {line}")
    return first < FIRST and (outside < OUTSIDE or name != "digits")


def first_steps(run: Path) -> float:
    """Return the Unix time of the first row in the curve of a run."""
    row = json.loads((run / "result.json").read_text())["run"]
    curve = pd.read_parquet(run / "curve.parquet")
    return datetime.datetime.fromisoformat(row["started"]).timestamp() + curve["seconds"].iloc[0]


if __name__ == "__main__":
    sys.exit(main())
