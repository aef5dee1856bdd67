"""Images as tokens, one for each patch, and back.

Legend: `B` batch, `c` colour channels, `T` tokens per image, `D` values per token.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from tarflow.model_config import ModelConfig


def patchify(images: Tensor, model: ModelConfig) -> Tensor:
    """Cut (B, c, height, width) images into (B, T, D) tokens in raster order.

    Inside a token the order is channel, row, column, or row, column, channel.

    >>> import torch
    >>> model = ModelConfig(image_size=8, image_channels=3, patch=4)
    >>> patchify(torch.zeros(2, 3, 8, 8), model).shape
    torch.Size([2, 4, 48])
    """
    cells = F.pixel_unshuffle(images, model.patch)
    if model.token_order == "channel-last":
        cells = cells.unflatten(1, (model.image_channels, -1)).transpose(1, 2).flatten(1, 2)
    return cells.flatten(2).mT


def unpatchify(tokens: Tensor, model: ModelConfig) -> Tensor:
    """Join the (B, T, D) tokens of square images; the inverse of `patchify`."""
    side = math.isqrt(tokens.shape[1])
    cells = tokens.mT.reshape(len(tokens), tokens.shape[2], side, side)
    if model.token_order == "channel-last":
        cells = cells.unflatten(1, (-1, model.image_channels)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(cells, model.patch)
