"""Measure what each switch of training costs and gains: time of a step and peak memory.

    python benchmarks/switches.py [--threads 2] [--rounds 5] [--device cuda]

Steps of a 256-channel flow (4 blocks of 4 layers, 256 tokens, batch 16) that differ by one switch
take turns, each in a separate process. Prints the speed relative to the step with every switch at
its default (the median over the rounds), and the peak memory of each process.
"""

import argparse
from dataclasses import replace
from statistics import median

import torch
from train_step import LARGE, LARGE_BATCH, in_subprocess, measure, our_step, ratio, run_config

from tarflow.config import ExecutionConfig, OptimConfig, RunConfig
from tarflow.device import choose_device
from tarflow.execution import choose_precision


def variants(execution: ExecutionConfig) -> dict[str, RunConfig]:
    """Return the default first, then the configs that differ from it by one switch."""
    precision, _ = choose_precision(choose_device(execution), RunConfig(model=LARGE))
    default = run_config(LARGE, LARGE_BATCH, precision, execution)

    def executed(**switch: bool | int) -> RunConfig:
        return replace(default, execution=replace(execution, **switch))

    return {
        f"default ({precision})": default,
        "precision: float32": replace(default, precision="float32"),
        "precision: bfloat16": replace(default, precision="bfloat16"),
        "fused: false": executed(fused=False),
        "fused: false, compile: true": executed(fused=False, compile=True),
        "checkpoint_activations: true": executed(checkpoint_activations=True),
        "micro_batch: 4": executed(micro_batch=4),
        "micro_batch: 1": executed(micro_batch=1),
        "optimizer: muon": replace(default, optim=OptimConfig(optimizer="muon")),
    }


def main() -> None:
    """Measure every switch and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of steps of each")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    runs = variants(ExecutionConfig(device=arguments.device, threads=arguments.threads))
    steps = {name: in_subprocess(our_step, config) for name, config in runs.items()}
    seconds = measure(steps, arguments.rounds)
    default = next(iter(steps))
    print(f"{'':30} {'ms':>7} {'speed':>6} {'MiB':>6}")
    for name, step in steps.items():
        speed, peak = ratio(seconds, default, name), step() / 2**20
        print(f"{name:30} {median(seconds[name]) * 1e3:7.0f} {speed:6.2f} {peak:6.0f}")


if __name__ == "__main__":
    main()
