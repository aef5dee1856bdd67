"""Compare training steps and sampling on one GPU with the published code, in one process.

    python benchmarks/gpu.py [attention] [training] [decoding] [sampling] [trained] [packing]
        --official DIR [--jacobi FILE] [--quick]

DIR is a clone of https://github.com/apple/ml-tarflow, FILE the module of the published
Gauss-Seidel-Jacobi sampler (arXiv 2505.12849); nothing of them is kept here. Weights are random
except in `trained`, which trains a model of leaves first. Times are medians; calls of both sides
alternate. MFU counts ideal causal attention over the data sheet's peak.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from against_official import published
from torch import Tensor
from train_step import official_step, our_step, run_config

from tarflow import cost
from tarflow.config import (
    DataConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
)
from tarflow.cuda import attention, layers
from tarflow.cuda.decode import DecodeStep
from tarflow.cuda_graph import capture
from tarflow.data import hash_data
from tarflow.device import autocast, peak_flops
from tarflow.execution import resolve_execution
from tarflow.model.flow import TarFlow, initialise
from tarflow.model.noise import normal_per_image
from tarflow.model_config import ModelConfig
from tarflow.sample.calibration import calibrate, calibration_images
from tarflow.sample.incremental import IncrementalBlock
from tarflow.sample.inverse import invert
from tarflow.sample.kv_cache import KVCache
from tarflow.sample.plan import default_tolerance
from tarflow.train.cuda_graph import make_train_step
from tarflow.train.loop import batches
from tarflow.train.state import new_state

GPU = torch.device("cuda", 0)
MODULE = "transformer_flow.py"  # of the published code
LARGE = ModelConfig(image_size=64, image_channels=3, patch=2, channels=768, blocks=4, layers=8)
MIDDLE = ModelConfig(image_size=32, image_channels=3, patch=2, channels=512, blocks=4, layers=4)
TRAINED = RunConfig(
    model=ModelConfig(image_size=64, image_channels=3, patch=4, channels=512, blocks=8, layers=4),
    data=DataConfig(name="leaves-64-4000"),
    noise=NoiseConfig(std=0.05),
    optim=OptimConfig(lr=4e-4, warmup_images=6400),
    images=1000 * 32,
    batch=32,
    precision="bfloat16",
    execution=ExecutionConfig(device="cuda"),
)
Work = Callable[[], Any]


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sections = {
        "attention": short_attention,
        "training": training,
        "decoding": decoding,
        "sampling": sampling,
        "trained": trained,
        "packing": packing,
    }
    parser.add_argument("sections", nargs="*", choices=list(sections), default=list(sections))
    parser.add_argument("--official", type=Path, required=True, help="folder of ml-tarflow")
    parser.add_argument("--jacobi", type=Path, help="file of the published Jacobi sampler")
    parser.add_argument("--quick", action="store_true", help="our side only")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(GPU), torch.__version__)
    for name in arguments.sections:
        start = time.perf_counter()
        print(f"\n== {name}", flush=True)
        sections[name](arguments)
        torch.cuda.empty_cache()
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def training(arguments: argparse.Namespace) -> None:
    """Print a training step in bfloat16: ours and the published one."""
    for model, batch in ((LARGE, 32), (MIDDLE, 128)):
        print(f"{model.channels} channels, {model.blocks}x{model.layers}, T = {model.tokens}")
        config = run_config(model, batch, "bfloat16", ExecutionConfig(device="cuda"))
        wide = replace(config.execution, residuals="float32")
        makers: dict[str, Callable[[], Work]] = {
            "ours": partial(our_step, config),
            "ours, float32 residuals": partial(our_step, replace(config, execution=wide)),
            "ours, PyTorch's attention": partial(with_pytorchs_attention, config),
            "ours, heads of 128": partial(
                our_step, replace(config, model=replace(model, head_dim=128))
            ),
        }
        if not arguments.quick:
            path, threads = arguments.official / MODULE, torch.get_num_threads()
            theirs = partial(official_step, path, GPU, threads, model, batch, True)
            makers["published"] = theirs
            if model == LARGE:
                makers["published, compiled"] = partial(theirs, compiled=True)
        flops = cost.training_flops(model) * batch / peak_flops(GPU, "bfloat16")
        seconds = {}
        for name, make in makers.items():  # one after the other: the memory is not for all
            seconds[name] = taken = in_turns({"": make()}, 7)[""]
            gc.collect()
            torch.cuda.empty_cache()
            print(f"  {name:26} {taken * 1e3:7.1f} ms  MFU {flops / taken:.3f} (causal count)")
        for name in seconds:
            if name.startswith("published"):
                print(f"  ours over {name}: {seconds[name] / seconds['ours']:.2f}")


def short_attention(arguments: argparse.Namespace) -> None:
    """Print how much faster attention is by the kernels for few tokens."""
    del arguments
    for tokens, head_dim in ((49, 16), (64, 64), (256, 64), (256, 128), (512, 64), (1024, 64)):
        gain = attention.measured_gain(tokens, head_dim, torch.bfloat16, GPU)
        print(f"  {tokens} tokens, heads of {head_dim}: {gain:.2f} times PyTorch's", flush=True)


def decoding(arguments: argparse.Namespace) -> None:
    """Print the time of a decode step per layer, in a CUDA graph, beside its memory floor."""
    del arguments
    model = replace(LARGE, blocks=1)
    flow = random_flow(model)
    for dtype in (torch.bfloat16, torch.float32):
        for rows, keys in ((64, 256), (64, 1024), (256, 256), (256, 1024)):
            cache = KVCache(flow, rows, dtype)
            position = torch.tensor([keys - 1], device=GPU)
            with torch.inference_mode():
                step = IncrementalBlock(flow.blocks[0], cache, rows, None).decoder
                replay = capture(partial(through_layers, step, position), GPU)
            taken = in_turns({"": lambda r=replay: [r() for _ in range(20)]}, 5)[""]
            size = dtype.itemsize
            moved = 2 * rows * keys * model.channels * size + 12 * model.channels**2 * size
            print(
                f"  {str(dtype)[6:]} {rows} rows, {keys} keys: "
                f"{taken / 20 / model.layers * 1e6:6.1f} us a layer, floor {moved / 3e6:.0f}"
            )
            del cache, step, replay


def through_layers(step: DecodeStep, position: Tensor) -> None:
    """Pass a token of every row through the layers of a block."""
    hidden, update = step.hidden, step.hidden[None]
    bias = torch.zeros_like(hidden[0])
    for layer in step.layers:
        hidden, update, bias = layer(hidden, update, bias, position)


def sampling(arguments: argparse.Namespace) -> None:
    """Print guided sampling of two blocks of the 768-channel model, T = 1024."""
    model = replace(LARGE, blocks=2, classes=10)
    flow = random_flow(model)
    sampler = SamplerConfig(guidance=1.5)
    for images in (32, 128, 256):
        labels = torch.arange(images, device=GPU) % 10
        noise = latents(model, images)
        for precision in ("bfloat16", "float32")[: 2 if images == 32 else 1]:
            ours = in_turns({"": partial(draw, flow, noise, labels, sampler, precision)}, 2)[""]
            size = 2 if precision == "bfloat16" else 4
            steps = model.blocks * model.layers * (model.tokens - 1)
            moved = (2 * 2 * images * model.tokens / 2 + 12 * model.channels) * model.channels
            floor = steps * moved * size / 3e12
            print(
                f"  {images} images, {precision}: {ours:.2f} s, {images / ours:.1f} images per s, "
                f"floor {floor:.2f} s, {ours / floor:.2f} times the floor",
                flush=True,
            )
        if images == 32 and not arguments.quick:
            official = published(arguments.official / MODULE, flow)
            call = partial(official.reverse, noise, labels, guidance=1.5, annealed_guidance=True)
            start = time.perf_counter()
            with torch.inference_mode():
                call()
            torch.cuda.synchronize()
            print(f"  published, float32: {time.perf_counter() - start:.2f} s")


def trained(arguments: argparse.Namespace) -> None:
    """Print sampling of 64 images of a trained model by all methods, with errors in sigma."""
    config = replace(TRAINED, data=hash_data(TRAINED.data))
    flow = train_flow(config)
    noise, sigma = latents(flow.config, 64), config.noise.std
    images, labels = calibration_images(flow, config, 64)
    plan = calibrate(flow, images.to(GPU), labels, config.noise)
    print(f"  plan: {plan}, tolerance {default_tolerance(config.noise):g}")
    works: dict[str, Work] = {
        "token by token": partial(draw, flow, noise, None, None, "float32"),
        "planned": partial(draw, flow, noise, None, None, "float32", plan),
        "token by token, float16": partial(draw, flow, noise, None, None, "float16"),
        "token by token, bfloat16": partial(draw, flow, noise, None, None, "bfloat16"),
    }
    if not arguments.quick:
        works["published"] = partial(published(arguments.official / MODULE, flow).reverse, noise)
        if arguments.jacobi:
            works["published GS-Jacobi"] = gs_jacobi(arguments.jacobi, flow, noise)
    with torch.inference_mode():
        exact = draw(flow.double(), noise.double(), None, None, "float64").cpu()
        flow.float()
        errors = {
            name: float((work().cpu().double() - exact).abs().max()) / sigma
            for name, work in works.items()
        }
        seconds = in_turns(works, 3)
    for name, taken in seconds.items():
        print(f"  {name:26} {taken:6.3f} s  largest error {errors[name]:.1e} sigma")


def packing(arguments: argparse.Namespace) -> None:
    """Print how many steps of small runs a GPU takes when several processes share it."""
    from sweeps.running.cluster import join  # the other sections need no Ray
    from sweeps.running.sharing_probe import in_words, measure

    del arguments
    model = ModelConfig(image_size=28, patch=4, channels=32, head_dim=8, blocks=4, layers=1)
    config = RunConfig(model=model, batch=16, images=1600, precision="float32")
    with join() as cluster:
        print(f"  {in_words(measure(config, cluster))}")


def train_flow(config: RunConfig) -> TarFlow:
    """Train a flow and return it in eval mode."""
    resolved = resolve_execution(config)
    state = new_state(config, resolved)
    step = make_train_step(state, config, resolved)
    loss = torch.zeros(())
    for pixels, labels in batches(config, 0, GPU):
        loss, _ = step(pixels, labels)
    print(f"  trained, loss {loss.item():.4f}")
    flow = TarFlow(config.model)
    flow.load_state_dict(state.ema)
    return flow.to(GPU).eval().requires_grad_(False)


def random_flow(model: ModelConfig) -> TarFlow:
    """Return a flow whose last projections are small and not zero."""
    flow = TarFlow(model)
    initialise(flow, 0)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight.normal_(0, 0.002)
    return flow.to(GPU).eval().requires_grad_(False)


def latents(model: ModelConfig, count: int) -> Tensor:
    """Return noise (B, T, D)."""
    shape = model.tokens, model.token_dim
    return normal_per_image(torch.arange(count), shape, 0, "noise", torch.float32).to(GPU)


def draw(
    flow: TarFlow,
    noise: Tensor,
    labels: Tensor | None,
    sampler: SamplerConfig | None,
    precision: str,
    plan: Any = None,
) -> Tensor:
    """Invert a flow in a precision."""
    with autocast(precision, GPU):
        return invert(flow, noise, labels, sampler, plan)


def with_pytorchs_attention(config: RunConfig) -> Work:
    """Return a training step without our kernels of attention."""
    layers.attend = attention.by_pytorch
    step = our_step(config)
    step()  # what is captured now is replayed later
    layers.attend = attention.attend
    return step


def gs_jacobi(file: Path, flow: TarFlow, noise: Tensor) -> Work:
    """Return the published Jacobi sampler: 8 segments in the toughest block, else 10 sweeps."""
    model, last = published(file, flow), len(flow.blocks) - 1
    return partial(
        model.reverse,
        noise,
        num_GS_list=[8] + [1] * last,
        max_jacobi_list=[32] + [10] * last,
        ebound=1e-6,
    )


def in_turns(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Return the median seconds of each kind of work; they alternate, after warm-ups."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    warm = 1 if rounds <= 3 else 2
    for number in range(rounds + warm):
        for name, work in works.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            if number >= warm:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


if __name__ == "__main__":
    main()
