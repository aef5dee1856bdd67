"""Measure the seconds of training that saving one training state costs.

Run it on an idle machine: python benchmarks/checkpoint_cost.py [FOLDER]
The bar is 2% of training time at the default interval, which is longer where states are
expensive. The exit code is 1 if the bar is missed.

Windows of training take turns: without a state, with one written in the background as runs do, and
with one that training waits for. The cost of a state is the training that its window loses against
the neighbouring window without one, in seconds, and as a share of the interval.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tarflow import data
from tarflow.config import DataConfig, ExecutionConfig, RunConfig
from tarflow.device import synchronize
from tarflow.execution import resolve_execution
from tarflow.model_config import ModelConfig
from tarflow.train import checkpoint
from tarflow.train.checkpoint import CheckpointWriter
from tarflow.train.cuda_graph import make_train_step
from tarflow.train.loop import batches as batches_of
from tarflow.train.state import new_state

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
    """Train for a number of seconds and return the steps per second."""
    begin, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        step()
        steps += 1
    return steps / spent


def main() -> int:
    """Print the cost of a state and its share of the default interval."""
    execution = resolve_execution(CONFIG)
    state, device = new_state(CONFIG, execution), execution.device
    batches = batches_of(CONFIG, 0, device)
    update = make_train_step(state, CONFIG, execution)

    def step() -> None:
        update(*next(batches))
        synchronize(device)

    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
        state_folder = Path(folder)
        with CheckpointWriter(state_folder) as writer:

            def save_in_background() -> None:
                checkpoint.save(state, writer)

            def save_and_wait() -> None:
                checkpoint.save(state, writer)
                writer.wait()

            window(step, 3.0)
            save_and_wait()
            size = max(path.stat().st_size for path in state_folder.iterdir())
            lost: dict[str, list[float]] = {"in the background": [], "while training waits": []}
            blocked, intervals = [], []
            for _ in range(ROUNDS):
                for name, save in zip(lost, (save_in_background, save_and_wait), strict=True):
                    alone = window(step, WINDOW)
                    begin = time.perf_counter()
                    save()
                    blocked += [time.perf_counter() - begin] if save is save_in_background else []
                    spent = time.perf_counter() - begin
                    steps = window(step, WINDOW - spent) * (WINDOW - spent)
                    writer.wait()
                    intervals.append(writer.interval(ExecutionConfig().checkpoint_seconds))
                    lost[name].append(WINDOW - steps / alone)
    requested, interval = ExecutionConfig().checkpoint_seconds, statistics.median(intervals)
    print(f"a state of {size / 1e6:.0f} MB: every {interval:.0f} s; {requested:g} s requested")
    print(f"training stops for {statistics.median(blocked):.3f} s (the copy)")
    for name, seconds in lost.items():
        cost = statistics.median(seconds)
        print(
            f"written {name}: {cost:6.2f} s of training, {cost / interval:.2%} of the interval"
            f"   (single windows: {', '.join(f'{loss:.2f}' for loss in sorted(seconds))})"
        )
    share = statistics.median(lost["in the background"]) / interval
    print(f"bar {BAR:.0%}: {'met' if share < BAR else 'missed'}")
    return int(share >= BAR)


if __name__ == "__main__":
    sys.exit(main())
