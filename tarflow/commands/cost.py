"""`python -m tarflow cost`: the price of a run, and the seconds of its steps."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from tarflow import cost as costs
from tarflow import human
from tarflow.commands.table import print_table
from tarflow.config import RunConfig
from tarflow.config_files import read_yaml
from tarflow.errors import UserError, check_flags
from tarflow.step_time import Cluster, StepTime, smallest_cluster, step_time, weak_scaling

NODES = (1, 2, 4, 8, 16, 32, 64)


def cost(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    accelerator: str = "",
    workers: int = 0,
    nodes: int = 0,
    link: float = 25.0,
    mfu: float = 0.0,
) -> int:
    """Estimate what a run costs: parameters, FLOPs, memory, time, money, seconds per step.

    Example: python -m tarflow cost best.yaml --accelerator H100 --workers 16 --nodes 2

    Args:
        config: Config file of a run, such as best.yaml of a study.
        accelerator: Device such as H100: also predict what the seconds of a step consist of, on
            these nodes and on more.
        workers: Data-parallel processes, one device each; 0 takes the number from the config.
        nodes: Machines that the workers are spread over; 0 takes the fewest of eight devices.
        link: Bandwidth between nodes, in GB/s for each device and direction.
        mfu: Measured share of the peak rate that one device reaches (model FLOPs utilisation),
            with attention counted as causal; 0 predicts it.
    """
    check_flags(link=link, mfu=mfu)
    run = read_yaml(RunConfig, config)
    workers = workers or run.execution.workers
    run = replace(run, execution=replace(run.execution, workers=workers))
    device_bytes = _accelerator(accelerator).memory if accelerator else float("inf")
    clusters = {
        name: _cluster(device, workers, nodes, link * 1e9)
        for name, device in costs.ACCELERATORS.items()
    }
    if mfu >= 1:
        raise UserError(f"--mfu is {mfu:g}: it must be from 0 to below 1")
    memory, flops = costs.memory(run, device_bytes), costs.run_flops(run)
    six_n_tokens = 6.0 * costs.params(run.model) * run.images * run.model.tokens
    print(
        f"{costs.params_total(run.model):,} parameters, of which {costs.params(run.model):,} in "
        f"matrix products\n{run.images:,} images, {flops:.3g} training FLOPs "
        f"(6 N tokens: {six_n_tokens:.3g})"
        f"\n{human.size(memory.total)} per worker: {human.size(memory.state)} of state, "
        f"{human.size(memory.copies)} of copies of weights, "
        f"{human.size(memory.activations)} of activations"
    )
    steps = round(run.images / run.batch)
    print_table(
        f"training, {steps:,} steps, on {workers} device{'s' * (workers != 1)} at list prices of "
        f"{costs.PRICES_DATE} or your own",
        ("device", "fits", "step", "time", "device time", "price"),
        (
            _priced(run, name, cluster, steps * step_time(run, cluster, mfu).seconds, steps)
            for name, cluster in clusters.items()
        ),
    )
    if accelerator:
        _print_steps(run, accelerator, clusters[accelerator], mfu)
    return 0


def _accelerator(name: str) -> costs.Accelerator:
    if name not in costs.ACCELERATORS:
        known = ", ".join(costs.ACCELERATORS)
        raise UserError(f"--accelerator {name} is not known: write one of {known}")
    return costs.ACCELERATORS[name]


def _cluster(device: costs.Accelerator, workers: int, nodes: int, bandwidth: float) -> Cluster:
    if workers < 1 or nodes < 0 or (nodes and workers % nodes) or bandwidth <= 0:
        raise UserError(
            f"{workers} workers, {nodes} nodes: --workers must be a multiple of --nodes, and "
            "--link above 0 GB/s"
        )
    cluster = smallest_cluster(device, workers)
    if nodes:
        cluster = replace(cluster, nodes=nodes, per_node=workers // nodes)
    return replace(cluster, network=bandwidth)


def _priced(
    run: RunConfig, name: str, cluster: Cluster, seconds: float, steps: int
) -> tuple[str, ...]:
    """Return the cells of a device on which the steps take these seconds in all."""
    device, device_seconds = cluster.device, seconds * cluster.workers
    fits = "yes" if costs.memory(run, device.memory).total < device.memory else "no"
    return (
        name,
        fits + ", sharded" * costs.sharded(run, device.memory),
        human.seconds(seconds / steps),
        human.seconds(seconds),
        human.device_time(device_seconds, name),
        human.money(device_seconds / 3600 * costs.price_of(name).hourly),
    )


def _print_steps(run: RunConfig, name: str, cluster: Cluster, mfu: float) -> None:
    workers, step = cluster.workers, step_time(run, cluster, mfu)
    rate = costs.training_flops(run.model) * step.images / workers / step.seconds
    print(f"a step on {workers} {name}, {cluster.per_node} per node: {_in_words(step)}")
    print(
        f"{human.digits(rate / 1e12)} TFLOP/s per device, attention counted as causal; "
        "docs/step-time.md describes the model"
    )
    images, network = step.images // workers, cluster.network / 1e9
    print_table(
        f"{images} images per device (weak scaling), {network:g} GB/s",
        ("nodes", "devices", "batch", "step", "images/s", "efficiency", "limit"),
        (
            (
                str(count),
                str(count * cluster.per_node),
                f"{scaled.images:,}",
                human.seconds(scaled.seconds),
                human.digits(scaled.images / scaled.seconds),
                f"{scaled.efficiency:.1%}",
                scaled.limit,
            )
            for count, scaled in zip(NODES, weak_scaling(run, cluster, NODES, mfu), strict=True)
        ),
    )


def _in_words(step: StepTime) -> str:
    parts = {
        "products": step.products,
        "memory": step.traffic,
        "launching": step.launching,
        "optimizer": step.optimizer,
        "waiting for others": step.waiting,
    }
    listed = ", ".join(
        f"{human.seconds(seconds)} {name}" for name, seconds in parts.items() if seconds
    )
    state = "sharded" if step.sharded else "replicated"
    return f"{human.seconds(step.seconds)} ({listed}; {state} state)"
