"""Published metrics of how hard each block of a flow is to invert by Jacobi iteration.

They are from Gauss-Seidel-Jacobi sampling (arXiv 2505.12849). Legend: `B` images, `T` tokens per
image, `D` values per token, `c` colour channels, `H` height and width.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.patches import patchify


def convergence_ranking(flow: TarFlow, images: Tensor) -> list[float]:
    """Return the convergence ranking metric of each block, in percent of their sum.

    `|mean_b exp(-a) u|_2 |W_s|_2 + |W_u|_2`, with the log-scale `a` and tokens `u` of clean
    images (B, c, H, H) without labels, and the halves `W` of the last projection for log-scale
    and shift.
    """
    bounds = []
    vp = flow.config.volume_preserving
    for block, tokens, _ in _blocks(flow, images):
        log_scale, _ = block.coefficients(tokens, flow.complete(None, len(tokens)))
        scaled = (torch.exp(-log_scale) * tokens[:, block.passed :]).mean(0)
        weight = block.proj_out.weight
        halves = (torch.zeros_like(weight), weight) if vp else weight.chunk(2)
        scale, shift = (torch.linalg.matrix_norm(half, 2) for half in halves)
        bounds.append(float(shift) + float(torch.linalg.matrix_norm(scaled, 2) * scale))
    return [100 * bound / sum(bounds) for bound in bounds]


def initial_guessing(flow: TarFlow, images: Tensor) -> list[tuple[float, float]]:
    """Return the initial guessing metric of each block, from the latents and from zeros.

    It is the spectral norm of the mean residual after one Jacobi iteration, over clean images
    (B, c, H, H) without labels.
    """
    metrics = []
    for block, tokens, latents in _blocks(flow, images):
        zeros, passed = torch.zeros_like(latents), block.passed
        zeros[:, :passed] = latents[:, :passed]
        norms = []
        for guess in (latents, zeros):
            log_scale, shift = block.coefficients(guess, flow.complete(None, len(guess)))
            iterated = torch.addcmul(shift, latents[:, passed:], torch.exp(log_scale))
            residual = (iterated - tokens[:, passed:]).mean(0)
            norms.append(float(torch.linalg.matrix_norm(residual, 2)))
        metrics.append((norms[0], norms[1]))
    return metrics


def _blocks(flow: TarFlow, images: Tensor) -> Iterator[tuple[FlowBlock, Tensor, Tensor]]:
    """Yield each block with its tokens and latents (B, T, D), both in its order."""
    tokens = patchify(images, flow.config)
    for module, (latents, _) in zip(flow.blocks, flow.trace(images), strict=True):
        block = cast(FlowBlock, module)
        yield block, block.permute(tokens), block.permute(latents)
        tokens = latents
