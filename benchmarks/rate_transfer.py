"""Measure the loss of using a learning rate at another size than the one it was tuned at.

    python benchmarks/rate_transfer.py FOLDER [--seconds 150] [--workers 2] [--check]

Flows of the `digits` preset train for 256 steps at rates a factor of two apart, three seeds each,
and are scored by the loss of their weight average (EMA) on the validation images. The best rate at
a small size is used at a large one. The regret is its loss minus that of the best rate there, in
nats per dimension, paired by seed. From 8 to 64 channels we compare one rate for all, the power
law of the preset, and `optim.base_channels`; in depth, which has no rule, one rate for 4 times the
layers and for 4 times the blocks. Muon is measured at both widths for comparison.

A rate is beyond the edge if the training of any seed fails or ends worse than an untrained flow.
With `--check` the exit code is 1 if twice the preset's rate is beyond the edge at any of its
widths.

The loss of every run is stored in FOLDER, so the same command resumes after `--seconds`. The
whole benchmark takes 15 min.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from sweeps.design.presets import load
from sweeps.design.study import learning_rate
from tarflow import data
from tarflow.config import ExecutionConfig, RunConfig
from tarflow.model import noise
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.train.loop import train
from tarflow.train.step import Diverged

STUDY = load("digits")
WIDTHS = tuple(size.channels for size in STUDY.sizes)
STEPS, SEEDS = 256, 3
RATES = tuple(2.5e-3 * 2.0**power for power in range(7))
MULTIPLES = (2, 4, 8, 16)  # of the preset's rate, to find the edge
FAILED = math.inf


@dataclass(frozen=True)
class Shape:
    """A model, the width at which its rates were tuned (0: no rule), and its optimizer."""

    channels: int
    blocks: int = 4
    layers: int = 1
    base_channels: int = 0
    optimizer: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Point:
    """One short run."""

    shape: Shape
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The file that stores its loss."""
        shape = self.shape
        size = f"c{shape.channels}-b{shape.blocks}-l{shape.layers}-base{shape.base_channels}"
        size += f"-{shape.optimizer}" * (shape.optimizer != "adamw")
        return f"{size}-{self.rate:.4g}-s{self.seed}.json"

    @property
    def config(self) -> RunConfig:
        """The run: the preset with another shape, rate and length."""
        shape, base = self.shape, STUDY.base
        return replace(
            base,
            model=replace(
                base.model, channels=shape.channels, blocks=shape.blocks, layers=shape.layers
            ),
            data=data.hash_data(base.data),
            optim=replace(
                base.optim,
                lr=self.rate,
                base_channels=shape.base_channels,
                optimizer=shape.optimizer,
            ),
            images=STEPS * base.batch,
            seed=self.seed,
            execution=ExecutionConfig(device="cpu", threads=1, micro_batch=base.batch),
        )


NARROW, WIDE, RULED = Shape(8), Shape(64), Shape(64, base_channels=8)
NARROW_MUON, WIDE_MUON = Shape(8, optimizer="muon"), Shape(64, optimizer="muon")
SHALLOW, LAYERS, BLOCKS = Shape(16, 2, 1), Shape(16, 2, 4), Shape(16, 8, 1)
NAMES = {
    NARROW: "8 channels",
    WIDE: "64 channels",
    RULED: "64, base_channels 8",
    NARROW_MUON: "8, Muon",
    WIDE_MUON: "64, Muon",
    SHALLOW: "2 blocks of 1 layer",
    LAYERS: "2 blocks of 4",
    BLOCKS: "8 blocks of 1",
}


def main() -> None:
    """Train the missing runs, print, and with --check judge the edges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="stores the loss of every run")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after this many seconds"
    )
    parser.add_argument("--workers", type=int, default=2, help="number of runs at a time")
    parser.add_argument("--check", action="store_true", help="exit 1 if an edge is too close")
    arguments = parser.parse_args()
    runs = Runs(arguments.folder, arguments.workers, time.monotonic() + arguments.seconds)
    runs.train([point for shape in NAMES for rate in RATES for point in seeds(shape, rate)])
    tuned = best_rate(runs, NARROW)
    powered = tuned * (WIDE.channels / NARROW.channels) ** STUDY.lr_power
    runs.train(seeds(WIDE, powered))
    print(f"loss after {STEPS} steps of {STUDY.base.batch} images, mean of {SEEDS} seeds")
    print(f"{'':20}" + "".join(f"{rate:9.2g}" for rate in RATES))
    for shape, name in NAMES.items():
        means = (statistics.mean(runs.losses(shape, rate)) for rate in RATES)
        print(f"{name:20}" + "".join(f"{mean:9.4f}" for mean in means))
    shallow = best_rate(runs, SHALLOW)
    print("\nregret of the rate tuned at the small size, against the best under the same rule")
    print("and the best under any rule, with standard errors")
    widths = [WIDE, RULED]
    for name, shape, rate, rivals in (
        ("8 to 64 channels, one rate for all", WIDE, tuned, widths),
        (f"8 to 64 channels, power {STUDY.lr_power}", WIDE, powered, widths),
        ("8 to 64 channels, base_channels 8", RULED, tuned, widths),
        ("4 times the layers, one rate", LAYERS, shallow, [LAYERS]),
        ("4 times the blocks, one rate", BLOCKS, shallow, [BLOCKS]),
    ):
        same_rule, any_rule = (regret(runs, shape, rate, best) for best in ([shape], rivals))
        print(f"{name:36} {rate:6.2g}  {same_rule:18} {any_rule}")
    print("\nthe preset's rate, and the multiple of it that is beyond the edge")
    too_close = [channels for channels in WIDTHS if edge(runs, channels) == MULTIPLES[0]]
    if arguments.check and too_close:
        sys.exit(f"twice the preset's rate is beyond the edge at {too_close} channels")


class Runs:
    """Trains short runs and stores their losses in a folder."""

    def __init__(self, folder: Path, workers: int, until: float) -> None:
        self.folder, self.workers, self.until = folder, workers, until
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, points: Sequence[Point]) -> None:
        """Train the runs that the folder lacks; leave the program when the time is over."""
        missing = [point for point in points if not (self.folder / point.name).exists()]
        if missing and time.monotonic() < self.until:
            with ProcessPoolExecutor(self.workers, get_context("spawn")) as pool:
                list(pool.map(self.train_one, missing))
        if left := sum(not (self.folder / point.name).exists() for point in missing):
            sys.exit(f"{left} runs of this part are missing: run the same command again")

    def train_one(self, point: Point) -> None:
        """Train one run and store its loss, unless the time is over."""
        if time.monotonic() < self.until:
            (self.folder / point.name).write_text(json.dumps(loss_of(point)))

    def losses(self, shape: Shape, rate: float) -> list[float]:
        """Return the losses of a shape at a rate, one per seed."""
        points = seeds(shape, rate)
        return [float(json.loads((self.folder / point.name).read_text())) for point in points]


def seeds(shape: Shape, rate: float) -> list[Point]:
    """Return the runs of a shape at a rate, one for every seed."""
    return [Point(shape, rate, seed) for seed in range(SEEDS)]


def loss_of(point: Point) -> float:
    """Train and return the validation loss of the weight average (EMA), or `FAILED`."""
    config = point.config
    with tempfile.TemporaryDirectory() as folder:
        try:
            state = train(config, Path(folder))
        except Diverged:
            return FAILED
    loss = validation_loss(state.flow, state.ema, config)
    untrained = TarFlow(config.model)
    return loss if loss < validation_loss(untrained, {}, config) else FAILED


@torch.no_grad()
def validation_loss(
    flow: TarFlow, weights: Mapping[str, torch.Tensor], config: RunConfig
) -> float:
    """Return the mean loss (nats per dimension) of the validation images with fixed noise."""
    flow.load_state_dict(weights, strict=bool(weights))
    images = data.open_split(config.data, "validation")
    pixels = torch.from_numpy(data.batch(images, np.arange(len(images))))
    rng = noise.generator(0, "validation")
    noised = noise.noisy(pixels, config.noise, rng, torch.float32)
    labels = torch.tensor(images.labels)
    return float(negative_log_likelihood(*flow.eval()(noised, labels)).mean())


def best_rate(runs: Runs, shape: Shape) -> float:
    """Return the rate with the lowest mean loss."""
    means = {rate: statistics.mean(runs.losses(shape, rate)) for rate in RATES}
    return min(means, key=lambda rate: means[rate])


def regret(runs: Runs, shape: Shape, rate: float, rivals: Sequence[Shape]) -> str:
    """Compare a rate with the best rate of all rivals: mean over seeds and standard error."""
    losses = runs.losses(shape, rate)
    if FAILED in losses:
        return "fails"
    candidates = [runs.losses(rival, best_rate(runs, rival)) for rival in rivals]
    best = min(candidates, key=statistics.mean)
    paired = [loss - lowest for loss, lowest in zip(losses, best, strict=True)]
    error = statistics.stdev(paired) / SEEDS**0.5
    return f"{statistics.mean(paired):.4f} +- {error:.4f}"


def edge(runs: Runs, channels: int) -> int:
    """Print the preset's rate at a width; return the first multiple that fails, or 0."""
    shape, rate = Shape(channels), learning_rate(STUDY, channels)
    failed = 0
    for factor in MULTIPLES:
        runs.train(seeds(shape, factor * rate))
        if FAILED in runs.losses(shape, factor * rate):
            failed = factor
            break
    multiple = f"{failed} times" if failed else f"above {MULTIPLES[-1]} times"
    print(f"{channels:3} channels {rate:8.3g}  {multiple}")
    return failed


if __name__ == "__main__":
    main()
