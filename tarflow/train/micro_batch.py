"""The most images that one forward and backward pass can take: tried, not computed."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from tarflow import distributed
from tarflow.config import RunConfig
from tarflow.device import autocast
from tarflow.errors import StepOutOfMemory, UserError
from tarflow.execution import Execution
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.train.state import TrainState

GRAPH_BYTES = 2**27  # on top of a pass: cuBLAS keeps 32 MiB for each stream of a capture


def fit_micro_batch(state: TrainState, config: RunConfig, execution: Execution) -> Execution:
    """Return the execution with the micro-batch halved until memory suffices on all workers.

    Each trial runs forward and backward and holds what the optimizer will; the state keeps its
    values. Trials begin with what an earlier start of the run found. Nothing is tried if the
    config sets the micro-batch, nor for a sharded state, whose memory is computed: a worker that
    ran out of memory would leave the others waiting for its shard of the weights.

    Raises:
        UserError: If a single image does not fit.
    """
    if config.execution.micro_batch or execution.sharded:
        return execution
    model, device = config.model, execution.device
    images = torch.zeros(
        execution.micro_batch,
        model.image_channels,
        model.image_size,
        model.image_size,
        dtype=execution.dtype,
        device=device,
    )
    condition = (
        torch.zeros(len(images), dtype=torch.int64, device=device) if model.classes else None
    )
    if model.condition_tokens:
        condition = state.flow.null_condition.expand(len(images), -1, -1)
    micro = min(state.micro_batch or len(images), len(images))
    while True in distributed.any_worker(
        [not _fits(state.flow, images[:micro], condition, execution)], device
    ):
        if micro == 1:
            raise UserError(
                "one image does not fit in memory: set execution.checkpoint_activations"
            )
        micro = (micro + 1) // 2
    state.micro_batch = micro
    if micro == execution.micro_batch:
        return execution
    why = {"micro-batch": "the most that fits in memory"}
    return replace(execution, micro_batch=micro, reasons={**execution.reasons, **why})


def _fits(flow: nn.Module, images: Tensor, condition: Tensor | None, execution: Execution) -> bool:
    """Tell whether memory suffices for a pass over these images; gradients are left empty."""
    try:
        held = [torch.empty_like(p) for p in flow.parameters() for _ in range(2)]  # moments
        if execution.cuda_graphs:
            held.append(torch.empty(GRAPH_BYTES, dtype=torch.uint8, device=images.device))
        for parameter in flow.parameters():
            parameter.grad = torch.zeros_like(parameter)  # as an earlier pass leaves it
        with autocast(execution.precision, images.device):
            latents, logdet = flow(images, None if condition is None else condition[: len(images)])
        negative_log_likelihood(latents, logdet).mean().backward()
        del held
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return False
    finally:
        flow.zero_grad(set_to_none=True)
    return True


@contextlib.contextmanager
def name_micro_batch(images: int) -> Iterator[None]:
    """Say in an error for lack of memory how many images a pass had.

    Raises:
        StepOutOfMemory: Instead of the error that PyTorch or Python raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise StepOutOfMemory(images) from error


def _out_of_memory(error: Exception) -> bool:
    message = "can't allocate memory"  # the CPU's allocator has no special error type
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or message in str(error)
