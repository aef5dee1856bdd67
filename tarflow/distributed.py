"""Data-parallel workers: rank, gradient averaging, reductions.

The only importer of `torch.distributed`. Every function also serves a single process.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tarflow.config import ConfigError


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
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if ours:
            dist.destroy_process_group()


def share(batch: int) -> slice:
    """Return this worker's part of a global batch.

    Raises:
        ConfigError: if the batch does not divide evenly.
    """
    size = world_size()
    if batch % size:
        raise ConfigError(f"batch {batch} is not a multiple of the {size} workers")
    each = batch // size
    return slice(rank() * each, (rank() + 1) * each)


def parallel(flow: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a model so that gradients are averaged over the workers; alone, return it as it is."""
    if world_size() == 1:
        return flow
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(flow, device_ids=devices, broadcast_buffers=False)


def without_sync(flow: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return the context in which gradients only accumulate locally."""
    if isinstance(flow, DistributedDataParallel):
        return flow.no_sync()
    return contextlib.nullcontext()


def mean(value: Tensor) -> Tensor:
    """Average a tensor over the workers."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def any_worker(flag: bool, device: torch.device) -> bool:
    """Tell every worker whether the flag of any is set."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return bool(flags)


def barrier() -> None:
    """Wait for all workers."""
    if world_size() > 1:
        dist.barrier()
