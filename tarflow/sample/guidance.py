"""Guidance: combine the scale and shift of a good and a worse branch of a flow.

Legend: `B` images, `n` tokens, `D` values per token. A block maps a latent `v` to `v * scale +
shift`. Each branch predicts a scale and a shift, the worse one without the label or with another
attention temperature.
"""

import torch
from torch import Tensor

from tarflow.config import SamplerConfig


def is_guided(sampler: SamplerConfig | None, condition: Tensor | None) -> bool:
    """Return whether the two branches differ at all."""
    if not sampler or not sampler.guidance:
        return False
    given = condition is not None and (
        condition.is_floating_point() or bool((condition >= 0).any())
    )
    return sampler.temperature != 1 or given


def weights(sampler: SamplerConfig, positions: Tensor, last: int) -> Tensor:
    """Return the guidance weight (n, 1) for the successors of the tokens at `positions` (n,).

    An annealed weight grows linearly along the tokens, in the block's order, up to the `last` one
    that has a successor (Zhai et al. 2025, section 3.5).
    """
    if not sampler.annealed:
        return torch.full((len(positions), 1), sampler.guidance, device=positions.device)
    return (sampler.guidance * (positions + 1) / last)[:, None]


def combine(
    log_scale: Tensor, shift: Tensor, weight: Tensor, sampler: SamplerConfig
) -> tuple[Tensor, Tensor]:
    """Return guided scale and shift (B, n, D) from both branches.

    Args:
        log_scale: (2B, n, D) logarithms of the scale, the good branch first.
        shift: (2B, n, D) shifts, the good branch first.
        weight: (n, 1) weights `w`, from `weights`.
        sampler: Rule and part. The rule names what the weight extrapolates. `log-scale`: logarithm
            of the scale and shift, as in TarFlow's published code. `sigma-linear`: scale and
            shift. `gaussian-score`: the score of a Gaussian, so that the scale only ever shrinks
            (Gu et al. 2025, STARFlow, arXiv 2506.06276). The part names which of scale and shift
            is guided.
    """
    good, worse = log_scale.chunk(2)
    good_shift, worse_shift = shift.chunk(2)
    scale = torch.exp(good)
    guided_shift = good_shift + weight * (good_shift - worse_shift)
    if sampler.rule == "log-scale":
        guided_scale = torch.exp(good + weight * (good - worse))
    elif sampler.rule == "sigma-linear":
        guided_scale = scale + weight * (scale - torch.exp(worse))
    else:
        ratio = torch.exp(2 * (good - worse)).clamp(max=1)
        spread = 1 + weight - weight * ratio
        guided_scale = scale * spread.rsqrt()
        guided_shift = good_shift + weight * ratio / spread * (good_shift - worse_shift)
    if sampler.part == "scale":
        return guided_scale, good_shift
    if sampler.part == "shift":
        return scale, guided_shift
    return guided_scale, guided_shift
