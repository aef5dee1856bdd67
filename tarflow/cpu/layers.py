"""Parts of a flow on a CPU, each as one function with a backward pass of its own.

Between the matrix products PyTorch goes over memory once for each operation; here each stretch
between two products is one pass (`native`). The arithmetic is that of `model`.

Legend: `B` images, `T` tokens per image, `D` values per token, `C` channels.
"""

from typing import Any

import torch
from torch import Tensor

from tarflow.cpu.kernels import Kernels, kernels


def fused_layer(
    hidden: Tensor, weights: tuple[Tensor, ...], head_dim: int, dtype: torch.dtype
) -> Tensor:
    """Transform hidden states (B, T, C), float32.

    Args:
        hidden: states before the layer.
        weights: `model.Layer.weights`, float32.
        head_dim: channels of a head.
        dtype: of the activations between, float32 or bfloat16, of which there are `kernels`.
    """
    after: Tensor = _Layer.apply(hidden, head_dim, dtype, *weights)
    return after


def fused_affine(tokens: Tensor, output: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """Map tokens as `model.FlowBlock` does, given what its last projection says of them.

    Args:
        tokens: (B, T, D) in the block's order, float32.
        output: (B, T, 2D), log-scale and shift for the successor of each token, in a type that
            `kernels` knows.
        backwards: whether the block's order is opposite to raster order.

    Returns:
        Tokens (B, T, D) in raster order, log-determinant (B,) in nats per dimension.
    """
    mapped: tuple[Tensor, Tensor] = _Affine.apply(tokens, output, backwards)
    return mapped


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, output: Tensor, backwards: bool
    ) -> tuple[Tensor, Tensor]:
        tokens, output = tokens.contiguous(), output.contiguous()
        mapped, logdet = torch.empty_like(tokens), tokens.new_empty(len(tokens))
        ctx.dims = *tokens.shape, int(backwards)
        _kernels(output.dtype).affine(tokens, output, mapped, logdet, *ctx.dims)
        ctx.save_for_backward(output, mapped)
        return mapped, logdet

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        output, mapped = ctx.saved_tensors
        dmapped, dlogdet = (each.contiguous() for each in gradients)
        dtokens, doutput = torch.empty_like(mapped), torch.empty_like(output)
        _kernels(output.dtype).affine_backward(
            output, mapped, dmapped, dlogdet, dtokens, doutput, *ctx.dims
        )
        return dtokens, doutput, None


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head_dim: int, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        run = _kernels(dtype)
        (norm1, shift1, qkv, qkv_bias, proj, proj_bias) = weights[:6]
        (norm2, shift2, up, up_bias, down, down_bias) = weights[6:]
        qkv, proj, up, down = (matrix.to(dtype) for matrix in (qkv, proj, up, down))
        (batch, tokens, channels), rows = hidden.shape, hidden.shape[:2].numel()
        dims = batch, tokens, channels // head_dim, head_dim
        before = hidden.contiguous().view(rows, channels)

        means1, inverses1, means2, inverses2 = before.new_empty(4, rows)
        normed1 = torch.empty_like(before, dtype=dtype)
        run.add_norm(
            before, None, None, norm1, shift1, None, normed1, means1, inverses1, rows, channels
        )
        joined = torch.mm(normed1, qkv.t())
        mixed = torch.empty_like(normed1)
        totals = means1.new_empty(rows * dims[2])
        run.attend(joined, qkv_bias, mixed, totals, *dims)
        delta = torch.mm(mixed, proj.t())

        between = torch.empty_like(before)
        normed2 = torch.empty_like(normed1)
        run.add_norm(
            *(before, delta, proj_bias, norm2, shift2),
            *(between, normed2, means2, inverses2, rows, channels),
        )
        slope = torch.mm(normed2, up.t())
        activated = torch.empty_like(slope)
        run.gelu(slope, up_bias, activated, rows, 4 * channels)
        delta = torch.mm(activated, down.t())

        after = torch.empty_like(before)
        run.add_norm(
            between, delta, down_bias, None, None, after, None, None, None, rows, channels
        )
        ctx.dims = dims
        ctx.save_for_backward(
            *(before, means1, inverses1, norm1, shift1, qkv, joined, qkv_bias, mixed, totals),
            *(proj, between, means2, inverses2, norm2, shift2, up, slope, activated, down),
        )
        return after.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved = ctx.saved_tensors
        before, means1, inverses1, norm1, shift1, qkv, joined, qkv_bias, mixed, totals = saved[:10]
        proj, between, means2, inverses2, norm2, shift2, up, slope, activated, down = saved[10:]
        run, dtype = _kernels(mixed.dtype), mixed.dtype
        rows, channels = before.shape
        grad = gradients[0].contiguous().view(rows, channels)

        narrow = None if dtype == grad.dtype else grad.new_empty(grad.shape, dtype=dtype)
        ddown_bias = norm2.new_empty(channels)
        run.delta_backward(grad, narrow, ddown_bias, rows, channels)
        given = grad if narrow is None else narrow
        ddown = torch.mm(given.t(), activated)
        dslope = torch.mm(given, down)
        dup_bias = norm2.new_empty(4 * channels)
        run.gelu_backward(slope, dslope, dup_bias, rows, 4 * channels)
        dnormed, normed = torch.mm(dslope, up), torch.empty_like(mixed)

        dbetween, dnorm2 = torch.empty_like(grad), torch.empty_like(norm2)
        dshift2, dproj_bias = torch.empty_like(norm2), torch.empty_like(norm2)
        run.norm_backward(
            *(dnormed, between, means2, inverses2, norm2, shift2, grad),
            *(normed, dbetween, dnorm2, dshift2, narrow, dproj_bias, rows, channels),
        )
        dup = torch.mm(dslope.t(), normed)
        given = dbetween if narrow is None else narrow
        dproj = torch.mm(given.t(), mixed)
        djoined, dqkv_bias = torch.empty_like(joined), torch.empty_like(qkv_bias)
        run.attend_backward(
            joined, qkv_bias, mixed, totals, torch.mm(given, proj), djoined, dqkv_bias, *ctx.dims
        )
        dnormed = torch.mm(djoined, qkv)

        dbefore = torch.empty_like(grad)
        dnorm1, dshift1 = torch.empty_like(norm1), torch.empty_like(norm1)
        run.norm_backward(
            *(dnormed, before, means1, inverses1, norm1, shift1, dbetween),
            *(normed, dbefore, dnorm1, dshift1, None, None, rows, channels),
        )
        dqkv = torch.mm(djoined.t(), normed)
        return (
            *(dbefore.view_as(gradients[0]), None, None),
            *(dnorm1, dshift1, dqkv.float(), dqkv_bias, dproj.float(), dproj_bias),
            *(dnorm2, dshift2, dup.float(), dup_bias, ddown.float(), ddown_bias),
        )


def _kernels(dtype: torch.dtype) -> Kernels:
    found = kernels(dtype)
    assert found, f"no kernels for {dtype}"
    return found
