"""Data-parallel workers: rank, replicated or sharded state, reductions.

The only importer of `torch.distributed`. Every function also serves a single process.
"""

import contextlib
import fcntl
import gc
import json
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Imported before a process group exists: modules imported later hold it in default arguments.
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tarflow.errors import UserError
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.transformer import Layer

ALIGNED = 64  # values, so that kernels can read several at once
GET_ADDRESS = 0x8915  # Linux: the IPv4 address of an interface (netdevice(7), SIOCGIFADDR)
MESHES: list[DeviceMesh] = []  # of the process group that was joined here


def world_size() -> int:
    """Return the number of data-parallel workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this worker's number; worker 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun's environment describes, unless one is joined."""
    ours = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if ours:
        connect_through(address_towards(os.environ.get("MASTER_ADDR", "")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if ours:
            dist.destroy_process_group()
            release_meshes()
            wait_for_gloo()


def gloo_threads() -> list[str]:
    """Return the names of the threads of gloo in this process (Linux)."""
    names = []
    for file in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            names.append(file.read_text().strip())
    return [name for name in names if "gloo" in name]


def wait_for_gloo(seconds: float = 10.0) -> None:
    """Wait until the threads of a destroyed process group have ended.

    They release the tensors that were exchanged last, and need the interpreter to do so; if that
    has exited, they abort the process (pytorch#179291, PyTorch 2.14).
    """
    deadline = time.monotonic() + seconds
    while gloo_threads() and time.monotonic() < deadline:
        time.sleep(0.01)


def release_meshes() -> None:
    """Let go of a process group that is destroyed, so that its threads and sockets end now.

    Sharded tensors leave their mesh in caches of PyTorch, and a mesh holds its group (2.14). Its
    threads would still run while the interpreter exits and other workers close their connections.
    A mesh without its group looks it up by name.
    """
    if MESHES:
        gc.collect()  # sharded layers hold the group too, in cycles
    while MESHES:
        getattr(MESHES.pop(), "_pg_registry", {}).clear()


def connect_through(address: str) -> None:
    """Let workers on other machines reach this process at an address of this machine.

    Gloo would announce the address to which this machine's name resolves, which is a loopback
    address on Debian and Ubuntu. Settings of the user's own win.

    Args:
        address: IPv4 address. Nothing changes if it is a loopback address, which other machines
            do not reach, or if no network interface has it.
    """
    if not address.startswith("127.") and (interface := interface_of(address)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # not eth10 for eth1


def interface_of(address: str) -> str:
    """Return the name of the network interface with an IPv4 address; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(query, GET_ADDRESS, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def address_towards(host: str) -> str:
    """Return the IPv4 address of this machine that a host sees; empty if there is no way to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:  # sends nothing
        try:
            query.connect((host, 9))
        except OSError:
            return ""
        return str(query.getsockname()[0])


def batch_slice(batch: int) -> slice:
    """Return this worker's part of a global batch.

    Raises:
        UserError: If the batch does not divide evenly.
    """
    if batch % world_size():
        raise UserError(f"batch {batch} is not a multiple of the {world_size()} workers")
    return local_slice(batch)


def local_slice(count: int) -> slice:
    """Return this worker's part of `count` items; parts follow the order of the workers."""
    first, last = (-(-count * worker // world_size()) for worker in (rank(), rank() + 1))
    return slice(first, last)


def gather_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Return the rows of all workers, in the order of the workers, on the CPU of each.

    Args:
        rows: (n, ...) of this worker; others may have more or fewer.
        device: Device that the workers exchange rows from.
    """
    size = world_size()
    if size == 1:
        return rows.cpu()
    counts = torch.zeros(size, dtype=torch.int64, device=device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    padded = torch.zeros(int(counts.max()), *rows.shape[1:], dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:n].cpu() for part, n in zip(gathered, counts.tolist(), strict=True)])


def least(value: float, device: torch.device) -> float:
    """Return the least value of any worker; all must call it."""
    if world_size() == 1:
        return value
    smallest = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return smallest.item()


def shard(flow: TarFlow, device: torch.device, precision: str) -> None:
    """Shard the parameters of a flow over the workers, in place (FSDP).

    Layers are gathered one at a time. In bfloat16 the matrices travel in it and gradients are
    summed in float32. Norms and embeddings stay in float32, as under autocast, so that sharding
    changes no arithmetic.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    MESHES.append(mesh)
    low = precision == "bfloat16"
    matrices = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if low else None,
        reduce_dtype=torch.float32 if low else None,
        cast_forward_inputs=False,
    )
    for module in reversed(list(flow.modules())):  # inner modules first
        if isinstance(module, Layer):
            fully_shard(module, mesh=mesh, mp_policy=matrices)
        elif isinstance(module, FlowBlock) or (low and isinstance(module, nn.LayerNorm)):
            fully_shard(module, mesh=mesh)
    fully_shard(flow, mesh=mesh)


def local_shard(tensor: Tensor) -> Tensor:
    """Return what this worker holds of a tensor; they share memory."""
    shard: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shard.detach()


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; if it is sharded, every worker must call this."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach()


def scatter(tensor: Tensor, source: Tensor | None) -> None:
    """Fill a tensor, or every worker's shard of it, from the first worker's full tensor."""
    shard = local_shard(tensor)
    full = shard.new_empty(tensor.shape) if source is None else source.to(shard)
    if world_size() > 1:
        dist.broadcast(full, 0)
    if isinstance(tensor, DTensor):
        mesh, placements = tensor.device_mesh, tensor.placements
        full = local_shard(distribute_tensor(full, mesh, placements, src_data_rank=None))
    shard.copy_(full)


def broadcast(value: Any, device: torch.device) -> Any:
    """Return the first worker's value, which JSON must be able to hold."""
    if world_size() == 1:
        return value
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor(len(text), device=device)
    dist.broadcast(length, 0)
    sent = text if rank() == 0 else text.new_empty(int(length))
    dist.broadcast(sent, 0)
    return json.loads(bytes(sent.cpu().numpy()))


def flatten_gradients(flow: TarFlow) -> Tensor:
    """Give every parameter a gradient of zeros, all in one buffer, and return that buffer."""
    parameters = list(flow.parameters())
    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters]
    buffer = parameters[0].new_zeros(sum(sizes))
    for parameter, part in zip(parameters, buffer.split(sizes), strict=True):
        parameter.grad = part[: parameter.numel()].view_as(parameter)
    return buffer


def average_gradients(buffer: Tensor) -> None:
    """Average the buffer of `flatten_gradients` over the workers, in place."""
    if world_size() > 1:
        dist.all_reduce(buffer)
        buffer /= world_size()


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
    """Tell every worker which of the flags any worker has set."""
    if world_size() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(raised)
    return [bool(flag) for flag in raised.tolist()]


def barrier() -> None:
    """Wait for all workers."""
    if world_size() > 1:
        dist.barrier()
