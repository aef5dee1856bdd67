"""Judge methods together on draws from the prior, which they were not chosen on.

Legend: `B` images, `T` tokens per image, `D` values per token, `c` colour channels, `H` height and
width.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tarflow.config import SamplerConfig
from tarflow.model.flow import TarFlow
from tarflow.model.noise import normal_per_image
from tarflow.sample.inverse import invert
from tarflow.sample.plan import SEQUENTIAL, Method, Plan

BATCHES = 2  # drawn to judge
MARGIN = 4.0  # how far below the tolerance the largest error stays, since rare images err more
ATTEMPTS = 4  # times that methods are made stricter before blocks are decoded sequentially


@dataclass(frozen=True)
class Judge:
    """Draws from the prior, with the images that sequential decoding gives for them."""

    flow: TarFlow
    condition: Tensor | None  # as for `TarFlow.forward`
    sampler: SamplerConfig | None
    batch: int  # images per batch, B
    rounding: float  # largest error of a pixel that sequential decoding makes

    @cached_property
    def draws(self) -> list[tuple[Tensor, Tensor]]:
        """Latents (B, T, D) and images (B, c, H, H) of each batch, without autocast."""
        flow, shape = self.flow, (self.flow.config.tokens, self.flow.config.token_dim)
        indices = torch.arange(BATCHES * self.batch)
        noise = normal_per_image(indices, shape, 0, "calibration", flow.var.dtype)
        latents = noise.to(flow.var.device) * flow.var.sqrt()
        with torch.autocast(flow.var.device.type, enabled=False):
            return [
                (part, invert(flow, part, self.condition, self.sampler))
                for part in latents.split(self.batch)
            ]

    def accepts(self, error: float, tolerance: float) -> bool:
        """Tell whether the largest error of a pixel leaves a margin for images not drawn here."""
        return MARGIN * error <= tolerance

    def error(self, methods: tuple[Method, ...]) -> float:
        """Return the largest error of a pixel; pixels are in [-1, 1]."""
        if all(method == SEQUENTIAL for method in methods):
            return self.rounding
        plan = Plan(methods=methods)
        return max(
            largest_error(invert(self.flow, latents, self.condition, self.sampler, plan), exact)
            for latents, exact in self.draws
        )

    def tighten(self, methods: tuple[Method, ...], tolerance: float) -> tuple[Method, ...]:
        """Return stricter methods whose largest error is accepted.

        The tolerance of tokens is lowered. Should this not suffice, blocks return to sequential
        decoding, the one nearest the images first.
        """
        for _ in range(ATTEMPTS):
            error = self.error(methods)
            if self.accepts(error, tolerance):
                return methods
            excess = 2 * MARGIN * error / tolerance  # errors grow in proportion, about
            methods = tuple(
                replace(method, tolerance=method.tolerance / excess) if method.segments else method
                for method in methods
            )
        for index in range(len(methods)):
            methods = (*methods[:index], SEQUENTIAL, *methods[index + 1 :])
            if self.accepts(self.error(methods), tolerance):
                break
        return methods


def largest_error(images: Tensor, exact: Tensor) -> float:
    """Return the largest error of a pixel of (B, c, H, H) images whose exact values are finite.

    Sampling draws the other images again. The error is infinite if no image is finite.
    """
    finite = exact.isfinite().flatten(1).all(1)
    if not finite.any():
        return math.inf
    return float((images - exact)[finite].abs().nan_to_num(math.inf).max())
