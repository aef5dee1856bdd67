"""Check on unseen images that measured plans keep their tolerance and are as fast as they say.

    python benchmarks/plan_tolerance.py [--images 1024] [--batch 1] [--device cuda]

A small flow of colour `leaves` (64 channels, 4 blocks of 2 layers, 64 tokens) is trained first and
kept in the cache folder (2 min). Each plan then inverts latents that calibration has not seen: of
noised validation images, and draws from the prior. An error is the largest of any pixel of an
image, against sequential decoding. `beyond` is the share of images whose error exceeds the
tolerance; at most 0.1% should. Seconds are medians of 5 batches, which plan and sequential
decoding invert in turns; `expected` is what the plan says that a batch takes.
"""

import argparse
import statistics
import time

import torch
from against_official import trained
from torch import Tensor

from tarflow import data
from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
)
from tarflow.device import autocast, choose_device, describe_device, synchronize
from tarflow.model.flow import TarFlow
from tarflow.model.noise import generator, noisy, normal_per_image
from tarflow.model.weights import load_model
from tarflow.model_config import ModelConfig
from tarflow.sample.calibration import calibrate, calibration_images
from tarflow.sample.inverse import invert
from tarflow.sample.plan import Plan, default_tolerance

GUIDED = SamplerConfig(guidance=1.5)
STRICT = 1e-3
REFERENCE_BATCH = 256  # images that sequential decoding inverts at a time for the reference
REPEATS = 5
TRAINED = RunConfig(
    model=ModelConfig(
        image_size=32, image_channels=3, classes=10, patch=4, channels=64, head_dim=16, layers=2
    ),
    data=DataConfig(name="leaves"),
    noise=NoiseConfig(std=0.1),
    optim=OptimConfig(lr=2e-3, warmup_images=1600),
    images=16_000,
    batch=16,
    evaluation=EvaluationConfig(samples=0, decoder_images=20),
)


def main() -> None:
    """Print a table with two rows for each plan."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=1024, help="unseen images of each kind")
    parser.add_argument("--batch", type=int, default=1, help="images to invert at a time")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    flow, config = load_model(trained(TRAINED, "leaves-64-tokens"))
    device = choose_device(ExecutionConfig(device=arguments.device))
    flow = flow.to(device).eval().requires_grad_(False)
    print(
        f"{arguments.images} images, {arguments.batch} at a time, {arguments.precision}, "
        f"{torch.get_num_threads()} threads, {describe_device(device)}"
    )
    print(
        f"{'':9}{'tolerance':>10}{'latents of':>11}{'beyond':>8}{'largest':>9}{'plan':>8}"
        f"{'expected':>9}{'sequential':>11}{'calibrated in':>14}"
    )
    unseen = {
        "images": image_latents(flow, config, arguments.images),
        "the prior": prior_latents(flow, arguments.images),
    }
    for sampler in (None, GUIDED):
        exact = {
            name: torch.cat(inverted(flow, *latents, sampler, REFERENCE_BATCH))
            for name, latents in unseen.items()
        }
        for tolerance in (default_tolerance(config.noise), STRICT):
            images, labels = calibration_images(flow, config, arguments.batch)
            with autocast(arguments.precision, device):
                start = time.perf_counter()
                plan = calibrate(flow, images, labels, config.noise, sampler, tolerance)
                calibrated = time.perf_counter() - start
                for name, latents in unseen.items():
                    planned = inverted(flow, *latents, sampler, arguments.batch, plan)
                    errors = (torch.cat(planned) - exact[name]).abs().flatten(1).amax(1)
                    ours, theirs = in_turns(flow, *latents, sampler, arguments.batch, plan)
                    print(
                        f"{'guided' if sampler else 'unguided':9}{tolerance:10.0e}{name:>11}"
                        f"{float((errors > tolerance).float().mean()):8.2%}"
                        f"{float(errors.max()):9.1e}{ours:8.3f}"
                        f"{sum(block.seconds for block in plan.measured):9.3f}{theirs:11.3f}"
                        f"{calibrated:14.1f}  {plan}",
                        flush=True,
                    )


def image_latents(flow: TarFlow, config: RunConfig, count: int) -> tuple[Tensor, Tensor]:
    """Return latents (N, T, D) of noised validation images, repeated if too few, and labels."""
    images = data.open_split(config.data, "validation")
    indices = torch.arange(count).numpy() % len(images.labels)
    pixels = torch.from_numpy(data.batch(images, indices))
    noised = noisy(pixels, config.noise, generator(0, "benchmark"), torch.float32)
    labels = torch.from_numpy(images.labels[indices].astype("int64"))
    noised, labels = noised.to(flow.var.device), labels.to(flow.var.device)
    with torch.no_grad():
        pairs = zip(noised.split(REFERENCE_BATCH), labels.split(REFERENCE_BATCH), strict=True)
        return torch.cat([flow(*pair)[0] for pair in pairs]), labels


def prior_latents(flow: TarFlow, count: int) -> tuple[Tensor, Tensor]:
    """Return latents (N, T, D) drawn from the prior, and labels."""
    shape = flow.config.tokens, flow.config.token_dim
    latents = normal_per_image(torch.arange(count), shape, 1, "benchmark", torch.float32)
    labels = torch.arange(count) % flow.config.classes
    return latents.to(flow.var.device) * flow.var.sqrt(), labels.to(flow.var.device)


def inverted(
    flow: TarFlow,
    latents: Tensor,
    labels: Tensor,
    sampler: SamplerConfig | None,
    batch: int,
    plan: Plan | None = None,
) -> list[Tensor]:
    """Return the images (B, c, H, H) of each batch of latents."""
    pairs = zip(latents.split(batch), labels.split(batch), strict=True)
    return [invert(flow, *pair, sampler, plan) for pair in pairs]


def in_turns(
    flow: TarFlow,
    latents: Tensor,
    labels: Tensor,
    sampler: SamplerConfig | None,
    batch: int,
    plan: Plan,
) -> tuple[float, float]:
    """Return the median seconds of a batch by the plan, and sequentially."""
    seconds: dict[Plan | None, list[float]] = {plan: [], None: []}
    for turn in range(REPEATS):
        rows = slice(turn * batch, (turn + 1) * batch)
        for method, taken in seconds.items():
            synchronize(flow.var.device)
            start = time.perf_counter()
            invert(flow, latents[rows], labels[rows], sampler, method)
            synchronize(flow.var.device)
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[plan]), statistics.median(seconds[None])


if __name__ == "__main__":
    main()
