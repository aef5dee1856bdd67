"""Everything that depends on the device: choosing it, its arithmetic, its peak rate."""

import contextlib
import ctypes
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow.config import ExecutionConfig, ModelConfig, RunConfig
from tarflow.cost import ACCELERATORS
from tarflow.errors import UserError

Replay = Callable[[], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
CONTAINER_LIMITS = (  # of memory, in bytes: control groups of version 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def choose_device(execution: ExecutionConfig, local_rank: int = 0) -> torch.device:
    """Return the device a worker trains on, make it the current one, and apply the thread count.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    if execution.threads:
        torch.set_num_threads(execution.threads)
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise UserError("execution.device is cuda, but this machine has no CUDA device; use cpu")
    if execution.device == "cpu" or not available:
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def memory_bytes(device: torch.device, local_workers: int = 1) -> float:
    """Return the memory that one worker of this machine may fill.

    An accelerator is a worker's own; the memory of the machine, or of the
    container, is divided among those on it.
    """
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            limits.append(float(path.read_text()))
    return min(limits) / local_workers


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory instead of returning it to the system.

    Every step frees and asks for the same large activations; by default glibc maps them anew each
    time, and zeroing the pages costs some percent of a step. At most 2 GiB are kept back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


WIDE = 64  # channels from which bfloat16 pays on a CPU that multiplies in it


def resolve_precision(precision: str, device: torch.device, model: ModelConfig) -> str:
    """Turn `auto` into the faster of bfloat16 and float32 for this device and model.

    A CPU trains faster in bfloat16 if it multiplies in it (AVX512-BF16, as all with matrix units
    do) and the products are wide enough to make up for the conversions (`benchmarks/README.md`).
    """
    if precision != "auto":
        return precision
    multiplies = torch.cpu.get_capabilities().get("avx512_bf16", False)
    wide = multiplies and model.channels >= WIDE
    return "bfloat16" if device.type == "cuda" or wide else "float32"


def master_dtype(config: RunConfig) -> torch.dtype:
    """Return the type of the weights: float32, or float64 when all arithmetic is."""
    return torch.float64 if config.precision == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which matrix products run in the given precision."""
    if precision != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Return the matrix-product rate of a device in FLOPs per second, the base of MFU.

    A known accelerator gives its data-sheet peak; anything else is measured with a short probe
    under the thread count in force.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, accelerator in ACCELERATORS.items():
            if known in name:
                return accelerator.flops.get(precision, accelerator.flops["float32"])
    rows, inner, columns = (4096, 256, 1024) if device.type == "cpu" else (8192, 8192, 8192)
    left = torch.randn(rows, inner, device=device, dtype=DTYPES[precision])
    right = torch.randn(columns, inner, device=device, dtype=DTYPES[precision]).T
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * rows * inner * columns / best


def describe_device(device: torch.device) -> str:
    """Name a device as its maker does, as far as that can be known."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor("model name")


def processor(*keys: str) -> str:
    """Return what the system says of the first processor under one of these names, if anything."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    values = [line.split(":", 1)[1].strip() for line in lines if line.startswith(keys)]
    return values[0] if values else platform.processor()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_compiler() -> None:
    """Make sure that layers can be compiled here.

    Raises:
        UserError: if not, for `torch.compile` would say so after minutes and at length.
    """
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        raise UserError(
            "execution.compile needs a C compiler on this machine: install gcc, or set it to false"
        )


def replays(device: torch.device) -> bool:
    """Tell whether work can be recorded on a device."""
    return device.type == "cuda"


def recorded(work: Callable[[], None], device: torch.device, pool: Any = None) -> Replay:
    """Do some work once, and return what does it again, on the same memory, as a single launch.

    The host needs some microseconds for each operation, an accelerator often fewer: a replayed
    graph costs one launch however many operations the work has.

    Args:
        work: of fixed shapes, which never waits for the device.
        device: that it runs on.
        pool: memory that recordings share which are never replayed at the same time.
    """
    side = torch.cuda.Stream(device)  # libraries must have been set up before the capture
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # "thread_local" as another thread may be copying a state to the host
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay


def memory_pool(device: torch.device) -> Any:
    """Return an empty pool of memory for recordings."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class Recorder:
    """A function of tensors that is recorded at its first call with some shapes, then replayed.

    It gives nothing back, but writes to tensors that outlive it.
    """

    def __init__(
        self, function: Callable[..., None], device: torch.device, pool: Any = None
    ) -> None:
        """Take the function; `pool` as for `recorded`."""
        self.function, self.device, self.pool = function, device, pool
        self._made: dict[tuple[Any, ...], tuple[list[Tensor | None], Replay]] = {}

    def __call__(self, *arguments: Tensor | None) -> None:
        """Call the function with these values."""
        shapes = tuple(None if each is None else each.shape for each in arguments)
        if shapes not in self._made:
            held = [None if each is None else each.clone() for each in arguments]
            again = recorded(partial(self.function, *held), self.device, self.pool)
            self._made[shapes] = held, again
            return
        held, again = self._made[shapes]
        for kept, given in zip(held, arguments, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)
        again()


def repeat(step: Callable[[], None], times: int, device: torch.device) -> None:
    """Call a step of fixed shapes several times; where it can be recorded, it is."""
    if not replays(device) or times < 3:
        for _ in range(times):
            step()
        return
    again = recorded(step, device)
    for _ in range(times - 1):
        again()
