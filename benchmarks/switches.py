"""What each switch of training costs and gains on this CPU: time of a step and peak memory.

    python benchmarks/switches.py [--threads 2] [--rounds 5]

Steps of a 256-channel flow (4 blocks of 4 layers, 256 tokens, batch 16) that differ by one switch
take turns, each in a process of its own. Printed are the median over the rounds of the time of the
step with every switch at its default over that of the step, and the most memory its process held.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from train_step import CPU, LARGE, LARGE_BATCH, elsewhere, random_pixels, run_config

from tarflow.config import ExecutionConfig, OptimConfig, RunConfig
from tarflow.device import choose_device, resolve_precision
from tarflow.resume import new_state
from tarflow.training import train_step


def variants(threads: int) -> dict[str, RunConfig]:
    """Return the default first, then what differs by one switch."""
    execution = ExecutionConfig(device="cpu", threads=threads, micro_batch=LARGE_BATCH)
    precision = resolve_precision("auto", CPU, LARGE)
    default = replace(run_config(LARGE, LARGE_BATCH), precision=precision, execution=execution)

    def executed(**switch: bool | int) -> RunConfig:
        return replace(default, execution=replace(execution, **switch))

    return {
        f"default ({precision})": default,
        "precision: float32": replace(default, precision="float32"),
        "precision: bfloat16": replace(default, precision="bfloat16"),
        "compile: true": executed(compile=True),
        "checkpoint_activations: true": executed(checkpoint_activations=True),
        "micro_batch: 4": executed(micro_batch=4),
        "micro_batch: 1": executed(micro_batch=1),
        "optimizer: muon": replace(default, optim=OptimConfig(optimizer="muon")),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each")
    arguments = parser.parse_args()
    steps = {name: elsewhere(make, config) for name, config in variants(arguments.threads).items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = {}
    for number in range(arguments.rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            peaks[name] = step()
            if number:  # the first steps allocate and compile
                seconds[name].append(time.perf_counter() - begin)
    default = next(iter(seconds.values()))
    print(f"{'':30} {'ms':>7} {'speed':>6} {'MiB':>6}")
    for name, each in seconds.items():
        speed = median(first / own for first, own in zip(default, each, strict=True))
        print(f"{name:30} {median(each) * 1e3:7.0f} {speed:6.2f} {peaks[name] / 2**20:6.0f}")


def make(config: RunConfig) -> Callable[[], object]:
    """Return a training step of this run."""
    choose_device(config.execution)
    state, pixels = new_state(config, CPU), random_pixels(config.model, config.batch)
    return lambda: train_step(state, state.flow, pixels, None, config)


if __name__ == "__main__":
    main()
