"""Everything that depends on the device: choosing it, its memory, its peak rate."""

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import time
from functools import cache
from pathlib import Path

import torch

from tarflow.config import ExecutionConfig
from tarflow.cost import ACCELERATORS
from tarflow.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,  # of samples only: gradients leave its range
    "float64": torch.float64,
}
CONTAINER_LIMITS = (  # of memory, in bytes: control groups of version 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def choose_device(execution: ExecutionConfig) -> torch.device:
    """Return this process's device, make it the current one, and apply the thread count.

    Workers of one machine take its GPUs in turn, by the LOCAL_RANK of their environment.

    Raises:
        UserError: If CUDA is asked for and absent.
    """
    if execution.threads:
        torch.set_num_threads(execution.threads)
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise UserError("execution.device is cuda, but this machine has no CUDA device; use cpu")
    if execution.device == "cpu" or not available:
        keep_freed_memory()
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def memory_bytes(device: torch.device, workers: int = 1) -> float:
    """Return the bytes that one worker of this machine may fill.

    An accelerator belongs to one worker; the memory of the machine, or of the container, is
    divided among the workers on it: LOCAL_WORLD_SIZE of the environment, or else all `workers`.
    """
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            limits.append(float(path.read_text()))
    return min(limits) / int(os.environ.get("LOCAL_WORLD_SIZE", workers))


def keep_freed_memory() -> None:
    """Let the C library reuse freed memory instead of returning it to the system.

    Every step frees and allocates the same large activations; by default glibc maps them anew each
    time, and zeroing the pages costs some percent of a step. At most 2 GiB are held.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which matrix products run in the given precision."""
    if DTYPES[precision].itemsize > 2:
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Return the matrix-product rate of a device in FLOPs per second, the base of MFU.

    A known accelerator has its data-sheet peak; anything else is measured with a short probe under
    the current thread count.
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


@cache
def supports_triton(device: torch.device) -> bool:
    """Tell whether Triton can compile for a device: it needs an NVIDIA A100 or newer."""
    if device.type != "cuda" or not importlib.util.find_spec("triton"):
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def describe_device(device: torch.device) -> str:
    """Return the name that the maker gave a device, as far as the system knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor("model name")


def processor(*keys: str) -> str:
    """Return the first processor's entry under one of these names of /proc/cpuinfo, if any."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    values = [line.split(":", 1)[1].strip() for line in lines if line.startswith(keys)]
    return values[0] if values else platform.processor()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_compiler() -> None:
    """Make sure that layers can be compiled here.

    Raises:
        UserError: If not. `torch.compile` would say so after minutes and at length.
    """
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        raise UserError(
            "execution.compile needs a C compiler on this machine: install gcc, or set it to false"
        )
