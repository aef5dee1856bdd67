"""Training of one run: step, memory, loop. The same function everywhere, from laptop to cluster.

Legend: `B` batch, `T` tokens per image, `D` values per token.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarflow import cost, data, distributed, noise, optim
from tarflow.config import ConfigError, RunConfig
from tarflow.device import autocast, choose_device, master_dtype, peak_flops, synchronize
from tarflow.likelihood import negative_log_likelihood
from tarflow.preemption import Preempted, notice
from tarflow.resume import TrainState, new_state, restore, save
from tarflow.state import StateWriter

Report = Callable[[dict[str, Any]], None]
CURVE_POINTS = 200  # rows of the loss curve a run leaves


class Diverged(RuntimeError):
    """Training met a value that is not finite; the text names the block."""


def train_step(
    state: TrainState,
    parallel: nn.Module,
    pixels: Tensor,
    labels: Tensor | None,
    config: RunConfig,
) -> tuple[Tensor, Tensor]:
    """Update once on a global batch.

    Noise, flips and dropped labels are drawn for the whole batch and each worker takes its share,
    so the numbers do not depend on how many workers there are.

    Args:
        state: is changed.
        parallel: the flow as the workers share it.
        pixels: (B, C, H, H) uint8, the global batch, on the device.
        labels: (B,) int64, or None for an unconditional model.
        config: of the run.

    Returns:
        Mean loss of the global batch (nats per dimension) and the gradient norm before clipping.

    Raises:
        Diverged: if either is not finite; the weights are then still those before the step.
    """
    device, dtype = pixels.device, master_dtype(config)
    rng = noise.generator(config.seed, "step", state.images, str(device))
    if config.data.flip:
        flipped = torch.rand(len(pixels), generator=rng, device=device) < 0.5
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
    noised = noise.noisy(pixels, config.noise, rng, dtype)
    if labels is not None:
        dropped = torch.rand(len(labels), generator=rng, device=device) < config.optim.label_drop
        labels = labels.masked_fill(dropped, -1)
    mine = distributed.share(len(noised))
    noised, labels = noised[mine], None if labels is None else labels[mine]
    micro = config.execution.micro_batch or state.micro_batch or len(noised)
    total = torch.zeros((), device=device, dtype=dtype)
    state.flow.zero_grad(set_to_none=True)
    for start in range(0, len(noised), micro):
        part = noised[start : start + micro]
        part_labels = None if labels is None else labels[start : start + micro]
        last = start + micro >= len(noised)
        with contextlib.nullcontext() if last else distributed.without_sync(parallel):
            with autocast(config.precision, device):
                latents, logdet = parallel(part, part_labels)
            loss = negative_log_likelihood(latents, logdet).mean() * (len(part) / len(noised))
            loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(state.flow.parameters(), config.optim.clip)
    total = distributed.mean(total)
    if not torch.isfinite(total + norm):
        raise Diverged(describe_divergence(state, noised, labels))
    rate = optim.learning_rate(config.optim, state.images + config.batch / 2, config.images)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
    state.images += config.batch
    return total, norm


@torch.no_grad()
def describe_divergence(state: TrainState, images: Tensor, labels: Tensor | None) -> str:
    """Say at which images and in which block the numbers stopped being finite."""
    for index, (latents, logdet) in enumerate(state.flow.trace(images, labels)):
        if not (torch.isfinite(latents).all() and torch.isfinite(logdet).all()):
            return f"block {index} gave values that are not finite after {state.images} images"
    for index, block in enumerate(state.flow.blocks):
        grads = [p.grad for p in block.parameters() if p.grad is not None]
        if not all(torch.isfinite(grad).all() for grad in grads):
            return f"the gradient of block {index} is not finite after {state.images} images"
    return f"the loss is not finite after {state.images} images"


def fitting_micro_batch(state: TrainState, parallel: nn.Module, config: RunConfig) -> int:
    """Return how many images one pass of a worker can take: halved until memory suffices.

    Each trial goes forward and backward and holds what the optimizer will; the state does not
    change. It begins with what is remembered of an earlier start, and all workers halve together.

    Raises:
        ConfigError: if a single image does not fit.
    """
    device, model = state.flow.var.device, config.model
    images = torch.zeros(
        config.batch // distributed.world_size(),
        model.image_channels,
        model.image_size,
        model.image_size,
        dtype=master_dtype(config),
        device=device,
    )
    labels = torch.zeros(len(images), dtype=torch.int64, device=device) if model.classes else None
    var = state.flow.var.clone()
    micro = min(state.micro_batch or len(images), len(images))
    while distributed.any_worker(
        not fits(parallel, images[:micro], None if labels is None else labels[:micro], config),
        device,
    ):
        if micro == 1:
            raise ConfigError(
                "one image does not fit in memory: set execution.checkpoint_activations"
            )
        micro = (micro + 1) // 2
    state.flow.var.copy_(var)
    return micro


def fits(parallel: nn.Module, images: Tensor, labels: Tensor | None, config: RunConfig) -> bool:
    """Tell whether memory suffices for a pass over these images; gradients are left empty."""
    try:
        moments = [torch.empty_like(p) for p in parallel.parameters() for _ in range(2)]
        with distributed.without_sync(parallel):
            with autocast(config.precision, images.device):
                latents, logdet = parallel(images, labels)
            negative_log_likelihood(latents, logdet).mean().backward()
        del moments
    except RuntimeError as error:
        message = "can't allocate memory"  # the CPU's allocator has no error type of its own
        if not isinstance(error, torch.OutOfMemoryError) and message not in str(error):
            raise
        return False
    finally:
        parallel.zero_grad(set_to_none=True)
    return True


def train(config: RunConfig, folder: Path, report: Report = lambda _: None) -> TrainState:
    """Train a run to its last image, going on from the newest state in `folder` if there is one.

    Args:
        config: resolved; `config.images` is where it ends.
        folder: of the run; states go to `folder/state`.
        report: gets {"images", "loss", "seconds", "mfu"} about every `execution.report_seconds`.

    Returns:
        The final state. `state.average` holds the weights to keep.

    Raises:
        Diverged: if the loss or the gradient stops being finite.
        Preempted: if the process was told to end; the state is saved.
        ConfigError: if a state cannot be written; those before are whole.
    """
    device = choose_device(config.execution, distributed.local_rank())
    state = restore(new_state(config, device), folder / "state", config)
    distributed.barrier()
    parallel = distributed.parallel(state.flow, device)
    if not config.execution.micro_batch:
        state.micro_batch = fitting_micro_batch(state, parallel, config)
    rate = cost.training_flops(config.model) / distributed.world_size()
    rate /= peak_flops(device, config.precision)  # MFU of one image per second
    exponent = optim.ema_exponent(config.optim.ema) if config.optim.ema else 0.0
    names, parameters = zip(*state.flow.named_parameters(), strict=True)
    averages = [state.average[name] for name in names]
    every = max(1, round(config.images / config.batch / CURVE_POINTS)) * config.batch
    state.losses = state.losses.to(device)
    started = time.perf_counter() - state.seconds
    saved = reported = state.seconds
    with StateWriter(folder / "state") as writer, notice() as told:
        for pixels, labels in batches(config, state.images, device):
            loss, norm = train_step(state, parallel, pixels, labels, config)
            decay = (
                optim.ema_decay(exponent, state.images, config.batch) if config.optim.ema else 0.0
            )
            optim.update_average(averages, parameters, decay)
            state.losses += loss
            state.steps += 1
            state.seconds = time.perf_counter() - started
            if state.images % every == 0 or state.images == config.images:
                state.curve.append(
                    {
                        "images": state.images,
                        "flops": float(cost.training_flops(config.model)) * state.images,
                        "loss": state.losses.item() / state.steps,
                        "lr": state.optimizers[0].param_groups[0]["lr"],
                        "grad_norm": norm.item(),
                        "seconds": state.seconds,
                    }
                )
                state.losses.zero_()
                state.steps = 0
            if state.seconds - reported > config.execution.report_seconds:
                reported = state.seconds
                report(
                    {
                        "images": state.images,
                        "loss": loss.item(),
                        "seconds": state.seconds,
                        "mfu": rate * state.images / state.seconds,
                    }
                )
            if distributed.any_worker(told.is_set(), device):
                save(state, writer)
                writer.wait()
                raise Preempted(f"the process was told to end after {state.images} images")
            due = state.seconds - saved > writer.interval(config.execution.checkpoint_seconds)
            if due and state.images < config.images:
                saved = state.seconds
                save(state, writer)
    for name, tensor in state.flow.named_buffers():
        state.average[name] = tensor.detach().clone()
    synchronize(device)
    state.seconds = time.perf_counter() - started
    return state


def batches(
    config: RunConfig, seen: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield global batches from image `seen` to the last, in the order that the seed fixes."""
    images = data.open_split(config.data, "train")
    for start in range(seen, config.images, config.batch):
        indices = data.order(len(images.labels), config.seed, start, config.batch)
        pixels = torch.from_numpy(data.batch(images, indices)).to(device, non_blocking=True)
        labels = None
        if config.model.classes:
            labels = torch.from_numpy(images.labels[indices]).to(device, non_blocking=True)
        yield pixels, labels
