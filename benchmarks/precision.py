"""Measure what a precision of training costs in bits per dimension, by kind of noise.

    python benchmarks/precision.py [--precisions float32 bfloat16] [--images 40000] [--device cuda]

Trains a 64-channel model (4 blocks of 2 layers) with the recipe of the `digits` preset, at a
quarter of its rate because half of it diverged with uniform noise. Trains with uniform and with
Gaussian noise in each precision, three seeds each, and scores the held-out images in float32.
Prints the BPD of every run, and for each precision its difference from the first one, mean over
seeds and standard error: runs of one seed see the same images and noise, so they are compared in
pairs. Beside the mean over images it gives the median, because with uniform noise single digits
can cost thousands of bits. A run that diverges has no BPD (nan).
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from sweeps.design.presets import load
from sweeps.design.study import learning_rate
from tarflow import data
from tarflow.config import ExecutionConfig, NoiseConfig, RunConfig, round_images
from tarflow.device import choose_device
from tarflow.evaluate.held_out import held_out_likelihood
from tarflow.model.weights import build
from tarflow.train.loop import train
from tarflow.train.step import Diverged

STUDY, CHANNELS = load("digits"), 64
NOISES = {
    "uniform": NoiseConfig(type="uniform"),
    "gaussian": NoiseConfig(std=0.1),
}
SUMMARIES = {"mean": np.mean, "median": np.median}


def main() -> None:
    """Train every run, print its BPD, then the differences from the first precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--images", type=int, default=40000, help="training images of each run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    base = STUDY.base
    base = replace(
        base,
        model=replace(base.model, channels=CHANNELS, blocks=4, layers=2),
        data=data.hash_data(base.data),
        optim=replace(base.optim, lr=learning_rate(STUDY, CHANNELS) / 4),
        images=round_images(arguments.images, base.batch),
        execution=ExecutionConfig(device=arguments.device, threads=arguments.threads),
    )
    baseline, *others = arguments.precisions
    for name in arguments.noises:
        bits: dict[str, list[dict[str, float]]] = {
            precision: [] for precision in arguments.precisions
        }
        for seed in arguments.seeds:
            for precision, runs in bits.items():
                runs.append(bpd(replace(base, noise=NOISES[name], seed=seed, precision=precision)))
                listed = ", ".join(f"{key} {value:.4f}" for key, value in runs[-1].items())
                print(f"{name} noise, seed {seed}, {precision}: BPD {listed}", flush=True)
        for precision in others:
            for key in SUMMARIES:
                costs = [
                    run[key] - first[key]
                    for run, first in zip(bits[precision], bits[baseline], strict=True)
                ]
                print(f"{name} noise: {precision} - {baseline}, {key} BPD {with_error(costs)}")


def bpd(config: RunConfig) -> dict[str, float]:
    """Train a run and return the mean and the median BPD of its held-out images."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            state = train(config, Path(folder))
        except Diverged:
            return dict.fromkeys(SUMMARIES, math.nan)
    flow = build(config.model, state.ema).to(choose_device(config.execution))
    scores = held_out_likelihood(flow, config).bpd
    return {key: float(summary(scores)) for key, summary in SUMMARIES.items()}


def with_error(values: list[float]) -> str:
    """Format a mean and its standard error, which takes at least two values."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{np.mean(values):+.4f} ± {error:.4f}"


if __name__ == "__main__":
    main()
