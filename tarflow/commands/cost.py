"""`python -m tarflow cost`: the price of a run, and the seconds of its steps."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from tarflow import cost as costs
from tarflow.commands.table import print_table
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
    """Estimate what a run costs: parameters, FLOPs, memory, hours, money, seconds per step.

    Example: python -m tarflow cost best.yaml --accelerator H100 --workers 16 --nodes 2

    Args:
        config: Config file of a run, such as best.yaml of a study.
        accelerator: Device such as H100: also predict the seconds of a step on it, on these nodes
            and on more.
        workers: Data-parallel processes, one device each; 0 takes the number from the config.
        nodes: Machines that the workers are spread over.
        link: Bandwidth between nodes, in GB/s for each device and direction.
        mfu: Measured share of the peak rate that one device reaches (model FLOPs utilisation); 0
            predicts it.
    """
    run = read_yaml(RunConfig, config)
    workers = workers or run.execution.workers
    run = replace(run, execution=replace(run.execution, workers=workers))
    device_bytes = _accelerator(accelerator).memory if accelerator else float("inf")
    memory, flops = costs.memory(run, device_bytes), costs.run_flops(run)
    six_n_tokens = 6.0 * costs.params(run.model) * run.images * run.model.tokens
    print(
        f"{costs.params_total(run.model):,} parameters, of which {costs.params(run.model):,} in "
        f"matrix products\n{run.images:,} images, {flops:.3g} training FLOPs "
        f"(6 N tokens: {six_n_tokens:.3g})"
        f"\n{memory.total / 1e9:.2f} GB per worker: {memory.state / 1e9:.2f} of state, "
        f"{memory.copies / 1e9:.2f} of copies of weights, "
        f"{memory.activations / 1e9:.2f} of activations"
    )
    precision = "float32" if run.precision in ("float32", "float64") else "bfloat16"
    rows = []
    for name, device in costs.ACCELERATORS.items():
        hours = flops / (0.4 * device.flops[precision]) / 3600
        fits = "yes" if costs.memory(run, device.memory).total < device.memory else "no"
        if costs.sharded(run, device.memory):
            fits += ", sharded"
        rows.append((name, fits, f"{hours:.3g}", f"{hours * device.price:.3g}"))
    print_table(
        f"in {precision} at 40% of the data sheet's peak, list prices",
        ("device", "fits", "device-hours", "US dollars"),
        rows,
    )
    if accelerator:
        _print_steps(run, accelerator, nodes, link * 1e9, mfu)
    return 0


def _accelerator(name: str) -> costs.Accelerator:
    if name not in costs.ACCELERATORS:
        known = ", ".join(costs.ACCELERATORS)
        raise UserError(f"--accelerator {name} is not known: write one of {known}")
    return costs.ACCELERATORS[name]


def _print_steps(run: RunConfig, name: str, nodes: int, bandwidth: float, mfu: float) -> None:
    workers = run.execution.workers
    if nodes < 1 or workers % nodes or bandwidth <= 0 or not 0 <= mfu < 1:
        raise UserError(
            f"{workers} workers, {nodes} nodes: --workers must be a multiple of --nodes, --link "
            "above 0 GB/s, and --mfu from 0 to below 1"
        )
    cluster = Cluster(
        device=_accelerator(name), nodes=nodes, per_node=workers // nodes, network=bandwidth
    )
    step = step_time(run, cluster, mfu)
    rate = costs.training_flops(run.model) * step.images / workers / step.seconds
    print(f"a step on {workers} {name}, {workers // nodes} per node: {_in_words(step)}")
    print(f"{rate / 1e12:.3g} TFLOP/s per device; docs/step-time.md describes the model")
    print_table(
        f"{step.images // workers} images per device (weak scaling), {bandwidth / 1e9:g} GB/s",
        ("nodes", "devices", "batch", "s per step", "images/s", "efficiency", "limit"),
        (
            (
                str(count),
                str(count * cluster.per_node),
                f"{scaled.images:,}",
                f"{scaled.seconds:.4g}",
                f"{scaled.images / scaled.seconds:,.4g}",
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
    listed = ", ".join(f"{seconds:.3g} {name}" for name, seconds in parts.items() if seconds)
    state = "sharded" if step.sharded else "replicated"
    return f"{step.seconds:.4g} s ({listed}; {state} state)"
