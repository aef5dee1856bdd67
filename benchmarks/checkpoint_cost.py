"""What saving training states costs: seconds of training lost to one state, behind and in front.

Run it on an idle machine: python benchmarks/checkpoint_cost.py [FOLDER]
The bar: under 2% of training time at the default interval, which is stretched where states are
dear. Exits with 1 if it is not met.

Windows of training take turns: without a state, with one written behind training as runs do, and
with one that training waits for. What a window has done less than its neighbour without one, in
seconds, is the cost of a state; over the interval it is a share.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tarflow import data
from tarflow.config import DataConfig, ExecutionConfig, ModelConfig, RunConfig
from tarflow.device import choose_device, synchronize
from tarflow.train import loop as training
from tarflow.train import state as resume
from tarflow.train.checkpoint import StateWriter
from tarflow.train.step import TrainStep

WINDOW, ROUNDS = 6.0, 5  # seconds, and windows of each kind
BAR = 0.02
CONFIG = RunConfig(
    model=ModelConfig(patch=4, channels=512, blocks=4, layers=3, classes=10),
    data=data.hash_data(DataConfig()),
    images=1 << 20,
    batch=16,
    precision="float32",
)


def window(step: Callable[[], None], seconds: float) -> float:
    """Train for some seconds and return the steps per second."""
    begin, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        step()
        steps += 1
    return steps / spent


def main() -> int:
    """Print the cost of a state and its share of the default interval."""
    device = choose_device(CONFIG.execution)
    state = resume.new_state(CONFIG, device)
    batches = training.batches(CONFIG, 0, device)

    update = TrainStep(state, CONFIG)

    def step() -> None:
        update(*next(batches))
        synchronize(device)

    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        where = Path(folder)
        with StateWriter(where) as writer:

            def behind() -> None:
                resume.save(state, writer)

            def before() -> None:
                resume.save(state, writer)
                writer.wait()

            window(step, 3.0)
            before()
            size = max(path.stat().st_size for path in where.iterdir())
            lost: dict[str, list[float]] = {"behind training": [], "in front of it": []}
            blocked, intervals = [], []
            for _ in range(ROUNDS):
                for name, save in zip(lost, (behind, before), strict=True):
                    alone = window(step, WINDOW)
                    begin = time.perf_counter()
                    save()
                    blocked += [time.perf_counter() - begin] if save is behind else []
                    spent = time.perf_counter() - begin
                    steps = window(step, WINDOW - spent) * (WINDOW - spent)
                    writer.wait()
                    intervals.append(writer.interval(ExecutionConfig().checkpoint_seconds))
                    lost[name].append(WINDOW - steps / alone)
    wanted, interval = ExecutionConfig().checkpoint_seconds, statistics.median(intervals)
    print(
        f"a state of {size / 1e6:.0f} MB: every {interval:.0f} s, where {wanted:g} s are asked for"
    )
    print(f"training stands still for {statistics.median(blocked):.3f} s (the copy)")
    for name, seconds in lost.items():
        cost = statistics.median(seconds)
        print(
            f"written {name}: {cost:6.2f} s of training lost, {cost / interval:.2%} of it   "
            f"(single windows: {', '.join(f'{each:.2f}' for each in sorted(seconds))})"
        )
    share = statistics.median(lost["behind training"]) / interval
    print(f"bar {BAR:.0%}: {'met' if share < BAR else 'not met'}")
    return int(share >= BAR)


if __name__ == "__main__":
    sys.exit(main())
