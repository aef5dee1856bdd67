"""Training of one run. The same function everywhere, from laptop to cluster.

Legend: `B` batch, `T` tokens per image, `D` values per token.
"""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow import cost, data, distributed
from tarflow.config import RunConfig
from tarflow.device import peak_flops
from tarflow.execution import Execution, resolve_execution
from tarflow.train.checkpoint import CheckpointWriter, restore, save
from tarflow.train.cuda_graph import make_train_step
from tarflow.train.micro_batch import fit_micro_batch, name_micro_batch
from tarflow.train.preemption import Preempted, catch_sigterm
from tarflow.train.state import TrainState, new_state
from tarflow.train.trunk import Trunk

Report = Callable[[dict[str, Any]], None]
LOG = logging.getLogger("tarflow")
CURVE_POINTS = 64  # rows of the loss curve while the steps double


def train(
    config: RunConfig,
    folder: Path,
    report: Report = lambda _: None,
    trunk: Trunk | None = None,
    execution: Execution | None = None,
    after_step: Callable[[TrainState], None] = lambda _: None,
) -> TrainState:
    """Train a run to its last image, resuming from its newest checkpoint if it has one.

    Without one it starts from the trunk's newest checkpoint before its own cooldown, if any.

    Args:
        config: Run whose precision and data hash are resolved; it ends at `config.images`.
        folder: Folder of the run; checkpoints go to `folder/state`.
        report: Receives {"images", "loss", "seconds", "mfu"} about every
            `execution.report_seconds`, on the first worker.
        trunk: Trunk of the run's family, or None if it shares nothing.
        execution: How to execute the run; by default resolved here.
        after_step: Looks at the state after each step, on all workers.

    Returns:
        The final state. `state.ema` holds the weights to keep: whole, on the CPU.

    Raises:
        Diverged: If the loss or the gradient stops being finite.
        Preempted: If the process was told to end; the state is saved.
        StepOutOfMemory: If memory does not suffice for a step after all.
        UserError: If a checkpoint cannot be written; earlier ones are whole.
    """
    execution = execution or resolve_execution(config)
    state = new_state(config, execution)
    set_dropped_condition(state, config)
    restore(state, folder / "state", config, trunk)
    distributed.barrier()
    execution = fit_micro_batch(state, config, execution)
    if execution.first:
        LOG.info("%s", execution)
        if config.precision_warning:
            LOG.warning("%s", config.precision_warning)
    step = make_train_step(state, config, execution)

    flops = float(cost.training_flops(config.model))
    mfu_per_rate = flops / execution.workers / peak_flops(execution.device, execution.precision)
    started = time.perf_counter() - state.seconds
    saved = reported = state.seconds
    with CheckpointWriter(folder / "state") as writer, catch_sigterm() as stop_requested:
        for pixels, condition in batches(config, state.images, execution.device):
            with name_micro_batch(execution.micro_batch):
                loss, norm = step(pixels, condition)
            state.loss_sum += loss
            state.loss_steps += 1
            state.seconds = time.perf_counter() - started

            if has_row(state.images // config.batch) or state.images == config.images:
                state.curve.append(
                    {
                        "images": state.images,
                        "flops": flops * state.images,
                        "loss": state.loss_sum.item() / state.loss_steps,
                        "lr": float(state.optimizers[0].param_groups[0]["lr"]),
                        "grad_norm": norm.item(),
                        "seconds": state.seconds,
                    }
                )
                state.loss_sum.zero_()
                state.loss_steps = 0
            after_step(state)

            if execution.first and state.seconds - reported > config.execution.report_seconds:
                reported = state.seconds
                report(
                    {
                        "images": state.images,
                        "loss": loss.item(),
                        "seconds": state.seconds,
                        "mfu": mfu_per_rate * state.images / state.seconds,
                    }
                )

            due = state.seconds - saved > writer.interval(config.execution.checkpoint_seconds)
            due = due and execution.first and state.images < config.images  # by its clock alone
            ending, due = distributed.any_worker([stop_requested.is_set(), due], execution.device)
            if trunk and state.images in trunk.branch_points:
                save(state, writer, trunk.folder)
            if ending or due:
                saved = state.seconds
                save(state, writer, preempted=ending)
            if ending:
                writer.wait()
                distributed.barrier()  # once one worker has left, the others may be killed
                raise Preempted(f"the process was told to end after {state.images} images")

    state.ema |= {name: buffer.clone() for name, buffer in state.flow.named_buffers()}
    state.ema = {name: distributed.full_tensor(tensor).cpu() for name, tensor in state.ema.items()}
    state.seconds = time.perf_counter() - started
    return state


def set_dropped_condition(state: TrainState, config: RunConfig) -> None:
    """Set what stands for a dropped condition to what the data say."""
    if not config.model.condition_tokens:
        return
    dropped = data.open_split(config.data, "train").dropped
    if dropped is not None:
        for target in (state.flow.null_condition, state.ema["null_condition"]):
            target.copy_(torch.from_numpy(dropped))


def has_row(step: int) -> bool:
    """Tell whether the loss curve has a row after this step, whatever the length of the run.

    >>> sum(map(has_row, range(1, 101))), sum(map(has_row, range(1, 10_001)))
    (100, 526)
    """
    return step % (1 << max(0, (step // CURVE_POINTS).bit_length() - 1)) == 0


def batches(
    config: RunConfig, start: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield pixels and conditions of global batches from image `start` on, in the seed's order."""
    images = data.open_split(config.data, "train")
    for seen in range(start, config.images, config.batch):
        indices = data.order(len(images.labels), config.seed, seen, config.batch)
        pixels = torch.from_numpy(data.batch(images, indices)).to(device, non_blocking=True)
        condition = images.condition(indices, config.model)
        if condition is not None:
            condition = condition.to(device, non_blocking=True)
        yield pixels, condition
