"""Measure what a precision of training costs in bits per dimension, by kind of noise.

    python benchmarks/precision.py [--precisions float32 bfloat16] [--images 40000] [--device cuda]

Trains one small model of digits (64 channels, 4 blocks of 2 layers) with Gaussian and with uniform
noise in each precision, three seeds each, and scores the held-out images in float32. Prints the
BPD of every run, and for each precision the mean difference from the first one with its standard
error: runs of one seed see the same images and noise, so they are compared in pairs. Two CPU runs
at a time would slow each other down; start it twice with other --seeds instead.
"""

import argparse
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from tarflow import data
from tarflow.config import EvaluationConfig, ExecutionConfig, ModelConfig, NoiseConfig, RunConfig
from tarflow.device import choose_device
from tarflow.evaluate.held_out import held_out_likelihood
from tarflow.model.weights import build
from tarflow.train.loop import train

NOISES = {
    "Gaussian noise 0.1": NoiseConfig(std=0.1),
    "uniform noise": NoiseConfig(type="uniform"),
}
BATCH = 64


def main() -> None:
    """Train every run, print its BPD, then the differences from the first precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--images", type=int, default=40000, help="training images of each run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    execution = ExecutionConfig(device=arguments.device, threads=arguments.threads)
    base = RunConfig(
        model=ModelConfig(channels=64, blocks=4, layers=2, classes=10),
        data=data.hash_data(RunConfig().data),
        images=max(1, arguments.images // BATCH) * BATCH,
        batch=BATCH,
        evaluation=EvaluationConfig(samples=0),
        execution=execution,
    )
    baseline, *others = arguments.precisions
    for name, noise in NOISES.items():
        bits: dict[str, list[float]] = {precision: [] for precision in arguments.precisions}
        for seed in arguments.seeds:
            for precision, values in bits.items():
                values.append(bpd(replace(base, noise=noise, seed=seed, precision=precision)))
                print(f"{name}, seed {seed}, {precision}: {values[-1]:.4f} BPD", flush=True)
        for precision in others:
            lost = difference(bits[precision], bits[baseline])
            print(f"{name}: {precision} costs {lost} against {baseline}")


def bpd(config: RunConfig) -> float:
    """Train a run and return the mean bits per dimension of its held-out images."""
    with tempfile.TemporaryDirectory() as folder:
        state = train(config, Path(folder))
    flow = build(config.model, state.ema).to(choose_device(config.execution))
    return float(held_out_likelihood(flow, config).bpd.mean())


def difference(values: list[float], baseline: list[float]) -> str:
    """Describe the mean difference of paired runs, and its standard error (from two seeds on)."""
    paired = [value - base for value, base in zip(values, baseline, strict=True)]
    error = statistics.stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else math.nan
    return f"{statistics.mean(paired):+.4f} ± {error:.4f} BPD"


if __name__ == "__main__":
    main()
