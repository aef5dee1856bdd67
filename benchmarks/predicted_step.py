"""Compare training steps and memory on this GPU with `tarflow.step_time` and `tarflow.cost`.

    python benchmarks/predicted_step.py [--rounds 5]

Each step runs in a separate process; they take turns. This needs a CUDA device that
`tarflow.cost.ACCELERATORS` knows, with 60 GB of memory for all of them.
"""

import argparse
import sys
from dataclasses import replace
from statistics import median

from train_step import LARGE, SMALL, in_subprocess, measure, our_step, run_config

from sweeps.hardware import accelerators
from tarflow import cost
from tarflow.config import ExecutionConfig, RunConfig
from tarflow.model_config import ModelConfig
from tarflow.step_time import Cluster, step_time

PAPER = ModelConfig(
    image_size=64, image_channels=3, patch=2, channels=768, blocks=8, layers=8
)  # of ImageNet 64x64


def runs() -> dict[str, RunConfig]:
    """Return the runs to measure, by name."""
    execution = ExecutionConfig(device="cuda")
    compiled = replace(execution, compile=True)
    checkpointed = replace(execution, checkpoint_activations=True)
    middle = replace(LARGE, channels=512)
    return {
        "64 channels, 4x2, 16 tokens, 128 images": run_config(SMALL, 128, "bfloat16", execution),
        "256 channels, 4x4, 256 tokens, 16 images": run_config(LARGE, 16, "bfloat16", execution),
        "256 channels, 16 images, float32": run_config(LARGE, 16, "float32", execution),
        "256 channels, 128 images": run_config(LARGE, 128, "bfloat16", execution),
        "256 channels, 128 images, compiled": run_config(LARGE, 128, "bfloat16", compiled),
        "256 channels, 128 images, checkpointed": run_config(LARGE, 128, "bfloat16", checkpointed),
        "512 channels, 128 images, compiled": run_config(middle, 128, "bfloat16", compiled),
        "768 channels, 8x8, 1024 tokens, 8 images": run_config(PAPER, 8, "bfloat16", execution),
        "768 channels, 8 images, compiled": run_config(PAPER, 8, "bfloat16", compiled),
    }


def main() -> None:
    """Measure every run and print it beside its prediction."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="number of steps of each run")
    arguments = parser.parse_args()
    if not (names := accelerators()):
        sys.exit("this machine has no GPU that tarflow.cost.ACCELERATORS knows")
    device = cost.ACCELERATORS[names[0]]
    alone = Cluster(device=device, per_node=1)
    steps = {name: in_subprocess(our_step, config) for name, config in runs().items()}
    seconds = measure(steps, arguments.rounds)
    print(
        f"{names[0]:44} {'ms':>7} {'of predicted':>12} {'MFU':>6} {'GB':>6} {'of predicted':>12}"
        "\nMFU counts causal attention, T(T+1)/2 pairs, and forward x 3"
    )
    for name, config in runs().items():
        measured, peak = median(seconds[name]), steps[name]()
        predicted = step_time(config, alone).seconds
        flops = cost.training_flops(config.model) * config.batch
        mfu = flops / measured / device.flops[config.precision]
        memory = cost.memory(config, device.memory).total
        print(
            f"{name:44} {measured * 1e3:7.1f} {measured / predicted:12.2f} {mfu:6.3f} "
            f"{peak / 1e9:6.2f} {peak / memory:12.2f}"
        )


if __name__ == "__main__":
    main()
