"""Measure how fast runs train that share a GPU, before a study that is long enough to pay for it.

Processes of one run each share a GPU, and train side by side for a few seconds: first one of them,
then two, four and eight. They are Ray actors in one placement group, which holds that GPU.
"""

import math
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sweeps.pricing.plan import LEFT_OUT, Plan
from sweeps.pricing.sharing import MOST, Sharing, most_per_device, read_sharing
from sweeps.running.batch import BatchContext, cause_of
from sweeps.running.cluster import Cluster, living
from sweeps.running.trainable import single_threaded
from tarflow import human
from tarflow.config import RunConfig

SECONDS = 3.0  # of training for each number of runs
STARTING_SECONDS = 120.0  # for the GPU to be free, and for the processes to compile their step
COST = 0.01  # of a study's expected seconds that measuring may take
PROBE_SECONDS = 30.0  # that measuring takes in all
WARM_UP = 10  # steps


def measured_sharing(plan: Plan, context: BatchContext) -> Sharing | None:
    """Return what runs on one GPU do side by side: as measured before, or now if that pays.

    Args:
        plan: Plan of the study.
        context: What all batches of the command share.

    Returns:
        None if no runs share a GPU, if too little is left to do, or if measuring failed.
    """
    out, kinds = context.out, gpu_kinds()
    known = read_sharing(out)
    if known and known.kinds == kinds:
        return known
    runs = [single_threaded(row.run) for row in plan.left]  # the longest first
    small = [run.config for run in runs if run.config.execution.workers == 1]
    begun = any(row.state not in ("to do", LEFT_OUT) for row in plan.rows)
    if begun or plan.runs_seconds * COST < PROBE_SECONDS:
        return None  # the seconds of runs that have ended would mislead; or it costs too much
    if not kinds or len(small) < 2 or small[0].execution.device == "cpu":
        return None
    context.console.print("measuring how many runs should share a GPU, half a minute")
    try:
        sharing = measure(small[0], context.cluster)
    except (RayError, TimeoutError) as error:
        reason = str(cause_of(error)).strip().partition("\n")[0]
        context.console.print(
            f"how runs share a GPU could not be measured: {reason}", soft_wrap=True
        )
        return None
    sharing.write(out)
    context.console.print(in_words(sharing), soft_wrap=True)
    return sharing


def in_words(sharing: Sharing) -> str:
    """Return what was measured, in a line."""
    rates = human.series([f"{rate:.3g} with {count}" for count, rate in sharing.rates.items()])
    return f"training steps per second of runs that share a GPU: {rates}"


def gpu_kinds() -> tuple[str, ...]:
    """Return the kinds of the cluster's GPUs, by Ray's names; empty without GPUs."""
    having = [node["Resources"] for node in living() if node["Resources"].get("GPU")]
    kinds = {name for has in having for name in has if name.startswith("accelerator_type:")}
    return tuple(sorted(kinds)) or ("GPU",) * bool(having)


def measure(config: RunConfig, cluster: Cluster) -> Sharing:
    """Train copies of a run on one GPU.

    Args:
        config: The run.
        cluster: The cluster, of which one GPU is taken with its share of the cores.

    Raises:
        RayError: If not even one process can train.
        TimeoutError: If none is ready in `STARTING_SECONDS`.
    """
    threads = config.execution.threads or 1
    count = max(1, min(MOST, int(cluster.cpus / cluster.gpus) // threads))
    group = placement_group([{"CPU": float(count * threads), "GPU": 1.0}])
    alone: Any = ray.remote(Steps)
    try:
        ray.get(group.ready(), timeout=STARTING_SECONDS)
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        options = {"num_cpus": threads, "num_gpus": 1 / count, "scheduling_strategy": place}
        actors: list[Any] = [alone.options(**options).remote() for _ in range(count)]
        started = [actor.start.remote(config, str(Path.cwd())) for actor in actors]
        memory = ray.get(started[0], timeout=STARTING_SECONDS)
        count = most_per_device([config], memory, count)
        ray.get(started[:count], timeout=STARTING_SECONDS)
        rates = {}
        for number in [2**power for power in range(int(math.log2(count)) + 1)]:
            together = [actor.rate.remote(SECONDS) for actor in actors[:number]]
            rates[number] = float(sum(ray.get(together, timeout=STARTING_SECONDS)))
    except GetTimeoutError as error:
        raise TimeoutError(f"no answer in {human.seconds(STARTING_SECONDS)}") from error
    finally:
        remove_placement_group(group)  # ends its processes
    return Sharing(gpu_kinds(), memory, rates)


class Steps:
    """A process that trains one run on its first batch."""

    def start(self, config: RunConfig, home: str) -> float:
        """Compile the step and take a few.

        Args:
            config: The run.
            home: Working folder of the driver, which relative data paths refer to.

        Returns:
            Bytes of the device.
        """
        from sweeps.running.trainable import workplace
        from tarflow.device import memory_bytes
        from tarflow.execution import resolve_execution
        from tarflow.train.cuda_graph import make_train_step
        from tarflow.train.loop import batches
        from tarflow.train.micro_batch import fit_micro_batch
        from tarflow.train.state import new_state

        execution = resolve_execution(config)
        state = new_state(config, execution)
        execution = fit_micro_batch(state, config, execution)
        with workplace(home):
            self.batch = next(batches(config, 0, execution.device))
        self.device = execution.device
        self.step = make_train_step(state, config, execution)
        for _ in range(WARM_UP):
            self.step(*self.batch)
        return memory_bytes(self.device)

    def rate(self, seconds: float) -> float:
        """Train for some seconds; return the steps per second."""
        from tarflow.device import synchronize

        synchronize(self.device)
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            self.step(*self.batch)
            steps += 1
        synchronize(self.device)
        return steps / (time.perf_counter() - start)
