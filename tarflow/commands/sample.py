"""`python -m tarflow sample`: draw images from a trained model."""

import time
from pathlib import Path
from typing import Literal

from tarflow import human
from tarflow.commands.checkpoint import NO_FLAGS, Checkpoint, Flags, load
from tarflow.sample.plan import PLAN
from tarflow.storage import locate_model


def sample(
    checkpoint: Checkpoint,
    /,
    count: int | None = None,
    grid: Path = Path("samples.png"),
    columns: int | None = None,
    seed: int = 0,
    labels: tuple[int, ...] = (),
    batch: int = 64,
    solver: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    sampling: Flags = NO_FLAGS,
) -> int:
    """Draw images from a trained model and arrange them in one picture.

    Example: python -m tarflow sample model.safetensors --guidance 2 --count 64 --grid samples.png

    Args:
        checkpoint: Folder of a run or of a release, or its file model.safetensors.
        count: Number of images to draw; by default 64 in all, or a few less so that every class
            has as many.
        grid: Picture to write, as PNG; its text says how it was made.
        columns: Images in a row of the picture; by default every class has a row, or 8.
        seed: Seed of the noise; image i depends on (seed, i) only.
        labels: Classes to draw, in turn; all of them by default.
        batch: Images to draw at a time.
        solver: sequential, jacobi, selective or segmented:8; auto uses the plan that
            `python -m tarflow calibrate` measured for this batch size and guidance, if there is
            one.
        precision: Precision of the matrix products.
        sampling: Sampler settings.
    """
    import torch

    from tarflow.device import autocast
    from tarflow.sample.calibration import choose_plan
    from tarflow.sample.grid import captions, image_grid, save_grid, usual_count
    from tarflow.sample.sampling import sample as draw

    flow, config = load(checkpoint, sampling)
    classes = labels or range(flow.config.classes)
    if count is None:
        count = usual_count(len(set(classes)))
    plans = locate_model(checkpoint).parent / PLAN
    with autocast(precision, flow.var.device):
        plan = choose_plan(solver, flow, config, count, batch, plans)
    if plan.situation:
        print(f"inverting by the measured plan takes about {human.seconds(plan.seconds(count))}")
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
    words = captions(str(checkpoint), seed, config.sampler, " ".join(map(str, classes)))
    save_grid(grid, image_grid(drawn.images, drawn.labels, columns), words)
    print(
        f"{grid}: {len(drawn.images)} images in {human.seconds(seconds)}, "
        f"{human.digits(count / seconds)} images per second ({plan})"
    )
    if drawn.redrawn or drawn.lost:
        print(f"{drawn.redrawn} draws were not finite and were repeated, {drawn.lost} given up")
    return 0
