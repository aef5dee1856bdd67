"""Compare runs of several workers side by side with the same runs one after another.

    python benchmarks/side_by_side.py

Nothing is trained: a clock jumps from the end of one run to the next on machines that exist on
paper, and `sweeps/running/room.py` decides what starts, from expectations that are off by up to
30%. The bar is a third of the time that small runs, and then one large run after another, would
take.
"""

import random
import sys
from dataclasses import replace

from sweeps.running.room import Machines, Occupant, free, may_start, tightest

BAR = 1 / 3
MACHINES = {str(node): {"CPU": 64.0, "GPU": 8.0} for node in range(8)}
ERROR = 0.3  # of an expectation


def study(seed: int) -> list[tuple[Occupant, float]]:
    """Return runs with their expected ends, the largest first, and the seconds that they take."""
    rng = random.Random(seed)
    sizes = [8] * 16 + [16] * 4 + [32] + [1] * 200
    runs = [
        Occupant({"CPU": 1.0, "GPU": 1.0 if size > 1 else 0.25}, size, rng.uniform(600, 7200))
        for size in sizes
    ]
    runs.sort(key=lambda run: (-run.workers, -run.ends))
    return [(run, run.ends * rng.uniform(1 - ERROR, 1 + ERROR)) for run in runs]


def one_after_another(runs: list[tuple[Occupant, float]]) -> float:
    """Return the seconds of all runs when large ones wait for each other and for small ones."""
    small = [(run, seconds) for run, seconds in runs if run.workers == 1]
    large = [seconds for run, seconds in runs if run.workers > 1]
    return side_by_side(small, MACHINES) + sum(large)


def side_by_side(runs: list[tuple[Occupant, float]], machines: Machines) -> float:
    """Return the seconds of all runs by the rule."""
    now, waiting = 0.0, list(runs)
    running: list[tuple[Occupant, float]] = []  # with the expected and the true end, from 0
    while waiting or running:
        going = [replace(run, ends=max(run.ends - now, 1.0)) for run, _ in running]
        first, left = None, []
        for run, seconds in waiting:
            if may_start(run, first, machines, going):
                placed = replace(run, nodes=tuple(tightest(run, free(machines, going))))
                going.append(placed)
                running.append((replace(placed, ends=now + run.ends), now + seconds))
            else:
                first = first or run
                left.append((run, seconds))
        waiting = left
        now = min(end for _, end in running)
        running = [(run, end) for run, end in running if end > now]
    return now


def main() -> int:
    """Print both for a few studies; return 1 if the bar is missed."""
    shares = []
    for seed in range(5):
        runs = study(seed)
        before, after = one_after_another(runs), side_by_side(runs, MACHINES)
        work = sum(run.workers * run.needs["GPU"] * seconds for run, seconds in runs)
        shares.append(after / before)
        print(
            f"{len(runs)} runs on 64 GPUs: {before / 3600:.1f} h one after another, "
            f"{after / 3600:.1f} h side by side ({after / before:.2f}), "
            f"GPUs in use {work / before / 64:.0%} and {work / after / 64:.0%} of the time"
        )
    return int(max(shares) > BAR)


if __name__ == "__main__":
    sys.exit(main())
