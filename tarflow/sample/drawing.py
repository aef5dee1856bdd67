"""Draw images as people see them: conditioned as their run says, latents decoded.

Legend: `N` images, `c` colour channels, `H` height and width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tarflow import data
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.human import Progress, silent
from tarflow.latent.autoencoder import Autoencoder
from tarflow.model.flow import TarFlow
from tarflow.sample.plan import Plan
from tarflow.sample.sampling import Samples, sample


@dataclass(frozen=True, eq=False)
class Drawing(Samples):
    """Samples of a run's model, and what makes pictures of them."""

    autoencoder: Autoencoder | None  # None if the samples are images already

    @property
    def pictures(self) -> Tensor:
        """All images (N, c, H, H) in [-1, 1], on the CPU."""
        return self.decode(self.images)

    def decode(self, samples: Tensor) -> Tensor:
        """Return some of the samples as images; those of latents are far larger than latents."""
        return self.autoencoder.decode(samples) if self.autoencoder else samples


def draw(
    flow: TarFlow,
    config: RunConfig,
    count: int,
    autoencoder: Autoencoder | None,
    condition: Tensor | None = None,
    seed: int = 0,
    batch: int = 64,
    plan: Plan | None = None,
    precision: str = "float32",
    part: slice = slice(None),
    report: Progress = silent,
) -> Drawing:
    """Draw from the model of a run by its sampler settings; see `sample`.

    Args:
        flow: Model in eval mode, on its device.
        config: Configuration of its run.
        count: Number of images.
        autoencoder: What decodes the latents that the model draws; None for a model of pixels.
        condition: Labels (count,) or vectors (count, P, E); by default those of
            `default_condition`.
        seed: As for `sample`, like the arguments below.
        batch: Images per batch.
        plan: Method that inverts each block.
        precision: Type of matrix products.
        part: Slice of the images to draw in this process.
        report: As for `sample`.

    Raises:
        UserError: As `sample`.
    """
    if condition is None:
        condition = default_condition(flow, config, count)
    drawn = sample(
        flow,
        count,
        config.sampler,
        config.noise,
        condition,
        seed=seed,
        batch=batch,
        plan=plan,
        precision=precision,
        part=part,
        bounded=autoencoder is None,
        report=report,
    )
    return Drawing(**vars(drawn), autoencoder=autoencoder)


def default_condition(flow: TarFlow, config: RunConfig, count: int) -> Tensor | None:
    """Return what `count` samples are conditioned on if nobody says, or `None`.

    Every class in turn, or the vectors of the run's held-out images in turn. Vectors are dropped
    if these images cannot be opened.
    """
    if flow.config.classes:
        return torch.arange(count) % flow.config.classes
    if not flow.config.condition_tokens:
        return None
    try:
        images = data.open_split(config.data, config.evaluation.split)
    except UserError:
        return None
    return images.condition(np.arange(count) % len(images), flow.config)
