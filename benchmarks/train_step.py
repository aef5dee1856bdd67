"""Share of this machine's float32 GEMM rate that a training step on the CPU reaches.

    python benchmarks/train_step.py [--check] [--threads 2] [--micro-batch 4]

A step of a 256-channel flow (4 blocks of 4 layers, 256 tokens, batch 16: noise, forward, backward,
clipping, AdamW) and the plain matrix products of its layers alternate, so that both see the same
machine. FLOPs are those of `tarflow.cost`. Prints both rates and the median of the rounds' ratios;
with --check the exit code is 1 below 75%.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from tarflow import cost
from tarflow.config import DataConfig, ExecutionConfig, ModelConfig, RunConfig
from tarflow.device import choose_device
from tarflow.training import new_state, train_step

BATCH = 16
ROUNDS = 7
REQUIRED = 0.75


def main() -> None:
    """Measure and print; exit 1 below the required share if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 below the required share")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--micro-batch", type=int, default=0, help="images per pass; 0: all")
    arguments = parser.parse_args()
    choose_device(ExecutionConfig(device="cpu", threads=arguments.threads))
    model = ModelConfig(image_size=32, image_channels=3, patch=2, channels=256, blocks=4, layers=4)
    step = training_step(model, arguments.micro_batch)
    products = layer_products(model)
    steps, rates, shares = [], [], []
    step(), products()  # the first calls allocate
    for _ in range(ROUNDS):
        before = rate(products)
        steps.append(rate(step))
        rates.append((before + rate(products)) / 2)
        shares.append(steps[-1] / rates[-1])
    share = statistics.median(shares)
    print(
        f"threads {arguments.threads}, micro-batch {arguments.micro_batch}: "
        f"step {statistics.median(steps) / 1e9:.1f} GFLOP/s, "
        f"matrix products {statistics.median(rates) / 1e9:.1f} GFLOP/s, "
        f"share {share:.3f} (rounds {min(shares):.3f} to {max(shares):.3f})"
    )
    if arguments.check and share < REQUIRED:
        sys.exit(f"the training step reaches {share:.0%} of the GEMM rate, below {REQUIRED:.0%}")


def training_step(model: ModelConfig, micro_batch: int) -> Callable[[], float]:
    """Return a function that does one training step and tells its FLOPs."""
    config = RunConfig(
        model=model,
        data=DataConfig(hash="none"),
        precision="float32",
        batch=BATCH,
        images=BATCH * 1000,
        execution=ExecutionConfig(device="cpu", micro_batch=micro_batch),
    )
    state = new_state(config, torch.device("cpu"))
    shape = (BATCH, model.image_channels, model.image_size, model.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)

    def step() -> float:
        train_step(state, state.flow, pixels, None, config)
        return float(cost.training_flops(model)) * BATCH

    return step


def layer_products(model: ModelConfig) -> Callable[[], float]:
    """Return a function that multiplies what a layer multiplies, and tells its FLOPs."""
    width, rows = model.channels, BATCH * model.tokens
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    factors = [
        (torch.randn(rows, inner), torch.randn(outer, inner).T, torch.empty(rows, outer))
        for inner, outer in shapes
    ]

    def products() -> float:
        for _ in range(model.layers):
            for left, right, out in factors:
                torch.mm(left, right, out=out)
        return 2.0 * rows * sum(inner * outer for inner, outer in shapes) * model.layers

    return products


def rate(work: Callable[[], float]) -> float:
    """Return FLOPs per second of one call."""
    begin = time.perf_counter()
    flops = work()
    return flops / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
