"""Compare sampling with the published implementation: same weights, device and arithmetic.

    python benchmarks/against_official.py --official DIR [--device cuda]

DIR is a clone of https://github.com/apple/ml-tarflow; nothing of it is kept here. Calls of both
sides alternate in one process, and medians of 5 pairs are compared, because machines are noisy.
The weights are those of a model of colour `leaves` (256 channels, 4 blocks of 4 layers, 256
tokens), trained here for 1,600 steps and kept in the cache folder (15 min the first time), or any
--checkpoint. An error is the largest of any pixel, against a sequential inverse in float64.
`steps` counts consecutive passes of a batch through a block: the least that a device can take,
however wide it is. `work` counts the tokens in them, in units of one parallel pass of the flow:
the price on a device that is already full. On an accelerator our steps are replayed CUDA graphs,
which are not counted.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from train_step import load

from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
)
from tarflow.device import choose_device, describe_device, synchronize
from tarflow.model.flow import TarFlow
from tarflow.model.noise import normal_per_image
from tarflow.model.weights import load_model
from tarflow.model_config import ModelConfig
from tarflow.run import resolve_config, run
from tarflow.sample.calibration import calibrate, calibration_images
from tarflow.sample.incremental import IncrementalBlock
from tarflow.sample.inverse import invert
from tarflow.sample.kv_cache import AnyWindow
from tarflow.sample.plan import SEQUENTIAL, Method, Plan, default_tolerance, named_plan
from tarflow.storage import cache_folder

GUIDED = SamplerConfig(guidance=1.5)
STRICT = 1e-3
AT_LEAST = {(16, False): 3.5, (16, True): 4.7, (1, False): 3.0}  # batch, guided: ratio
TRAINED = RunConfig(
    model=ModelConfig(
        image_size=32, image_channels=3, classes=10, patch=2, channels=256, layers=4
    ),
    data=DataConfig(name="leaves"),
    noise=NoiseConfig(std=0.1),
    optim=OptimConfig(lr=7e-4, warmup_images=512),
    images=6400,
    batch=4,
    evaluation=EvaluationConfig(samples=0, decoder_images=20),
)


def main() -> int:
    """Compare, print, and return 1 if --check is given and a bar is missed."""
    arguments = parse()
    checkpoint = arguments.checkpoint or trained(TRAINED, "leaves-256-tokens")
    flow, config = load_model(checkpoint)
    device = choose_device(ExecutionConfig(device=arguments.device))
    flow = flow.to(device).eval().requires_grad_(False)
    official = published(arguments.official / "transformer_flow.py", flow)
    if arguments.memory:
        print(peak_memory(arguments.memory, flow, official))
        return 0
    print(
        f"{flow.config.channels} channels, {flow.config.blocks} x {flow.config.layers}, "
        f"T = {flow.config.tokens}, float32, {torch.get_num_threads()} threads, "
        f"{describe_device(device)}"
    )
    missed = []
    for batch, guided in AT_LEAST:
        ratio, exact = compare(flow, official, config, batch, guided, arguments.repeats)
        if ratio < AT_LEAST[batch, guided] or not exact:
            missed.append(f"batch {batch}{', guided' if guided else ''}: {ratio:.2f} times")
    ours, theirs = (
        statistics.median(
            int(subprocess.check_output([*sys.orig_argv, "--memory", side]))
            for _ in range(arguments.repeats)
        )
        for side in ("ours", "official")
    )
    print(
        f"memory on top of the model, batch 16: ours {ours / 2**20:.0f} MiB, "
        f"official {theirs / 2**20:.0f} MiB"
    )
    if ours > theirs:
        missed.append("memory")
    if arguments.check and missed:
        print("missed: " + "; ".join(missed))
        return 1
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="folder of ml-tarflow")
    parser.add_argument("--checkpoint", type=Path, help="model.safetensors to compare with")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of calls")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--memory", choices=["ours", "official"], help=argparse.SUPPRESS)
    return parser.parse_args()


def trained(config: RunConfig, name: str) -> Path:
    """Return the checkpoint of a run kept in the cache folder, training it first if necessary."""
    config = replace(resolve_config(config), precision="float32")
    folder = cache_folder() / "benchmarks" / name
    if not (folder / "result.json").exists():
        print(f"training {config.images // config.batch} steps first, into {folder}")
        run(config, folder)
    return folder / "model.safetensors"


def published(module: Path, flow: TarFlow) -> Any:
    """Build the published model of a file with our weights."""
    config = flow.config
    model = load(module).Model(
        in_channels=config.image_channels,
        img_size=config.image_size,
        patch_size=config.patch,
        channels=config.channels,
        num_blocks=config.blocks,
        layers_per_block=config.layers,
        num_classes=config.classes,
    )
    model.load_state_dict(flow.state_dict(), strict=False)
    return model.to(flow.var.device).eval().requires_grad_(False)


@torch.no_grad()
def compare(
    flow: TarFlow, official: Any, config: RunConfig, batch: int, guided: bool, repeats: int
) -> tuple[float, bool]:
    """Print a table of one case.

    Returns:
        The ratio at the default tolerance, and whether all errors are within their tolerances.
    """
    sampler = GUIDED if guided else None
    noise, labels = latents(flow, batch)
    exact = exact_inverse(flow, noise, labels, sampler)
    images, image_labels = calibration_images(flow, config, batch)
    default, blocks = default_tolerance(config.noise), flow.config.blocks
    plans = {
        "sequential": Plan(methods=(SEQUENTIAL,) * blocks),
        "sliding window": named_plan("segmented:4", blocks, default),
    }
    limits = {"auto": default, "auto, strict": STRICT}
    for name, limit in limits.items():
        plans[name] = calibrate(flow, images, image_labels, config.noise, sampler, limit)
    weight = GUIDED.guidance if guided else 0.0
    calls: dict[str, Callable[[], Tensor]] = {
        "official": lambda: official.reverse(
            noise.clone(), labels, guidance=weight, annealed_guidance=True
        )
    }
    timed_as: dict[tuple[Method, ...], str] = {}  # equal plans are timed once
    same = {name: timed_as.setdefault(plan.methods, name) for name, plan in plans.items()}
    for name in timed_as.values():
        calls[name] = partial(invert, flow, noise, labels, sampler, plans[name])
    calls["one parallel pass"] = lambda: flow(exact.float(), labels)[0]
    counts = {name: count(call, flow, batch) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    errors = {}
    for _ in range(repeats):
        for name, call in calls.items():
            synchronize(flow.var.device)
            start = time.perf_counter()
            output = call()
            synchronize(flow.var.device)
            seconds[name].append(time.perf_counter() - start)
            is_image = output.dim() == 4  # the parallel pass returns tokens
            errors[name] = float((output - exact).abs().max()) if is_image else None
    print(f"\nbatch {batch}, {'guided' if guided else 'unguided'}")
    heads = f"{'':18}{'seconds':>9}{'times official':>16}{'passes':>8}{'steps':>7}{'work':>7}"
    print(heads + f"{'error':>10}  plan")
    ratios = {}
    for name in ("official", *plans, "one parallel pass"):
        timed = same.get(name, name)
        ours = seconds[timed]
        pairs = zip(seconds["official"], ours, strict=True)
        ratios[name] = statistics.median(theirs / mine for theirs, mine in pairs)
        passes = statistics.median(ours) / statistics.median(seconds["one parallel pass"])
        error = "" if errors[timed] is None else f"{errors[timed]:.1e}"
        print(
            f"{name:18}{statistics.median(ours):9.2f}{ratios[name]:16.2f}{passes:8.1f}"
            f"{counts[timed][0]:7}{counts[timed][1]:7.1f}{error:>10}  {plans.get(name, '')}"
        )
    close = all(errors[same[name]] <= limit for name, limit in limits.items())
    return ratios["auto"], close


def count(call: Callable[[], Tensor], flow: TarFlow, batch: int) -> tuple[int, float]:
    """Return the steps of a call and its work, as the top of this file defines them.

    Both sides, and the parallel pass, call their first linear map once a step.
    """
    widths: list[int] = []

    def hooked(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear) and module.in_features == flow.config.token_dim:
            widths.append(prod(inputs[0].shape[:-1]))

    plain = IncrementalBlock.__call__

    def noted(self: IncrementalBlock, tokens: Tensor, window: AnyWindow) -> tuple[Tensor, Tensor]:
        widths.append(prod(tokens.shape[:-1]) * (2 if self.sampler else 1))
        return plain(self, tokens, window)

    handle = nn.modules.module.register_module_forward_pre_hook(hooked)
    IncrementalBlock.__call__ = noted  # type: ignore[method-assign]
    try:
        call()
    finally:
        IncrementalBlock.__call__ = plain  # type: ignore[method-assign]
        handle.remove()
    return len(widths), sum(widths) / (batch * flow.config.tokens * flow.config.blocks)


def latents(flow: TarFlow, batch: int) -> tuple[Tensor, Tensor]:
    """Return noise (B, T, D) and labels (B,)."""
    shape = (flow.config.tokens, flow.config.token_dim)
    noise = normal_per_image(torch.arange(batch), shape, 0, "benchmark", torch.float32)
    labels = torch.arange(batch) % max(1, flow.config.classes)
    return noise.to(flow.var.device), labels.to(flow.var.device)


def exact_inverse(
    flow: TarFlow, noise: Tensor, labels: Tensor, sampler: SamplerConfig | None
) -> Tensor:
    """Return the sequential inverse in float64."""
    double = TarFlow(flow.config).double().eval().requires_grad_(False)
    double.load_state_dict(flow.state_dict())
    double = double.to(flow.var.device)
    return invert(double, noise.double(), labels, sampler)


def peak_memory(side: str, flow: TarFlow, official: Any) -> int:
    """Return the bytes that sampling a batch of 16 adds to a process."""
    call = partial(invert, flow) if side == "ours" else official.reverse
    noise, labels = latents(flow, 16)
    with torch.no_grad():
        call(noise[:1].clone(), labels[:1])  # the first call loads libraries
        if noise.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call(noise.clone(), labels)
            return torch.cuda.max_memory_allocated() - before
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = status("VmRSS")
        call(noise.clone(), labels)
    return status("VmHWM") - before


def status(name: str) -> int:
    """Return a memory size of this process in bytes, such as `VmRSS` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main())
