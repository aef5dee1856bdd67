"""Layers and blocks of a flow that train fast on a CPU: subclasses with the same parameters.

Between its matrix products PyTorch passes over memory once for each operation; a fused part makes
one pass for each stretch between two products (`native`), and so does its own backward pass. The
arithmetic is that of `tarflow.model.transformer`, which also runs whenever no gradient is asked
for.

Legend: `B` images, `T` tokens per image, `D` values per token, `C` channels, `H` heads,
`K` channels of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tarflow.affine import fused_affine, fusible
from tarflow.cost import PRODUCTS_TOKENS
from tarflow.cpu.kernels import Kernels, kernels
from tarflow.model.block import FlowBlock
from tarflow.model.rotary import rotate
from tarflow.model.transformer import Attention, Layer


class ProductAttention(Attention):
    """Attention by plain matrix products where they train faster than PyTorch's fused kernel.

    In bfloat16 the CPU's kernel goes backward several times slower than plain products, as long as
    the matrix of all pairs fits the caches (`benchmarks/README.md`).
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from each token to itself and those before it; all are (B, H, T, K)."""
        small = query.shape[2] <= PRODUCTS_TOKENS
        if small and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
            return causal_attention(query, key, value)
        return super().attend(query, key, value)


class ProductLayer(Layer):
    """A Transformer layer with `ProductAttention`."""

    attention_type = ProductAttention


class FusedLayer(Layer):
    """A Transformer layer that trains by compiled kernels, in float32 or under autocast."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The parameters in order; listing them here is faster than walking the modules."""
        mixer, (up, _, down) = self.attention, self.mlp.main
        modules: Any = (mixer.norm, mixer.qkv, mixer.proj, self.mlp.norm, up, down)
        return tuple(tensor for module in modules for tensor in (module.weight, module.bias))

    def forward(self, hidden: Tensor, rotation: Tensor | None = None, /) -> Tensor:
        """Transform (B, n, C) hidden states; for the rotation see `Attention.forward`."""
        if not torch.is_grad_enabled():
            return super().forward(hidden, rotation)
        low = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if low else torch.float32
        return fused_layer(hidden, self.weights, self.attention.head_dim, dtype, rotation)


class FusedBlock(FlowBlock):
    """A flow block whose affine map trains by a compiled kernel."""

    def forward(self, tokens: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map (B, T, D) tokens one block towards the noise; see `FlowBlock.forward`."""
        if not (fusible(self.config) and torch.is_grad_enabled()):
            return super().forward(tokens, condition)
        tokens = self.permute(tokens)
        output = self.output(tokens, condition)
        return fused_affine(_kernels(output.dtype), tokens, output, self.backwards)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from each token to itself and those before it, (B, H, T, K), by plain products."""
    tokens, width = query.shape[2:]
    future = query.new_full((tokens, tokens), -math.inf).triu(1)
    scale = width**-0.5
    logits = torch.baddbmm(future, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
    mixed: Tensor = torch.bmm(logits.softmax(2), value.flatten(0, 1))
    return mixed.view_as(query)


def fused_layer(
    hidden: Tensor,
    weights: tuple[Tensor, ...],
    head_dim: int,
    dtype: torch.dtype,
    rotation: Tensor | None = None,
) -> Tensor:
    """Transform hidden states (B, T, C), float32.

    Args:
        hidden: (B, T, C) states before the layer, float32.
        weights: Parameters as `FusedLayer.weights` lists them, float32.
        head_dim: Channels of a head.
        dtype: Type of the activations in between, float32 or bfloat16.
        rotation: Rotary positions (2, T, K / 2), or `None`.
    """
    after: Tensor = _FusedLayer.apply(hidden, head_dim, dtype, rotation, *weights)
    return after


class _FusedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_dim: int,
        dtype: torch.dtype,
        rotation: Tensor | None,
        *weights: Tensor,
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
        if rotation is not None:  # the kernel adds the bias of the values only
            turned = joined[:, : 2 * channels] + qkv_bias[: 2 * channels]
            joined[:, : 2 * channels] = _rotated(turned, rotation, dims)
            qkv_bias = torch.cat([torch.zeros_like(proj_bias).repeat(2), qkv_bias[2 * channels :]])
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
        ctx.dims, ctx.rotation = dims, rotation
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
        if ctx.rotation is not None:
            back = ctx.rotation * ctx.rotation.new_tensor([1.0, -1.0]).view(2, 1, 1)
            turned = _rotated(djoined[:, : 2 * channels].float(), back, ctx.dims)
            djoined[:, : 2 * channels], dqkv_bias[: 2 * channels] = turned, turned.sum(0)
        dnormed = torch.mm(djoined, qkv)

        dbefore = torch.empty_like(grad)
        dnorm1, dshift1 = torch.empty_like(norm1), torch.empty_like(norm1)
        run.norm_backward(
            *(dnormed, before, means1, inverses1, norm1, shift1, dbetween),
            *(normed, dbefore, dnorm1, dshift1, None, None, rows, channels),
        )
        dqkv = torch.mm(djoined.t(), normed)
        return (
            *(dbefore.view_as(gradients[0]), None, None, None),
            *(dnorm1, dshift1, dqkv.float(), dqkv_bias, dproj.float(), dproj_bias),
            *(dnorm2, dshift2, dup.float(), dup_bias, ddown.float(), ddown_bias),
        )


def _rotated(joined: Tensor, rotation: Tensor, dims: tuple[int, int, int, int]) -> Tensor:
    """Rotate queries and keys (B * T, 2 C), float32, of all heads by positions (2, T, K / 2)."""
    batch, tokens, heads, width = dims
    split = joined.view(batch, tokens, 2 * heads, width).transpose(1, 2)
    return rotate(split, rotation).transpose(1, 2).reshape(joined.shape)


def _kernels(dtype: torch.dtype) -> Kernels:
    library = kernels(dtype)
    assert library, f"no kernels for {dtype}"
    return library
