"""Rotary positions (Su et al. 2021, arXiv 2104.09864) of images on a grid, as STARFlow has them.

Neighbouring channels of a head form pairs, and each pair of a query or key rotates by an angle
proportional to the token's position. The pairs are divided among the axes: half of them rotate by
row and half by column; with condition tokens, 3/8 by row, 3/8 by column and 1/4 by the position
in the condition.

Legend: `P` condition tokens, `T` tokens per image, `K` channels of a head.
"""

import math
from functools import cache

import torch
from torch import Tensor

from tarflow.model_config import ModelConfig

BASE = 10_000.0  # of the wavelengths


@cache
def rotations(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return cosines and sines (2, P + T, K / 2) for the sequence as a block reads it.

    Condition tokens come first. Positions follow the reading order, so a block that reads
    backwards gives position 0 to the last token.
    """
    side, pairs = math.isqrt(model.tokens), model.head_dim // 2
    with torch.inference_mode(False):  # the table is kept, and training may read it later
        index = torch.arange(side, dtype=torch.float64)
        text = torch.arange(model.condition_tokens, dtype=torch.float64)
        zeros, still = torch.zeros_like(text), torch.zeros(model.tokens, dtype=torch.float64)
        rows = torch.cat([zeros, index.repeat_interleave(side)])
        columns = torch.cat([zeros, index.repeat(side)])
        axes = [(rows, pairs // 2), (columns, pairs // 2)]
        if model.condition_tokens:
            order = torch.cat([text / model.condition_tokens * side, still])
            axes = [(rows, 3 * pairs // 8), (columns, 3 * pairs // 8), (order, pairs // 4)]
        angles = [
            position[:, None] * BASE ** (-torch.arange(count, dtype=torch.float64) / count)
            for position, count in axes
        ]
        angle = torch.cat(angles, 1)
        return torch.stack([angle.cos(), angle.sin()]).to(device, dtype)


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring channels of queries or keys (..., n, K).

    Args:
        heads: Queries or keys of n tokens.
        rotation: Cosines and sines (2, n, K / 2) of these tokens.
    """
    cosine, sine = rotation.to(heads.dtype)
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1)
    return rotated.flatten(-2)
