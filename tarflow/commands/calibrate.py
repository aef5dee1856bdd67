"""`python -m tarflow calibrate`: measure the fastest way to sample from a model here."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tarflow.commands.flags import NO_FLAGS, Flags
from tarflow.config import ExecutionConfig
from tarflow.sample.plan import PLAN, Plan, keep_plan


def calibrate(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    /,
    batch: int = 64,
    tolerance: float | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    sampling: Flags = NO_FLAGS,
) -> int:
    """Measure how each block is inverted fastest on this machine, and keep the plan.

    The plan lies in plan.json beside the checkpoint; `sample` and `evaluate` use it for the same
    device, batch size and precision, with guidance or without.

    Args:
        checkpoint: model.safetensors of a run.
        batch: images at a time.
        tolerance: largest error of a pixel, images being in [-1, 1]; by default a tenth of the
            training noise, or half a grey level for uniform noise.
        precision: of matrix products.
        sampling: whether and where it is guided.
    """
    from tarflow.device import autocast, choose_device
    from tarflow.model.weights import load_model
    from tarflow.sample import calibration

    flow, config = load_model(checkpoint)
    flow = flow.to(choose_device(ExecutionConfig()))
    config = replace(config, sampler=sampling.over(config.sampler))
    images, labels = calibration.calibration_images(flow, config, batch)
    with autocast(precision, flow.var.device):
        plan = calibration.calibrate(flow, images, labels, config.noise, config.sampler, tolerance)
    path = checkpoint.parent / PLAN
    keep_plan(path, plan)
    _show(plan)
    print(f"kept in {path}")
    return 0


def _show(plan: Plan) -> None:
    table = Table("block")
    table.add_column("solver", no_wrap=True)
    for name in ("guess", "seconds", "one by one", "sweeps", "CRM %", "IGM"):
        table.add_column(name)
    table.title = f"batches of {plan.situation.batch if plan.situation else 0}, noise side first"
    rows = reversed(list(enumerate(zip(plan.methods, plan.measured, strict=True))))
    for index, (method, seen) in rows:
        table.add_row(
            str(index),
            str(method),
            method.guess if method.segments else "",
            f"{seen.seconds:.3f}",
            f"{seen.sequential_seconds:.3f}",
            str(seen.sweeps or "too slow"),
            f"{seen.crm:.1f}",
            f"{seen.igm_latents:.2f} / {seen.igm_zeros:.2f}",
        )
    Console().print(table)
    chosen = sum(seen.seconds for seen in plan.measured)
    plain = sum(seen.sequential_seconds for seen in plan.measured)
    print(
        f"{plain / chosen:.2f} times as fast as token by token; {plain:.2f} s to {chosen:.2f} s, "
        f"where one parallel pass takes {plan.forward_seconds:.2f} s; "
        f"largest error of a pixel {plan.error:.1e}"
    )
