"""`python -m tarflow sample`: images from a trained model."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tarflow.commands.flags import NO_FLAGS, Flags
from tarflow.config import ExecutionConfig
from tarflow.sample.plan import PLAN


def sample(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    /,
    count: int = 64,
    grid: Path = Path("samples.png"),
    columns: int = 8,
    seed: int = 0,
    labels: tuple[int, ...] = (),
    batch: int = 64,
    solver: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    sampling: Flags = NO_FLAGS,
) -> int:
    """Draw images from a trained model and lay them out in one picture.

    What is not given is taken from the run's config.

    Args:
        checkpoint: model.safetensors of a run.
        count: images to draw.
        grid: the picture to write.
        columns: of the picture.
        seed: of the noise; image i depends on (seed, i) only.
        labels: classes to draw, in turn; by default all of them.
        batch: images at a time.
        solver: sequential, jacobi, selective, segmented:8; or auto: the plan that
            `python -m tarflow calibrate` measured for this batch size, if there is one.
        precision: of matrix products.
        sampling: how.
    """
    import torch

    from tarflow.device import autocast, choose_device
    from tarflow.model.weights import load_model
    from tarflow.sample.calibration import choose_plan
    from tarflow.sample.sampling import image_grid
    from tarflow.sample.sampling import sample as draw

    flow, config = load_model(checkpoint)
    flow = flow.to(choose_device(ExecutionConfig()))
    config = replace(config, sampler=sampling.over(config.sampler))
    with autocast(precision, flow.var.device):
        plan = choose_plan(solver, flow, config, count, batch, checkpoint.parent / PLAN)
    start = time.perf_counter()
    drawn = draw(
        flow,
        count,
        config.sampler,
        config.noise,
        labels=torch.tensor(labels)[torch.arange(count) % len(labels)] if labels else None,
        seed=seed,
        batch=batch,
        plan=plan,
        precision=precision,
    )
    seconds = time.perf_counter() - start
    grid.parent.mkdir(parents=True, exist_ok=True)
    image_grid(drawn.images, columns).save(grid)
    print(f"{grid}: {len(drawn.images)} images, {seconds / count:.3f} s each ({plan})")
    if drawn.redrawn or drawn.lost:
        print(f"{drawn.redrawn} draws were not finite and repeated, {drawn.lost} given up")
    return 0
