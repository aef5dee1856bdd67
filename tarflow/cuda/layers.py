"""Layers and blocks of a flow that train fast on a GPU: subclasses with the same parameters.

Between its matrix products PyTorch passes over memory once for each operation; a fused part makes
one pass for each stretch between two products (`kernels`), and so does its own backward pass. The
products are PyTorch's, and so is `attention` over many tokens. What a sublayer adds to the hidden
states is kept apart until the next layer norm, whose kernel adds it. The arithmetic is that of
`tarflow.model.transformer`, which also runs whenever no gradient is asked for.

Legend: `B` images, `T` tokens per image, `M = B * T`, `D` values per token, `C` channels,
`H` heads, `K` channels of a head.
"""

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tarflow.affine import fused_affine, fusible
from tarflow.cuda import affine, kernels
from tarflow.cuda.attention import attend
from tarflow.model.block import FlowBlock
from tarflow.model.transformer import Layer


class FusedLayer(Layer):
    """A Transformer layer that trains by Triton kernels, in float32 or under autocast."""

    def forward(self, *states: Any) -> Any:
        """Transform (B, T, C) hidden states, or a stream of them as `FusedBlock` keeps it.

        Args:
            states: Hidden states (B, T, C) alone; or these, an update (B, T, C) that is still to
                be added to them, and its bias (C,).

        Returns:
            Hidden states and update, (B, T, C) each, or hidden states if these were given alone.
        """
        if len(states) < 3:  # hidden states, and perhaps rotary positions
            return super().forward(*states)
        attention, (up, _, down), norm = self.attention, cast(Any, self.mlp.main), self.mlp.norm
        qkv, proj = attention.qkv, attention.proj
        low = narrowed(qkv.weight, proj.weight, up.weight, down.weight, qkv.bias, up.bias)
        hidden, joined = _BeforeAttention.apply(
            *(*states, attention.norm.weight, attention.norm.bias, attention.norm.eps),
            *(qkv.weight, low[0], low[4]),
        )
        mixed = attend(joined, qkv.bias, hidden.shape[1], attention.head_dim)
        return _AfterAttention.apply(
            *(hidden, mixed, proj.weight, proj.bias, norm.weight, norm.bias, norm.eps),
            *(up.weight, up.bias, down.weight, low[1], low[2], low[5], low[3]),
        )


class FusedBlock(FlowBlock):
    """A flow block that trains by Triton kernels; hidden states are summed in float32."""

    residuals: ClassVar[torch.dtype] = torch.float32  # type of the sums of hidden states

    def forward(self, tokens: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map (B, T, D) tokens one block towards the noise; see `FlowBlock.forward`."""
        if not (fusible(self.config) and torch.is_grad_enabled()):
            return super().forward(tokens, condition)
        tokens = self.permute(tokens)
        return fused_affine(affine, tokens, self.output(tokens, condition), self.backwards)

    def output(self, tokens: Tensor, condition: Tensor | None) -> Tensor:
        """Return the last projection, (B, T, D or 2D); see `FlowBlock.output`.

        Rotary positions are left to PyTorch.
        """
        if self.config.positions == "rope" or not torch.is_grad_enabled():
            return super().output(tokens, condition)
        hidden = self.proj_in(tokens) + self.embedding(condition).to(self.residuals)
        if self.proj_txt is not None:
            hidden = torch.cat([self.proj_txt(condition).to(hidden.dtype), hidden], 1)
        update = torch.zeros_like(hidden, dtype=product_dtype())
        bias: Tensor = torch.zeros_like(self.proj_in.bias)
        for layer in self.attn_blocks:
            hidden, update = layer(hidden, update, bias)
            bias = cast(Any, layer).mlp.main[2].bias
        hidden, update = hidden[:, self.prefix :], update[:, self.prefix :]
        if self.final_norm is not None:
            projected: Tensor = self.proj_out(self.final_norm(hidden + update + bias))
            return projected
        weight, dtype = self.proj_out.weight, product_dtype()
        offset = self.proj_out.bias + (weight * bias).sum(1)  # saves a pass that adds the bias
        return F.linear((hidden + update).to(dtype), weight.to(dtype), offset.to(dtype))


class NarrowBlock(FusedBlock):
    """`FusedBlock` whose hidden states are summed in bfloat16; norms are still float32."""

    residuals = torch.bfloat16


def product_dtype() -> torch.dtype:
    """Return the type of matrix products on a GPU: autocast's where it is enabled."""
    low = torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if low else torch.float32


def narrowed(*weights: Tensor) -> list[Tensor]:
    """Return weights in the type of matrix products, by one kernel, apart from autograd."""
    dtype = product_dtype()
    if dtype == weights[0].dtype:
        return [weight.detach() for weight in weights]
    low = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(low, list(weights))
    return low


class _BeforeAttention(torch.autograd.Function):
    """Add the last update, normalise, and project to queries, keys and values (M, 3 C)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        update: Tensor,
        bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        qkv: Tensor,
        low_qkv: Tensor,
        low_qkv_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        del qkv  # it receives the gradient
        channels = hidden.shape[2]
        total, normed, mean, inverse = kernels.add_norm(
            *(hidden.view(-1, channels), update.view(-1, channels), bias, gain, shift, eps),
            low_qkv.dtype,
        )
        ctx.save_for_backward(total, mean, inverse, gain, normed, low_qkv)
        return total.view_as(hidden), torch.addmm(low_qkv_bias, normed, low_qkv.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, djoined: Tensor) -> Any:
        total, mean, inverse, gain, normed, qkv = ctx.saved_tensors
        dqkv = product(djoined.t(), normed) if ctx.needs_input_grad[6] else None
        dhidden, dupdate, (dgain, dshift, dbias) = kernels.norm_backward(
            torch.mm(djoined, qkv), total, mean, inverse, gain, dtotal.reshape(total.shape)
        )
        shape = dtotal.shape
        return (
            *(dhidden.view(shape), dupdate.view(shape), dbias, dgain, dshift, None),
            *(dqkv, None, None),
        )


class _AfterAttention(torch.autograd.Function):
    """Project and add what attention mixed, (M, C); normalise; return the MLP's update."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        mixed: Tensor,
        proj: Tensor,
        proj_bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        *low: Tensor,
    ) -> tuple[Tensor, Tensor]:
        del up_bias  # like the matrices, it receives the gradient of its narrow copy
        channels, dtype = hidden.shape[2], mixed.dtype
        proj, up, low_up_bias, down = low
        total, normed, mean, inverse = kernels.add_norm(
            *(hidden.view(-1, channels), torch.mm(mixed, proj.t()), proj_bias, gain, shift, eps),
            dtype,
        )
        before = torch.addmm(low_up_bias, normed, up.t())
        active = F.gelu(before)
        update = torch.mm(active, down.t())
        ctx.save_for_backward(
            mixed, proj, total, mean, inverse, gain, normed, up, before, active, down
        )
        return total.view_as(hidden), update.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        mixed, proj, total, mean, inverse, gain, normed, up, before, active, down = (
            ctx.saved_tensors
        )
        dtotal, dupdate = (gradient.reshape(total.shape) for gradient in gradients)
        needs = ctx.needs_input_grad
        ddown = product(dupdate.t(), active) if needs[9] else None
        dbefore = torch.mm(dupdate, down)
        dup_bias = kernels.gelu_backward(before, dbefore)
        dup = product(dbefore.t(), normed) if needs[7] else None
        dhidden, dproduct, (dgain, dshift, dproj_bias) = kernels.norm_backward(
            torch.mm(dbefore, up), total, mean, inverse, gain, dtotal
        )
        dproj = product(dproduct.t(), mixed) if needs[2] else None
        return (
            *(dhidden.view_as(gradients[0]), torch.mm(dproduct, proj), dproj, dproj_bias),
            *(dgain, dshift, None, dup, dup_bias, ddown, None, None, None, None),
        )


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product in float32, whatever the type of its factors."""
    if left.dtype == torch.float32:
        return torch.mm(left, right)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).float()
