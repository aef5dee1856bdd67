"""`python -m tarflow cost`: the price of a run, and the seconds of its steps."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from tarflow import cost as costs
from tarflow.config import RunConfig, read_yaml
from tarflow.errors import UserError
from tarflow.step_time import Cluster, StepTime, step_time, weak_scaling

NODES = (1, 2, 4, 8, 16, 32, 64)


def cost(
    config: Annotated[Path, tyro.conf.Positional],
    /,
    accelerator: str = "",
    workers: int = 0,
    nodes: int = 1,
    link: float = 25.0,
    mfu: float = 0.0,
) -> int:
    """Say what a run costs before it is run: parameters, FLOPs, memory, hours, money, step time.

    Args:
        config: a config file, such as best.yaml of a study.
        accelerator: such as H100: predict the seconds of a step on it, and on more nodes.
        workers: data-parallel processes, one device each; by default those of the config.
        nodes: machines that they are spread over.
        link: between nodes, GB/s each way and device.
        mfu: share of the peak that one device was measured to reach; 0 has it predicted.
    """
    chosen = read_yaml(RunConfig, config)
    workers = workers or chosen.execution.workers
    chosen = replace(chosen, execution=replace(chosen.execution, workers=workers))
    room = _accelerator(accelerator).memory if accelerator else float("inf")
    memory, flops = costs.memory(chosen, room), costs.run_flops(chosen)
    rough = 6.0 * costs.params(chosen.model) * chosen.images * chosen.model.tokens
    print(
        f"{costs.params_total(chosen.model):,} parameters, of them {costs.params(chosen.model):,} "
        f"in matrix products\n{chosen.images:,} images, {flops:.3g} training FLOPs "
        f"(6 N tokens: {rough:.3g})"
        f"\n{memory.total / 1e9:.2f} GB a worker: {memory.state / 1e9:.2f} of state, "
        f"{memory.copies / 1e9:.2f} of copies of weights, "
        f"{memory.activations / 1e9:.2f} of activations"
    )
    precision = "float32" if chosen.precision in ("float32", "float64") else "bfloat16"
    table = Table("device", "fits", "device-hours", "US dollars")
    table.title = f"in {precision} at 40% of the data sheet's peak, list prices"
    for name, device in costs.ACCELERATORS.items():
        hours = flops / (0.4 * device.flops[precision]) / 3600
        fits = "yes" if costs.memory(chosen, device.memory).total < device.memory else "no"
        if costs.sharded(chosen, device.memory):
            fits += ", sharded"
        table.add_row(name, fits, f"{hours:.3g}", f"{hours * device.price:.3g}")
    Console().print(table)
    if accelerator:
        _show_steps(chosen, accelerator, nodes, link * 1e9, mfu)
    return 0


def _accelerator(name: str) -> costs.Accelerator:
    if name not in costs.ACCELERATORS:
        known = ", ".join(costs.ACCELERATORS)
        raise UserError(f"accelerator '{name}' is not known; write one of {known}")
    return costs.ACCELERATORS[name]


def _show_steps(config: RunConfig, name: str, nodes: int, network: float, mfu: float) -> None:
    workers = config.execution.workers
    if nodes < 1 or workers % nodes or network <= 0 or not 0 <= mfu < 1:
        raise UserError(
            f"{workers} workers, {nodes} nodes: workers must be a multiple of nodes, link above 0 "
            "GB/s, and mfu from 0 to below 1"
        )
    cluster = Cluster(
        device=_accelerator(name), nodes=nodes, per_node=workers // nodes, network=network
    )
    step = step_time(config, cluster, mfu)
    used = costs.training_flops(config.model) * step.images / workers / step.seconds
    print(f"a step on {workers} {name}, {workers // nodes} a node: {_parts(step)}")
    print(f"{used / 1e12:.3g} TFLOP/s a device; the model is in docs/step-time.md")
    table = Table("nodes", "devices", "batch", "s a step", "images/s", "efficiency", "limit")
    table.title = (
        f"{step.images // workers} images a device (weak scaling), {network / 1e9:g} GB/s"
    )
    for count, wider in zip(NODES, weak_scaling(config, cluster, NODES, mfu), strict=True):
        table.add_row(
            str(count),
            str(count * cluster.per_node),
            f"{wider.images:,}",
            f"{wider.seconds:.4g}",
            f"{wider.images / wider.seconds:,.4g}",
            f"{wider.efficiency:.1%}",
            wider.limit,
        )
    Console().print(table)


def _parts(step: StepTime) -> str:
    parts = {
        "products": step.products,
        "memory": step.traffic,
        "launching": step.launching,
        "optimizer": step.optimizer,
        "waiting for others": step.waiting,
    }
    listed = ", ".join(f"{each:.3g} {name}" for name, each in parts.items() if each)
    state = "sharded" if step.sharded else "replicated"
    return f"{step.seconds:.4g} s ({listed}; {state} state)"
