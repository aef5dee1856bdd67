"""`python -m tarflow sample`: images from a trained model."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from tarflow.commands.flags import NO_FLAGS, Flags


def sample(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    /,
    count: int = 64,
    grid: Path = Path("samples.png"),
    columns: int = 8,
    seed: int = 0,
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
        sampling: how.
    """
    from tarflow.checkpoint import load_model
    from tarflow.sampling import image_grid
    from tarflow.sampling import sample as draw

    flow, config = load_model(checkpoint)
    sampler = sampling.over(config.sampler)
    start = time.perf_counter()
    drawn = draw(flow, count, sampler, config.noise, seed=seed)
    seconds = time.perf_counter() - start
    grid.parent.mkdir(parents=True, exist_ok=True)
    image_grid(drawn.images, columns).save(grid)
    print(f"{grid}: {len(drawn.images)} images, {seconds / count:.3f} s each")
    if drawn.redrawn or drawn.lost:
        print(f"{drawn.redrawn} draws were not finite and repeated, {drawn.lost} given up")
    return 0
