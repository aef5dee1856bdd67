"""Flow blocks and Transformer layers that see few tokens at a time and cache keys and values.

Legend: `B` images, `R` rows (`B`, or `2B` with guidance), `n` tokens of a window, `M = R * n`,
`T` tokens per image, `D` values per token, `C` channels, `H` heads, `K` channels of a head,
`P` parts into which the heads and the MLP are split. Windows count image tokens, or the start
token and these; keys and values of condition tokens stand before them in the cache.

What a training pass computes for all tokens at once is computed here for few, thousands of times,
so the weights are laid out once per block. A CPU multiplies few rows fastest when each thread
computes a product by itself: the columns of a first matrix and the rows of the second are split
into one part per thread (as in tensor parallelism, Shoeybi et al. 2019, arXiv 1909.08053) and
multiplied as a batch.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.affine import fusible
from tarflow.config import SamplerConfig
from tarflow.device import supports_triton
from tarflow.model.block import FlowBlock
from tarflow.model.rotary import rotate
from tarflow.model.transformer import Layer
from tarflow.sample import guidance
from tarflow.sample.kv_cache import AnyWindow, KVCache, Window

if TYPE_CHECKING:
    from tarflow.cuda.decode import DecodeStep

FUSED_FROM = 64  # tokens of a window from which fused attention beats plain products


class IncrementalBlock:
    """Guided scale and shift of one flow block, which caches keys and values.

    Both branches of guidance run as one batch, the good one first.
    """

    def __init__(
        self,
        block: FlowBlock,
        cache: KVCache,
        batch: int,
        condition: Tensor | None,
        sampler: SamplerConfig | None = None,
    ) -> None:
        """Lay out the weights of a block, and cache the keys and values of its condition tokens.

        Args:
            block: Flow block to invert.
            cache: Keys and values, overwritten; at least `B` rows, or `2B` with a sampler.
            batch: Number of images B.
            condition: As for `FlowBlock.forward`; with a sampler of both branches, (2B, ...).
            sampler: Guidance; `None` if this block is not guided.
        """
        rows = 2 * batch if sampler else batch
        self.block, self.cache, self.rows, self.sampler = block, cache, rows, sampler
        tokens, device = block.config.tokens, cache.memory.device
        self.embedding = block.embedding(condition).expand(-1, tokens, -1)  # (1 or R, T, 1 or C)
        self.rotation = block.rotation(block.proj_in.bias)  # (2, keys, K / 2), or None
        memories = cache.layers(rows, len(block.attn_blocks))
        self.layers = [
            IncrementalLayer(cast(Layer, layer), memory, cache.parts, rows)
            for layer, memory in zip(block.attn_blocks, memories, strict=True)
        ]
        dtype = cache.memory.dtype
        self.proj_in = SplitLinear.by_outputs(block.proj_in.weight, block.proj_in.bias, 1, dtype)
        self.proj_out = SplitLinear.by_outputs(
            block.proj_out.weight, block.proj_out.bias, 1, dtype
        )
        self.positions = torch.arange(block.prefix + tokens, device=device)
        self.weights: Tensor | None = None  # (T, 1) of guidance
        self.query_scale: Tensor | None = None  # (R, 1): inverse attention temperatures
        if sampler:
            places = self.positions[:tokens]
            self.weights = guidance.weights(sampler, places, tokens - block.passed)
            if sampler.temperature != 1:
                self.query_scale = torch.ones(rows, 1, dtype=dtype, device=device)
                self.query_scale[batch:] /= sampler.temperature
        if block.proj_txt is not None:
            assert condition is not None
            states = block.proj_txt(condition.to(block.proj_txt.weight.dtype))
            self._run(states, Window(0, block.prefix))

    @cached_property
    def buffers(self) -> "StepBuffers":
        """Scratch buffers for single-token steps, allocated on first use."""
        return StepBuffers(self.layers[0])

    @cached_property
    def decoder(self) -> "DecodeStep | None":
        """Single-token steps by kernels of a GPU, or `None` where there are none."""
        memory, block = self.cache.memory, self.block
        plain = fusible(block.config) and block.final_norm is None and not block.prefix
        if not plain or self.rotation is not None or memory.dtype == torch.float64:
            return None
        if not supports_triton(memory.device):
            return None
        from tarflow.cuda.decode import DecodeStep  # Triton is not there on every system

        caches = self.cache.layers(self.rows, len(block.attn_blocks))
        guidance = self.sampler, self.weights, self.query_scale
        return DecodeStep(block, caches, self.embedding, *guidance)

    def __call__(self, tokens: Tensor, window: AnyWindow) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, n, D) for the successors of n tokens.

        Args:
            tokens: (B, n, D) tokens of the window, in the block's order.
            window: Position of these tokens. Earlier calls must have seen all tokens before it
                with their final values; keys and values from it on are overwritten.
        """
        if isinstance(window, Window) and window.count == 1:
            output = self._step(tokens[:, 0], window.start)[:, None]
        else:
            output = self._transform(tokens, window)
        log_scale, shift = self.block.split(output)
        if self.sampler is None or self.weights is None:
            return torch.exp(log_scale), shift
        return guidance.combine(log_scale, shift, window.read(self.weights, 0), self.sampler)

    def _transform(self, tokens: Tensor, window: AnyWindow) -> Tensor:
        """Run the Transformer on (B, n, D) tokens; return the last projection (R, n, D or 2D)."""
        if self.sampler:
            tokens = torch.cat([tokens, tokens])
        rows, count, _ = tokens.shape
        hidden = self.proj_in(tokens.reshape(rows * count, -1))[0].view(rows, count, -1)
        hidden = self._run(hidden + window.read(self.embedding), window.shifted(self.block.prefix))
        return self._project(hidden).view(rows, count, -1)

    def _run(self, hidden: Tensor, window: AnyWindow) -> Tensor:
        """Pass (R, n, C) hidden states through the layers; return (R * n, C).

        Args:
            hidden: States of the tokens of a window; overwritten.
            window: Position of these tokens in the cache.
        """
        rows, count, _ = hidden.shape
        hidden = hidden.reshape(rows * count, -1)
        causal = self.positions[: window.filled] <= window.read(self.positions, 0)[:, None]
        rotation = None if self.rotation is None else window.read(self.rotation)
        for layer in self.layers:
            layer(hidden, window, causal, self.query_scale, rotation)
        return hidden

    def _project(self, hidden: Tensor) -> Tensor:
        """Map (M, C) hidden states to the last projection, (M, D or 2D)."""
        if self.block.final_norm is not None:
            hidden = self.block.final_norm(hidden)
        return self.proj_out(hidden[None])[0]

    def _step(self, token: Tensor, index: int) -> Tensor:
        """Do the same for one token (B, D) whose position the host knows; return (R, D or 2D)."""
        if self.sampler:
            token = token.repeat(2, 1)
        hidden = self.proj_in(token[None])[0] + self.embedding[:, index]
        index += self.block.prefix
        rotation = None if self.rotation is None else self.rotation[:, index]
        for layer in self.layers:
            layer.step(hidden, index, self.buffers, self.query_scale, rotation)
        return self._project(hidden)


class IncrementalLayer:
    """A Transformer layer that attends to cached keys and values."""

    def __init__(self, layer: Layer, cache: Tensor, parts: int, rows: int) -> None:
        """Lay out the weights; `cache` holds keys and values, (2, R * H, T, K)."""
        attention, mlp = layer.attention, layer.mlp
        up, down = cast(nn.Linear, mlp.main[0]), cast(nn.Linear, mlp.main[2])
        _, row_heads, _, width = cache.shape
        self.shape = parts, rows, row_heads // (parts * rows), width  # P, R, H / P, K
        self.cache, self.keys, self.values = cache, cache[0].mT, cache[1]
        self.norms = attention.norm, mlp.norm
        scale = torch.ones_like(attention.qkv.bias)
        scale[: len(scale) // 3] = width**-0.5  # scales queries here instead of in each step
        weight, bias = attention.qkv.weight * scale[:, None], attention.qkv.bias * scale
        dtype, proj = cache.dtype, attention.proj
        self.qkv = SplitLinear.by_outputs(weight, bias, 3 * parts, dtype)
        self.proj = SplitLinear.by_inputs(proj.weight, proj.bias, parts, dtype)
        self.up = SplitLinear.by_outputs(up.weight, up.bias, parts, dtype)
        self.down = SplitLinear.by_inputs(down.weight, down.bias, parts, dtype)

    def __call__(
        self,
        hidden: Tensor,
        window: AnyWindow,
        causal: Tensor,
        query_scale: Tensor | None,
        rotation: Tensor | None,
    ) -> None:
        """Transform (M, C) hidden states in place.

        Args:
            hidden: (M, C) hidden states of the window.
            window: Position of its tokens.
            causal: (n, filled) mask, true where a token may attend to a key.
            query_scale: (R, 1) factors of the queries, or `None`.
            rotation: Rotary positions (2, n, K / 2), or `None`.
        """
        attention, mlp = self.norms
        qkv = self.qkv(_normalize(hidden, attention))
        for term in self.proj(self.attend(qkv, window, causal, query_scale, rotation)):
            hidden += term
        for term in self.down(F.gelu(self.up(_normalize(hidden, mlp)))):
            hidden += term

    def attend(
        self,
        qkv: Tensor,
        window: AnyWindow,
        causal: Tensor,
        query_scale: Tensor | None,
        rotation: Tensor | None,
    ) -> Tensor:
        """Cache the keys and values of (3 P, M, C / P); return mixed values (P, M, C / P)."""
        parts, rows, heads, width = self.shape
        split = qkv.view(3, parts, rows, window.count, heads, width).transpose(3, 4)
        split = split.reshape(3, -1, window.count, width)
        if rotation is not None:
            split[:2] = rotate(split[:2], rotation)
        window.write(self.cache, split[1:], 2)
        query = split[0]
        if query_scale is not None:
            query = (query.view(parts, rows, -1) * query_scale).view(query.shape)
        keys, values = self.keys[:, :, : window.filled], self.values[:, : window.filled]
        if window.count < FUSED_FROM:
            mask = torch.where(causal, 0.0, -torch.inf).to(query.dtype)
            mixed = torch.bmm(torch.baddbmm(mask, query, keys).softmax(2), values)
        else:
            mixed = F.scaled_dot_product_attention(query, keys.mT, values, causal, scale=1.0)
        mixed = mixed.view(parts, rows, heads, window.count, width).transpose(2, 3)
        return mixed.reshape(parts, rows * window.count, -1)

    def step(
        self,
        hidden: Tensor,
        index: int,
        buffers: "StepBuffers",
        query_scale: Tensor | None,
        rotation: Tensor | None,
    ) -> None:
        """Do the same for one token of all rows, (R, C), without temporary views."""
        attention, mlp = self.norms
        buffers.normalized.copy_(_normalize(hidden, attention))
        self.qkv.write(buffers.qkv, buffers.qkv_input)
        if rotation is not None:
            buffers.rotated.copy_(rotate(buffers.rotated, rotation))
        if query_scale is not None:
            buffers.queries *= query_scale
        end = index + 1
        self.cache[:, :, index:end] = buffers.keys_values
        weights = torch.bmm(buffers.query, self.keys[:, :, :end]).softmax(2)
        torch.bmm(weights, self.values[:, :end], out=buffers.mixed)
        self.proj.write(buffers.sum, buffers.proj_input)
        for term in buffers.terms:
            hidden += term
        buffers.normalized.copy_(_normalize(hidden, mlp))
        self.up.write(buffers.up, buffers.mlp_input)
        self.down.write(buffers.sum, F.gelu(buffers.up))
        for term in buffers.terms:
            hidden += term


class StepBuffers:
    """Scratch buffers for one token of all rows, and the views of them that layers take.

    Allocated once per block: a step of few rows would otherwise spend as long on making tensors
    and views as on its arithmetic.
    """

    def __init__(self, layer: IncrementalLayer) -> None:
        """Allocate buffers for any layer of the shape of this one."""
        parts, rows, heads, width = layer.shape
        empty, channels = layer.cache.new_empty, parts * heads * width
        self.normalized = empty(rows, channels)
        self.qkv_input = self.normalized.expand(3 * parts, -1, -1)
        self.mlp_input = self.normalized.expand(parts, -1, -1)
        self.qkv = empty(3 * parts, rows, heads * width)
        self.queries = self.qkv[:parts]
        self.rotated = self.qkv[: 2 * parts].unflatten(2, (-1, width))  # queries and keys
        split = self.qkv.view(3, -1, 1, width)
        self.query, self.keys_values = split[0], split[1:]
        self.proj_input = empty(parts, rows, heads * width)
        self.mixed = self.proj_input.view(-1, 1, width)
        self.up = empty(parts, rows, layer.up.weight.shape[2])
        self.sum = empty(parts, rows, channels)
        self.terms = self.sum.unbind()


@dataclass(frozen=True)
class SplitLinear:
    """A linear map in parts: (P, inputs, outputs) and (P, 1, outputs)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def by_outputs(cls, weight: Tensor, bias: Tensor, parts: int, dtype: torch.dtype) -> Self:
        """Split the outputs: each part computes its share of them."""
        split = weight.detach().unflatten(0, (parts, -1)).mT
        return cls(split.to(dtype).contiguous(), bias.detach().to(dtype).view(parts, 1, -1))

    @classmethod
    def by_inputs(cls, weight: Tensor, bias: Tensor, parts: int, dtype: torch.dtype) -> Self:
        """Split the inputs: the parts compute terms of a sum, the first with the bias."""
        split = weight.detach().T.unflatten(0, (parts, -1))
        first = torch.zeros(parts, 1, len(weight), dtype=dtype, device=weight.device)
        first[0, 0] = bias.detach()
        return cls(split.to(dtype).contiguous(), first)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map (M, inputs), shared by all parts, or (P, M, inputs) to (P, M, outputs)."""
        inputs = inputs.to(self.weight.dtype)
        return torch.baddbmm(self.bias, inputs.expand(len(self.weight), -1, -1), self.weight)

    def write(self, out: Tensor, inputs: Tensor) -> None:
        """Map (P, M, inputs) of the weights' type into `out`, (P, M, outputs)."""
        torch.baddbmm(self.bias, inputs, self.weight, out=out)


def _normalize(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
