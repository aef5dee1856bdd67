"""What this machine has, found without importing torch."""

import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
from pathlib import Path

from tarflow import cost, record
from tarflow.storage import cache_folder

FIRST_GPU = Path("/dev/nvidia0")
DRIVER = Path("/proc/driver/nvidia/gpus")  # where NVIDIA's driver describes its GPUs


def has_gpu() -> bool:
    """Tell whether this process sees a GPU."""
    return FIRST_GPU.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def accelerators() -> list[str]:
    """Return the names of the GPUs in `cost.ACCELERATORS`; empty if one of them is not there."""
    texts = [path.read_text() for path in sorted(DRIVER.glob("*/information"))]
    names = [next((name for name in cost.ACCELERATORS if name in text), "") for text in texts]
    return names if has_gpu() and all(names) else []


def core_flops() -> float:
    """Return the FLOPs per second of `probe`, measured once per machine."""
    key = f"{socket.gethostname()}-{platform.machine()}-{cores()}"
    path = cache_folder() / f"rate-{key}.json"
    try:
        return float(json.loads(path.read_text())["flops"])
    except (OSError, ValueError, KeyError):
        flops = probe()
        record.write_json(path, {"flops": flops})
        return flops


def cores() -> int:
    """Return the number of cores that affinity and container limits leave to this process."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or one without a limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed or 1, int(quota) // int(period)))
    return allowed or 1


PROBE = """
import sys, time
import numpy as np
left, right = np.ones((2, 512, 512), np.float32)
sys.stdin.readline()  # all probes start together
best, end = 9e9, time.perf_counter() + 0.3
while (start := time.perf_counter()) < end:
    left @ right
    best = min(best, time.perf_counter() - start)
print(2 * 512**3 / best)
"""


def probe() -> float:
    """Measure float32 matrix products, FLOPs per second and core, with all cores busy."""
    single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")}
    probes = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE],
            env=os.environ | single,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(cores())
    ]
    for process in probes:
        if process.stdin:
            process.stdin.write("\n")
            process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in probes)
