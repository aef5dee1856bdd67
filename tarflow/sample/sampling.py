"""Draw images from a trained flow: noise, inverse, one denoising step, picture.

Legend: `N` images, `c` colour channels, `H` height and width.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.config import NoiseConfig, SamplerConfig
from tarflow.device import autocast
from tarflow.errors import UserError
from tarflow.human import Progress, silent
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import score_function
from tarflow.model.noise import normal_per_image
from tarflow.sample.inverse import invert
from tarflow.sample.plan import Plan

REDRAWS = 3  # times that an image which is not finite is drawn again with other noise


@dataclass(frozen=True)
class Samples:
    """Images drawn from a flow, and the number of failed draws."""

    images: Tensor  # (N, c, H, H) float32 in [-1, 1] or latents, on the CPU, without lost ones
    condition: Tensor | None  # of these images, (N, ...)
    redrawn: int  # draws that were not finite and were repeated with other noise
    lost: int  # images that were still not finite after `REDRAWS` repetitions


def sample(
    flow: TarFlow,
    count: int,
    sampler: SamplerConfig,
    noise: NoiseConfig,
    condition: Tensor | None = None,
    seed: int = 0,
    batch: int = 64,
    plan: Plan | None = None,
    precision: str = "float32",
    part: slice = slice(None),
    bounded: bool = True,
    report: Progress = silent,
) -> Samples:
    """Draw images; image i is a function of (seed, i, its condition), whatever the batch size.

    Args:
        flow: Model in eval mode, on its device.
        count: Number of images.
        sampler: Guidance and denoising.
        noise: Training noise of the model; only Gaussian noise can be denoised.
        condition: Labels (count,) int64, -1 for none, or vectors (count, P, E). `None` takes every
            class in turn, and no vectors.
        seed: Seed of the noise.
        batch: Images per batch.
        plan: Method that inverts each block; `None` inverts all sequentially.
        precision: Type of matrix products, float32, float16 or bfloat16; tokens keep the flow's
            type.
        part: Slice of the images to draw in this process.
        bounded: Whether to clamp values to [-1, 1]; latents of an autoencoder have no bounds.
        report: Called after each batch with the images drawn and to be drawn by this process, and
            the seconds so far.

    Raises:
        UserError: If `count` is not positive, or the condition does not fit the flow.
    """
    if count < 1:
        raise UserError(f"cannot draw {count} images: ask for at least 1")
    if condition is None and flow.config.classes:
        condition = torch.arange(count) % flow.config.classes
    flow.check_condition(condition)
    if condition is not None and len(condition) != count:
        raise UserError(f"{len(condition)} conditions for {count} images: give one per image")
    indices = torch.arange(count)[part]
    condition = None if condition is None else condition[part]
    config, device = flow.config, flow.var.device
    shape = config.tokens, config.token_dim
    images = torch.empty(len(indices), config.image_channels, *(config.image_size,) * 2)
    pending = torch.arange(len(indices))
    redrawn, start = 0, time.perf_counter()
    for attempt in range(1 + REDRAWS):
        redrawn += len(pending) if attempt else 0
        for rows in pending.split(batch) if len(pending) else ():
            purpose = f"sample {attempt}"
            latents = normal_per_image(indices[rows], shape, seed, purpose, flow.var.dtype)
            latents = latents.to(device) * flow.var.sqrt()
            row_condition = None if condition is None else condition[rows].to(device)
            with autocast(precision, device):
                drawn = invert(flow, latents, row_condition, sampler, plan)
                if noise.type == "gaussian" and sampler.denoise:
                    drawn = denoise(flow, drawn, row_condition, noise.std, sampler.denoise)
            images[rows] = drawn.float().cpu()
            report(int(rows[-1]) + 1, len(images), time.perf_counter() - start)
        pending = pending[~images[pending].isfinite().flatten(1).all(1)]
    kept = images.isfinite().flatten(1).all(1)
    return Samples(
        images[kept].clamp(-1, 1) if bounded else images[kept],
        None if condition is None else condition[kept],
        redrawn,
        lost=len(pending),
    )


def denoise(
    flow: TarFlow,
    images: Tensor,
    condition: Tensor | None,
    noise_std: float,
    multiplier: float = 1.0,
) -> Tensor:
    """Move noisy images to their expected clean images (Zhai et al. 2025, section 3.4).

    `x + multiplier * noise_std^2 * grad log p(x | label)` (Tweedie), with the standard normal
    prior of the training loss also for volume-preserving flows, as published. Images are denoised
    in batches that bound the memory, which does not change the result.

    Args:
        flow: Model in eval mode; its parameters get no gradient.
        images: (N, c, H, H) noisy images, not changed.
        condition: As for `TarFlow.forward`.
        noise_std: Standard deviation of the training noise.
        multiplier: Factor of the step; 1 is Tweedie's formula.

    Raises:
        UserError: If the condition does not fit the flow.
    """
    score, _ = score_function(flow, images, condition, standard_prior=True)
    return images.detach() + multiplier * noise_std**2 * score
