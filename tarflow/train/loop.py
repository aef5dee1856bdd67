"""Training of one run: memory and loop. The same function everywhere, from laptop to cluster.

Legend: `B` batch, `T` tokens per image, `D` values per token.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarflow import cost, data, distributed
from tarflow.config import RunConfig
from tarflow.device import autocast, choose_device, master_dtype, peak_flops, synchronize
from tarflow.errors import UserError
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.train.checkpoint import StateWriter
from tarflow.train.preemption import Preempted, catch_sigterm
from tarflow.train.state import TrainState, new_state, restore, save
from tarflow.train.step import TrainStep
from tarflow.train.trunk import Trunk

Report = Callable[[dict[str, Any]], None]
CURVE_POINTS = 64  # rows of the loss curve while the steps double


def fitting_micro_batch(state: TrainState, config: RunConfig) -> int:
    """Return how many images one pass of a worker can take: halved until memory suffices.

    Each trial goes forward and backward and holds what the optimizer will; the state does not
    change. It begins with what is remembered of an earlier start, and all workers halve together.
    Where the state is divided, the memory is computed instead: a worker that ran out of it would
    leave the others waiting for its part of the weights.

    Raises:
        UserError: if a single image does not fit.
    """
    device, model = state.flow.var.device, config.model
    if config.execution.sharding == "shard":
        return cost.micro_batch(config, distributed.memory(device))
    images = torch.zeros(
        config.batch // distributed.world_size(),
        model.image_channels,
        model.image_size,
        model.image_size,
        dtype=master_dtype(config),
        device=device,
    )
    labels = torch.zeros(len(images), dtype=torch.int64, device=device) if model.classes else None
    micro = min(state.micro_batch or len(images), len(images))
    while True in distributed.any_worker(
        [not fits(state.flow, images[:micro], None if labels is None else labels[:micro], config)],
        device,
    ):
        if micro == 1:
            raise UserError(
                "one image does not fit in memory: set execution.checkpoint_activations"
            )
        micro = (micro + 1) // 2
    return micro


def fits(flow: nn.Module, images: Tensor, labels: Tensor | None, config: RunConfig) -> bool:
    """Tell whether memory suffices for a pass over these images; gradients are left empty."""
    try:
        moments = [torch.empty_like(p) for p in flow.parameters() for _ in range(2)]
        for parameter in flow.parameters():
            parameter.grad = torch.zeros_like(parameter)  # as an earlier pass leaves it
        with autocast(config.precision, images.device):
            latents, logdet = flow(images, labels)
        negative_log_likelihood(latents, logdet).mean().backward()
        del moments
    except RuntimeError as error:
        message = "can't allocate memory"  # the CPU's allocator has no error type of its own
        if not isinstance(error, torch.OutOfMemoryError) and message not in str(error):
            raise
        return False
    finally:
        flow.zero_grad(set_to_none=True)
    return True


def train(
    config: RunConfig,
    folder: Path,
    report: Report = lambda _: None,
    trunk: Trunk | None = None,
) -> TrainState:
    """Train a run to its last image, going on from the newest state in `folder` if there is one.

    Without one it goes on from the trunk's newest state before its own cooldown, if there is one.

    Args:
        config: resolved; `config.images` is where it ends.
        folder: of the run; states go to `folder/state`.
        report: gets {"images", "loss", "seconds", "mfu"} about every `execution.report_seconds`,
            on the first worker.
        trunk: of the run's family, or None if it shares nothing.

    Returns:
        The final state. `state.average` holds the weights to keep, whole.

    Raises:
        Diverged: if the loss or the gradient stops being finite.
        Preempted: if the process was told to end; the state is saved.
        UserError: if a state cannot be written; those before are whole.
    """
    device = choose_device(config.execution, distributed.local_rank())
    config, first = distributed.resolve(config, device), distributed.rank() == 0
    state = restore(new_state(config, device), folder / "state", config, trunk)
    distributed.barrier()
    if not config.execution.micro_batch:
        state.micro_batch = fitting_micro_batch(state, config)
    rate = cost.training_flops(config.model) / distributed.world_size()
    rate /= peak_flops(device, config.precision)  # MFU of one image per second
    step = TrainStep(state, config)
    started = time.perf_counter() - state.seconds
    saved = reported = state.seconds
    with StateWriter(folder / "state") as writer, catch_sigterm() as stop_requested:
        for pixels, labels in batches(config, state.images, device):
            loss, norm = step(pixels, labels)
            state.losses += loss
            state.steps += 1
            state.seconds = time.perf_counter() - started
            if has_row(state.images // config.batch) or state.images == config.images:
                state.curve.append(
                    {
                        "images": state.images,
                        "flops": float(cost.training_flops(config.model)) * state.images,
                        "loss": state.losses.item() / state.steps,
                        "lr": float(state.optimizers[0].param_groups[0]["lr"]),
                        "grad_norm": norm.item(),
                        "seconds": state.seconds,
                    }
                )
                state.losses.zero_()
                state.steps = 0
            if first and state.seconds - reported > config.execution.report_seconds:
                reported = state.seconds
                report(
                    {
                        "images": state.images,
                        "loss": loss.item(),
                        "seconds": state.seconds,
                        "mfu": rate * state.images / state.seconds,
                    }
                )
            if trunk and state.images in trunk.marks:
                save(state, writer, trunk.folder)
            due = state.seconds - saved > writer.interval(config.execution.checkpoint_seconds)
            due = due and first and state.images < config.images  # the first worker's clock counts
            ending, due = distributed.any_worker([stop_requested.is_set(), due], device)
            if ending or due:
                saved = state.seconds
                save(state, writer)
            if ending:
                writer.wait()
                distributed.barrier()  # once one worker has left, the others may be killed
                raise Preempted(f"the process was told to end after {state.images} images")
    state.average |= {name: each.clone() for name, each in state.flow.named_buffers()}
    state.average = {
        name: distributed.full_tensor(each).cpu() for name, each in state.average.items()
    }
    synchronize(device)
    state.seconds = time.perf_counter() - started
    return state


def has_row(step: int) -> bool:
    """Tell whether the loss curve has a row after this step, whatever the length of the run.

    >>> sum(map(has_row, range(1, 101))), sum(map(has_row, range(1, 10_001)))
    (100, 526)
    """
    return step % (1 << max(0, (step // CURVE_POINTS).bit_length() - 1)) == 0


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
