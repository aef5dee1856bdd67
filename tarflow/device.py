"""Everything that depends on the device: choosing it, its arithmetic, its peak rate."""

import contextlib
import ctypes
import sys
import time
from functools import cache

import torch

from tarflow.config import ConfigError, ExecutionConfig, RunConfig
from tarflow.cost import ACCELERATORS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def choose_device(execution: ExecutionConfig, local_rank: int = 0) -> torch.device:
    """Return the device a worker trains on, and apply its thread count.

    Raises:
        ConfigError: if CUDA is asked for and absent.
    """
    if execution.threads:
        torch.set_num_threads(execution.threads)
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise ConfigError("execution.device is cuda, but this machine has no CUDA device; use cpu")
    if execution.device == "cpu" or not available:
        keep_freed_memory()
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


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


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn `auto` into the precision this device trains in."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" else "float32"


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
    side = 512 if device.type == "cpu" else 8192
    left = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    right = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
