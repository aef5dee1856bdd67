"""Compare two workers of one thread with one process of two threads, and with the prediction.

    python benchmarks/workers.py [--check] [--rounds 8] [--precision float32]

The same global batch is trained in three ways that take turns on the same two cores: by one
process with two threads; by two workers with one thread each that exchange gradients (gloo); and
by the two workers without exchange. The result is the throughput of the workers as a share of that
of the process, median over the rounds. The bar is 0.90; with `--check` the exit code is 1 below
it. The third way gives the rate of one worker. From that rate, and from the bandwidth and latency
of an all-reduce measured between the rounds, `tarflow.step_time` predicts the step of the second
way. Gloo runs on the cores that compute, so no exchange is hidden.
"""

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from tarflow import cost, distributed
from tarflow.config import DataConfig, ExecutionConfig, RunConfig
from tarflow.cost import Accelerator
from tarflow.device import choose_device
from tarflow.execution import resolve_execution
from tarflow.model_config import ModelConfig
from tarflow.step_time import Cluster, step_time
from tarflow.train.state import new_state
from tarflow.train.step import TrainStep

BAR = 0.90
WINDOW = 1.5  # seconds of steps in a row
CONFIGS = {
    "large": RunConfig(
        model=ModelConfig(
            image_size=32, image_channels=3, patch=2, channels=256, blocks=4, layers=4
        ),
        batch=16,
        images=16_000,
    ),
    "small": RunConfig(
        model=ModelConfig(patch=7, channels=64, blocks=4, layers=2), batch=128, images=128_000
    ),
}
BUCKET = 25 * 2**20  # bytes


def main() -> None:
    """Measure, print, and with --check judge the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 below the bar")
    parser.add_argument("--rounds", type=int, default=8, help="number of rounds")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    arguments = parser.parse_args()
    reached = {
        name: compare(name, replace(config, precision=arguments.precision), arguments.rounds)
        for name, config in CONFIGS.items()
    }
    if arguments.check and min(reached.values()) < BAR:
        sys.exit("the bar is missed")


def compare(name: str, config: RunConfig, rounds: int) -> float:
    """Measure one model; return the throughput of two workers as a share of one process's."""
    config = replace(config, data=DataConfig(hash="none"))
    group = Group(config)
    seconds: dict[str, list[float]] = {"process": [], "workers": [], "apart": []}
    exchanges, hops = [], []
    try:
        count = {way: max(1, round(WINDOW / group.seconds(way, 2))) for way in seconds}
        for _ in range(rounds):
            for way, times in seconds.items():
                times.append(group.seconds(way, count[way]))
            exchanges.append(group.seconds("exchange", 4))
            hops.append(group.seconds("hop", 50))
    finally:
        group.end()
    pairs = zip(seconds["process"], seconds["workers"], strict=True)
    share = statistics.median(process / workers for process, workers in pairs)
    print(f"{name}, {config.precision}, batch {config.batch}: {config.model}")
    for way, times in seconds.items():
        print(f"  {way:8} {statistics.median(times) * 1e3:9.1f} ms a step")
    link, latency = BUCKET / statistics.median(exchanges), statistics.median(hops) / 2
    print(f"  all-reduce of 25 MB: {link / 1e9:.2f} GB/s; latency {latency * 1e6:.0f} us")
    predicted = predict(config, statistics.median(seconds["apart"]), link, latency)
    measured = statistics.median(seconds["workers"])
    print(
        f"  predicted {predicted * 1e3:.1f} ms, {predicted / measured:.2f} of the measured step\n"
        f"  two workers over one process: {share:.3f}, bar {BAR:.2f} "
        f"{'met' if share >= BAR else 'MISSED'}"
    )
    return share


def predict(config: RunConfig, alone: float, link: float, latency: float) -> float:
    """Predict the seconds of a step of two workers from those of one worker alone."""
    device = Accelerator({"float32": 1e9, "bfloat16": 1e9}, 1e12, 1e9, link)
    mfu = cost.training_flops(config.model) * config.batch / 2 / alone / 1e9
    cluster = Cluster(device=device, per_node=2, link_latency=latency)
    return step_time(config, cluster, mfu).seconds


class Group:
    """One process of two threads and two workers of one thread, idle between requests."""

    def __init__(self, config: RunConfig) -> None:
        """Start them; the workers connect over gloo."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn = get_context("spawn")
        self.ends, self.processes = [], []
        for rank in (None, 0, 1):
            parent, child = spawn.Pipe()
            process = spawn.Process(target=serve, args=(child, config, rank, port), daemon=True)
            process.start()
            self.ends.append(parent)
            self.processes.append(process)

    def seconds(self, way: str, times: int) -> float:
        """Return the seconds per step over `times` consecutive steps."""
        ends = self.ends[:1] if way == "process" else self.ends[1:]
        for end in ends:
            end.send((way, times))
        return max(float(end.recv()) for end in ends)

    def end(self) -> None:
        """End all processes."""
        for end in self.ends:
            end.send(("end", 0))
        for process in self.processes:
            process.join(10)


def serve(end: Connection, config: RunConfig, rank: int | None, port: int) -> None:
    """Serve requests until told to end; with a rank, this is one of the two workers."""
    if rank is not None:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    choose_device(ExecutionConfig(device="cpu", threads=2 if rank is None else 1))
    alone = make_step(config)  # before the group exists, so it exchanges nothing
    with distributed.process_group():
        works = ways(config, alone)
        while (request := end.recv())[0] != "end":
            way, times = request
            distributed.barrier()
            begin = time.perf_counter()
            for _ in range(times):
                works[way]()
            end.send((time.perf_counter() - begin) / times)


def make_step(config: RunConfig) -> TrainStep:
    """Return the training step of a fresh state."""
    execution = resolve_execution(config)
    return TrainStep(new_state(config, execution), config, execution)


def ways(config: RunConfig, alone: TrainStep) -> dict[str, Callable[[], Any]]:
    """Return the work of every kind of request, by name."""
    together = make_step(config)
    model = config.model
    shape = (config.batch, model.image_channels, model.image_size, model.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    bucket, scalar = torch.zeros(BUCKET // 4), torch.zeros(1)
    return {
        "process": lambda: alone(pixels, None),
        "workers": lambda: together(pixels, None),
        "apart": lambda: alone(pixels, None),
        "exchange": lambda: dist.all_reduce(bucket),
        "hop": lambda: dist.all_reduce(scalar),
    }


if __name__ == "__main__":
    main()
