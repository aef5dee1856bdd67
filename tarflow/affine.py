"""The affine map of a block by compiled kernels, with its own backward pass.

Legend: `B` images, `T` tokens per image, `D` values per token.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from tarflow.model_config import ModelConfig


class AffineKernels(Protocol):
    """Kernels of one device and one type of `output`; all tensors are contiguous."""

    def affine(
        self,
        tokens: Tensor,
        output: Tensor,
        mapped: Tensor,
        logdet: Tensor,
        batch: int,
        count: int,
        width: int,
        backwards: int,
    ) -> None:
        """Write `mapped` (B, T, D) and `logdet` (B,); see `fused_affine`."""

    def affine_backward(
        self,
        output: Tensor,
        mapped: Tensor,
        dmapped: Tensor,
        dlogdet: Tensor,
        dtokens: Tensor,
        doutput: Tensor,
        batch: int,
        count: int,
        width: int,
        backwards: int,
    ) -> None:
        """Write the gradients `dtokens` (B, T, D) and `doutput` (B, T, 2D)."""


def fusible(model: ModelConfig) -> bool:
    """Tell whether the kernels compute the affine map of a model's blocks: published TarFlow's."""
    plain = model.scale == "exp" and not model.soft_clip
    return plain and not model.start_token and not model.volume_preserving


def fused_affine(
    kernels: AffineKernels, tokens: Tensor, output: Tensor, backwards: bool
) -> tuple[Tensor, Tensor]:
    """Shift and scale tokens as `FlowBlock.forward` does, given the block's last projection.

    Args:
        kernels: Of the device and the type of `output`.
        tokens: (B, T, D) in the block's order, float32.
        output: (B, T, 2D) log-scale and shift for the successor of each token, in float32 or
            bfloat16.
        backwards: Whether the block's order is opposite to raster order.

    Returns:
        Tokens (B, T, D) in raster order, log-determinant (B,) in nats per dimension.
    """
    mapped: tuple[Tensor, Tensor] = _FusedAffine.apply(kernels, tokens, output, backwards)
    return mapped


class _FusedAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: AffineKernels, tokens: Tensor, output: Tensor, backwards: bool
    ) -> tuple[Tensor, Tensor]:
        tokens, output = tokens.contiguous(), output.contiguous()
        mapped, logdet = torch.empty_like(tokens), tokens.new_empty(len(tokens))
        ctx.kernels, ctx.dims = kernels, (*tokens.shape, int(backwards))
        kernels.affine(tokens, output, mapped, logdet, *ctx.dims)
        ctx.save_for_backward(output, mapped)
        return mapped, logdet

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        output, mapped = ctx.saved_tensors
        dmapped, dlogdet = (gradient.contiguous() for gradient in gradients)
        dtokens, doutput = torch.empty_like(mapped), torch.empty_like(output)
        ctx.kernels.affine_backward(output, mapped, dmapped, dlogdet, dtokens, doutput, *ctx.dims)
        return None, dtokens, doutput, None
