"""How hard each block of a flow is to invert by iteration, as published.

The metrics of Gauss-Seidel-Jacobi sampling (arXiv 2505.12849). Legend: `B` images, `T` tokens per
image, `D` values per token.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from tarflow.model.flow import FlowBlock, TarFlow, patchify


def convergence_ranking(flow: TarFlow, images: Tensor) -> list[float]:
    """Return the CRM of each block: how tough it is to solve by iteration, percent of their sum.

    `|mean_b exp(-a) u|_2 |W_s|_2 + |W_u|_2`, with the log-scale `a` and tokens `u` of clean
    images (B, c, H, H) without labels and the halves `W` of the last projection for log-scale
    and shift.
    """
    found = []
    for block, tokens, _ in _blocks(flow, images):
        log_scale, _ = block.coefficients(tokens, None)
        scaled = (torch.exp(-log_scale[:, :-1]) * tokens[:, 1:]).mean(0)
        weight = block.proj_out.weight
        shift = weight if block.volume_preserving else weight.chunk(2)[1]
        bound = float(torch.linalg.matrix_norm(shift, 2))
        if not block.volume_preserving:
            scale = torch.linalg.matrix_norm(weight.chunk(2)[0], 2)
            bound += float(torch.linalg.matrix_norm(scaled, 2) * scale)
        found.append(bound)
    return [100 * each / sum(found) for each in found]


def initial_guessing(flow: TarFlow, images: Tensor) -> list[tuple[float, float]]:
    """Return the IGM of each block: the residual after one sweep from the latents, and from zeros.

    The spectral norm of the residual's mean over clean images (B, c, H, H) without labels.
    """
    found = []
    for block, truth, latents in _blocks(flow, images):
        zeros = torch.zeros_like(latents)
        zeros[:, 0] = latents[:, 0]
        norms = []
        for guess in (latents, zeros):
            log_scale, shift = block.coefficients(guess, None)
            swept = torch.addcmul(shift[:, :-1], latents[:, 1:], torch.exp(log_scale[:, :-1]))
            residual = (swept - truth[:, 1:]).mean(0)
            norms.append(float(torch.linalg.matrix_norm(residual, 2)))
        found.append((norms[0], norms[1]))
    return found


def _blocks(flow: TarFlow, images: Tensor) -> Iterator[tuple[FlowBlock, Tensor, Tensor]]:
    """Yield each block with its tokens and latents (B, T, D), both in its order."""
    tokens = patchify(images, flow.config.patch)
    for each, (latents, _) in zip(flow.blocks, flow.trace(images), strict=True):
        block = cast(FlowBlock, each)
        yield block, block.permute(tokens), block.permute(latents)
        tokens = latents
