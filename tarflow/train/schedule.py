"""The learning rate over a run, counted in images seen, and until when it ignores the length."""

import math
from bisect import bisect_left
from dataclasses import replace

from tarflow.config import OptimConfig, RunConfig

FLOOR = 0.01  # the cosine ends at this share of the peak rate, as published (1e-6 of 1e-4)


def learning_rate(optim: OptimConfig, images: float, total: int) -> float:
    """Return the learning rate at `images` seen of `total`.

    `wsd`: linear warm-up, constant, linear decay to zero over the last `cooldown` share. Before
    the decay the rate does not depend on `total`, so runs of any length share it.
    `cosine`: linear warm-up, then half a cosine.
    """
    warm = min(1.0, images / optim.warmup_images) if optim.warmup_images else 1.0
    if optim.schedule == "wsd":
        decay = min(1.0, (total - images) / (optim.cooldown * total)) if optim.cooldown else 1.0
    else:
        start = min(optim.warmup_images, total)
        along = min(1.0, max(0.0, (images - start) / max(1, total - start)))
        decay = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * along))
    return optim.lr * max(0.0, min(warm, decay) if optim.schedule == "wsd" else warm * decay)


def step_rate(config: RunConfig, images: int) -> float:
    """Return the rate of the step that begins at `images` seen, taken at its middle."""
    return learning_rate(config.optim, images + config.batch / 2, config.images)


def shared_images(config: RunConfig) -> int:
    """Return the number of images after which a run differs from longer runs of its family.

    That is the end of the last step whose rate the cooldown has not lowered; 0 for a cosine.

    >>> shared_images(RunConfig(images=6400, batch=64, optim=OptimConfig(cooldown=0.25)))
    4800
    """
    if config.optim.schedule != "wsd":
        return 0
    endless = replace(config, optim=replace(config.optim, cooldown=0.0))
    steps = range(config.images // config.batch)

    def lowered(step: int) -> bool:
        images = step * config.batch
        return step_rate(config, images) != step_rate(endless, images)

    return bisect_left(steps, True, key=lowered) * config.batch
