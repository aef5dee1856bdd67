"""`python -m tarflow sample`: draw images from a trained model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tarflow import human
from tarflow.commands.checkpoint import NO_FLAGS, Checkpoint, Flags, load
from tarflow.commands.progress import progress
from tarflow.config import RunConfig
from tarflow.errors import UserError, check_counts
from tarflow.sample.plan import PLAN
from tarflow.storage import locate_model

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.model.flow import TarFlow


def sample(
    checkpoint: Checkpoint,
    /,
    count: int | None = None,
    grid: Path = Path("samples.png"),
    columns: int | None = None,
    seed: int = 0,
    labels: tuple[int, ...] = (),
    condition: Path | None = None,
    batch: int = 64,
    solver: str = "auto",
    precision: Literal["float32", "float16", "bfloat16"] = "float32",
    autoencoder: Path | None = None,
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
        condition: Parquet table whose column `condition` holds the vectors to condition on, in
            turn; by default those of the run's held-out images. What the table stores for a
            dropped condition replaces the model's.
        batch: Images to draw at a time.
        solver: sequential, jacobi, selective or segmented:8; auto uses the plan that
            `python -m tarflow calibrate` measured for this batch size and guidance, if there is
            one.
        precision: Precision of the matrix products. On a GPU float16 takes half the time of
            float32; its rounding is an eighth of bfloat16's, and values beyond 65,504 give images
            that are drawn again.
        autoencoder: Folder of the autoencoder that decodes the samples of a model of latents; by
            default the one that encoded the images it was trained on.
        sampling: Sampler settings.
    """
    from tarflow.device import autocast
    from tarflow.latent.autoencoder import decoder_of
    from tarflow.sample.calibration import choose_plan
    from tarflow.sample.drawing import draw
    from tarflow.sample.grid import captions, image_grid, save_grid, usual_count

    check_counts(count=count, batch=batch, columns=columns)
    flow, config = load(checkpoint, sampling)
    decoder = decoder_of(checkpoint, flow, config, autoencoder)
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
        config,
        count,
        decoder,
        _condition(flow, config, count, labels, condition),
        seed,
        batch,
        plan,
        precision,
        report=progress("images drawn"),
    )
    pictures = drawn.pictures
    seconds = time.perf_counter() - start
    words = captions(str(checkpoint), seed, config.sampler, " ".join(map(str, classes)))
    rows = drawn.condition if flow.config.classes else None
    save_grid(grid, image_grid(pictures, rows, columns), words)
    print(
        f"{grid}: {len(pictures)} images in {human.seconds(seconds)}, "
        f"{human.digits(count / seconds)} images per second ({plan})"
    )
    if drawn.redrawn or drawn.lost:
        print(f"{drawn.redrawn} draws were not finite and were repeated, {drawn.lost} given up")
    return 0


def _condition(
    flow: "TarFlow", config: RunConfig, count: int, labels: tuple[int, ...], table: Path | None
) -> "Tensor | None":
    """Return what the flags say that samples are conditioned on, if they do."""
    import torch

    from tarflow.data.conditions import read_conditions

    if labels and table:
        raise UserError("give --labels or --condition, not both")
    if labels:
        return torch.tensor(labels)[torch.arange(count) % len(labels)]
    if table is None:
        return None
    vectors, dropped = read_conditions(table)
    given = torch.from_numpy(vectors)[torch.arange(count) % len(vectors)]
    flow.check_condition(given)
    if dropped is not None:
        flow.null_condition.copy_(torch.from_numpy(dropped))
    elif config.sampler.guidance and not config.data.hash:  # not trained here
        raise UserError(
            f"guidance needs what stands for a dropped condition, which neither the published "
            f"weights nor {table} hold: encode captions with python -m tarflow data text"
        )
    return given
