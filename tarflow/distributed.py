"""Data-parallel workers: rank, shared or divided state, reductions.

The only importer of `torch.distributed`. Every function also serves a single process.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tarflow import cost
from tarflow.config import RunConfig
from tarflow.cuda_graph import supports_cuda_graphs
from tarflow.device import memory_bytes
from tarflow.errors import UserError
from tarflow.model.flow import FlowBlock, Layer, TarFlow

ALIGNED = 64  # values, so that kernels can read several at once


def world_size() -> int:
    """Return the number of data-parallel workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's number; 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Return this worker's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun's environment describes, if it does and nobody has joined."""
    ours = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if ours:
            dist.destroy_process_group()
            # A thread of gloo lets go of the tensors it exchanged last, and needs the interpreter
            # for it; in one that ends it aborts the process (pytorch#179291, PyTorch 2.14).
            time.sleep(0.2)


def batch_slice(batch: int) -> slice:
    """Return this worker's part of a global batch.

    Raises:
        UserError: if the batch does not divide evenly.
    """
    if batch % world_size():
        raise UserError(f"batch {batch} is not a multiple of the {world_size()} workers")
    return local_slice(batch)


def local_slice(count: int) -> slice:
    """Return this worker's part of so many items; the parts are in the order of the workers."""
    first, last = (-(-count * each // world_size()) for each in (rank(), rank() + 1))
    return slice(first, last)


def gather_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Join the rows of all workers, in their order, for each of them.

    Args:
        rows: (n, ...) of this worker; others may have more or fewer.
        device: of the workers, over which the rows travel.

    Returns:
        All rows, on the CPU.
    """
    size = world_size()
    if size == 1:
        return rows.cpu()
    counts = torch.zeros(size, dtype=torch.int64, device=device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    padded = torch.zeros(int(counts.max()), *rows.shape[1:], dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows
    every = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(every, padded)
    return torch.cat([each[:n].cpu() for each, n in zip(every, counts.tolist(), strict=True)])


def memory(device: torch.device) -> float:
    """Return the bytes that every worker may fill; all must ask, and the smallest one counts."""
    here = memory_bytes(device, int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))
    least = torch.tensor(here, dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.item()


def resolve(config: RunConfig, device: torch.device) -> RunConfig:
    """Fill in how many workers there are, and whether they divide the state or each holds all.

    Raises:
        UserError: if they divide it and the optimizer needs whole matrices.
    """
    execution = replace(config.execution, workers=world_size())
    config = replace(config, execution=execution)
    shard = cost.sharded(config, memory(device))
    if shard and config.optim.optimizer == "muon":
        raise UserError(
            "muon needs whole matrices on every worker: set optim.optimizer to adamw, or "
            "execution.sharding to replicate"
        )
    chosen = replace(execution, sharding="shard" if shard else "replicate")
    return replace(config, execution=chosen)


def divide(flow: nn.Module, device: torch.device, precision: str) -> None:
    """Divide the parameters of a flow among the workers, in place; a layer is gathered at a time.

    Under bfloat16 the matrices travel in it and gradients are summed in float32. Norms and
    embeddings stay in float32, as under autocast, so that dividing changes no arithmetic.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    low = precision == "bfloat16"
    matrices = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if low else None,
        reduce_dtype=torch.float32 if low else None,
        cast_forward_inputs=False,
    )
    for module in reversed(list(flow.modules())):  # the inner ones first
        if isinstance(module, Layer):
            fully_shard(module, mesh=mesh, mp_policy=matrices)
        elif isinstance(module, FlowBlock) or (low and isinstance(module, nn.LayerNorm)):
            fully_shard(module, mesh=mesh)
    fully_shard(flow, mesh=mesh)


def replayed(flow: TarFlow) -> bool:
    """Tell whether the steps of a flow are recorded: on accelerators, unless it is divided."""
    return supports_cuda_graphs(flow.var.device) and not isinstance(flow, FSDPModule)


def local_shard(tensor: Tensor) -> Tensor:
    """Return what this worker holds of a tensor; they share memory."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held.detach()


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor; if it is divided, every worker must call this."""
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.detach()


def scatter(tensor: Tensor, given: Tensor | None) -> None:
    """Fill a tensor, or each worker's part of it, from the whole that the first worker gives."""
    held = local_shard(tensor)
    sent = held.new_empty(tensor.shape) if given is None else given.to(held)
    if world_size() > 1:
        dist.broadcast(sent, 0)
    if isinstance(tensor, DTensor):
        mesh, placements = tensor.device_mesh, tensor.placements
        sent = local_shard(distribute_tensor(sent, mesh, placements, src_data_rank=None))
    held.copy_(sent)


def broadcast(value: Any, device: torch.device) -> Any:
    """Return the first worker's value, which JSON can hold."""
    if world_size() == 1:
        return value
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor(len(text), device=device)
    dist.broadcast(length, 0)
    sent = text if rank() == 0 else text.new_empty(int(length))
    dist.broadcast(sent, 0)
    return json.loads(bytes(sent.cpu().numpy()))


def flatten_gradients(flow: TarFlow) -> Tensor | None:
    """Give every parameter a gradient of zeros, and return the memory that holds them all.

    Returns:
        None if that would serve nobody: one process that records nothing, or a divided flow, which
        sums gradients by itself.
    """
    if isinstance(flow, FSDPModule) or not (world_size() > 1 or replayed(flow)):
        return None
    parameters = list(flow.parameters())
    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters]
    whole = parameters[0].new_zeros(sum(sizes))
    for parameter, room in zip(parameters, whole.split(sizes), strict=True):
        parameter.grad = room[: parameter.numel()].view_as(parameter)
    return whole


def average_gradients(gradients: Tensor) -> None:
    """Average what `flatten_gradients` gave over the workers, in place."""
    if world_size() > 1:
        dist.all_reduce(gradients)
        gradients /= world_size()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients, the same on every worker."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return full_tensor(norm)


def mean(value: Tensor) -> Tensor:
    """Average a tensor over the workers."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def any_worker(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Tell every worker which of the flags any has set."""
    if world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(raised)
    return [bool(flag) for flag in raised.tolist()]


def barrier() -> None:
    """Wait for all workers."""
    if world_size() > 1:
        dist.barrier()
