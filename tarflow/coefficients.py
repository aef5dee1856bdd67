"""Scale and shift of one block, window by window, with the keys and values of earlier tokens kept.

Legend: `B` images, `R` rows (`B`, or `2B` with guidance), `n` tokens of a window, `M = R * n`,
`T` tokens per image, `D` values per token, `C` channels, `H` heads, `K` channels of a head,
`P` parts into which the heads and the MLP are split.

What a training pass computes for all tokens at once is computed here for few, thousands of times,
so the weights are laid out once per block. A CPU multiplies few rows fastest when each thread has
its own product: the columns of a first matrix and the rows of the second are split into one part
per thread (as in tensor parallelism, Shoeybi et al. 2019, arXiv 1909.08053) and go through as a
batch.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow import guidance
from tarflow.config import SamplerConfig
from tarflow.device import compiled
from tarflow.model import FlowBlock, Layer, TarFlow

FUSED_FROM = 64  # tokens of a window from which fused attention beats plain products


class Memory:
    """Room for the keys and values of one block at a time, shared by all blocks in turn."""

    def __init__(self, flow: TarFlow, rows: int, dtype: torch.dtype) -> None:
        """Allocate it on the flow's device.

        Args:
            flow: the model.
            rows: R.
            dtype: of keys, values and matrix products.
        """
        config = flow.config
        heads = config.channels // config.head_dim
        self.parts = math.gcd(heads, torch.get_num_threads()) if not flow.var.is_cuda else 1
        self.rows = rows
        # zeros, for what is masked still enters products
        self.cache = torch.zeros(
            (config.layers, 2, rows * heads, config.tokens, config.head_dim),
            dtype=dtype,
            device=flow.var.device,
        )


class Coefficients:
    """Guided scale and shift of one block, which remembers keys and values.

    Both branches of guidance run as one batch, the good one first.
    """

    def __init__(
        self,
        block: FlowBlock,
        memory: Memory,
        batch: int,
        labels: Tensor | None,
        sampler: SamplerConfig | None = None,
    ) -> None:
        """Lay out the weights of a block.

        Args:
            block: to be inverted.
            memory: is overwritten; of at least `B` rows, or `2B` if a sampler is given.
            batch: images, `B`.
            labels: (B,) int64, -1 where dropped, or `None`.
            sampler: guidance, if this block is guided.
        """
        rows = 2 * batch if sampler else batch
        self.tokens, self.channels = block.pos_embed.shape
        self.volume_preserving = block.volume_preserving
        self.sampler = sampler
        if sampler and labels is not None:
            labels = torch.cat([labels, torch.full_like(labels, -1)])
        self.embedding = block.embedding(labels)  # (1 or R, T, C)
        heads = self.channels // memory.cache.shape[-1]
        caches = memory.cache[:, :, : rows * heads]
        self.layers = [
            _IncrementalLayer(cast(Layer, layer), cache, memory.parts, rows)
            for layer, cache in zip(block.attn_blocks, caches, strict=True)
        ]
        dtype = caches.dtype
        self.proj_in = _Linear.columns(block.proj_in.weight, block.proj_in.bias, 1, dtype)
        self.proj_out = _Linear.columns(block.proj_out.weight, block.proj_out.bias, 1, dtype)
        positions = torch.arange(self.tokens, device=caches.device)
        self.positions = positions
        self.weights = guidance.weights(sampler, positions, self.tokens - 1) if sampler else None
        self.cooled: Tensor | None = None  # (R, 1): what queries are multiplied with
        if sampler and sampler.temperature != 1:
            self.cooled = torch.ones(rows, 1, dtype=dtype, device=caches.device)
            self.cooled[batch:] /= sampler.temperature

    def __call__(self, tokens: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, n, D) of the successors of n tokens.

        Args:
            tokens: (B, n, D), those at `start` to `start + n` in the block's order.
            start: tokens before it must have been given, in their final state, in earlier calls;
                those from it on are forgotten and learned anew.
        """
        count = tokens.shape[1]
        window = slice(start, start + count)
        transform = compiled(Coefficients._transform, tokens.device)  # one for all blocks
        output = transform(self, tokens, self.embedding[:, window], _Window(start, count))
        return self._split(output, None if self.weights is None else self.weights[window])

    def at(self, token: Tensor, position: Tensor, filled: int) -> tuple[Tensor, Tensor]:
        """Do the same for one token whose place is only known on the device.

        The shapes of all operations depend on `filled` only, so that a CUDA graph can replay
        them for one position after another.

        Args:
            token: (B, 1, D).
            position: (1,) int64, below `filled`.
            filled: keys and values that are looked at; those after `position` are masked.
        """
        embedding = self.embedding.index_select(1, position)
        output = self._transform(token, embedding, _Place(position, self.positions[:filled]))
        return self._split(output, None if self.weights is None else self.weights[position])

    def _transform(self, tokens: Tensor, embedding: Tensor, view: "_Window | _Place") -> Tensor:
        """Run the Transformer on a window; return what the last projection gives, (R, n, D')."""
        if self.sampler:
            tokens = torch.cat([tokens, tokens])
        rows, count, _ = tokens.shape
        hidden = self.proj_in(tokens.reshape(rows * count, -1))[0].view(rows, count, -1)
        hidden = (hidden + embedding).view(rows * count, -1)
        for layer in self.layers:
            layer(hidden, view, self.cooled)
        return self.proj_out(hidden)[0].view(rows, count, -1)

    def _split(self, output: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.volume_preserving:
            log_scale, shift = torch.zeros_like(output), output
        else:
            log_scale, shift = output.chunk(2, dim=2)
        if self.sampler is None or weights is None:
            return torch.exp(log_scale), shift
        return guidance.combine(log_scale, shift, weights, self.sampler)


class _IncrementalLayer:
    """A Transformer layer that attends to the keys and values it has kept."""

    def __init__(self, layer: Layer, cache: Tensor, parts: int, rows: int) -> None:
        """Lay out weights; `cache` is (2, R * H, T, K)."""
        attention, mlp = layer.attention, layer.mlp
        up, down = cast(nn.Linear, mlp.main[0]), cast(nn.Linear, mlp.main[2])
        self.shape = (
            parts,
            rows,
            cache.shape[1] // (parts * rows),
            cache.shape[3],
        )  # P, R, H/P, K
        self.cache, self.keys, self.values = cache, cache[0].mT, cache[1]
        self.norms = attention.norm, mlp.norm
        scale = torch.ones_like(attention.qkv.bias)
        scale[: len(scale) // 3] = cache.shape[3] ** -0.5  # of queries, once and for all
        weight, bias = attention.qkv.weight * scale[:, None], attention.qkv.bias * scale
        dtype = cache.dtype
        self.qkv = _Linear.columns(weight, bias, 3 * parts, dtype)
        self.proj = _Linear.rows(attention.proj.weight, attention.proj.bias, parts, dtype)
        self.up = _Linear.columns(up.weight, up.bias, parts, dtype)
        self.down = _Linear.rows(down.weight, down.bias, parts, dtype)

    def __call__(self, hidden: Tensor, view: "_Window | _Place", cooled: Tensor | None) -> None:
        """Transform (M, C) hidden states in place."""
        attention, mlp = self.norms
        qkv = self.qkv(_normed(hidden, attention))
        for part in self.proj(view.attend(qkv, self, cooled)):
            hidden += part
        for part in self.down(F.gelu(self.up(_normed(hidden, mlp)))):
            hidden += part


@dataclass(frozen=True)
class _Linear:
    """A linear map in parts: (P, inputs, outputs) and (P, 1, outputs)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def columns(cls, weight: Tensor, bias: Tensor, parts: int, dtype: torch.dtype) -> "_Linear":
        """Split the outputs: each part gives its share of them."""
        split = weight.detach().unflatten(0, (parts, -1)).mT
        return cls(split.to(dtype).contiguous(), bias.detach().to(dtype).view(parts, 1, -1))

    @classmethod
    def rows(cls, weight: Tensor, bias: Tensor, parts: int, dtype: torch.dtype) -> "_Linear":
        """Split the inputs: the parts give terms of a sum, the first with the bias."""
        split = weight.detach().T.unflatten(0, (parts, -1))
        once = torch.zeros(parts, 1, len(weight), dtype=dtype, device=weight.device)
        once[0, 0] = bias.detach()
        return cls(split.to(dtype).contiguous(), once)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map (M, inputs), the same for all parts, or (P, M, inputs) to (P, M, outputs)."""
        inputs = inputs.to(self.weight.dtype)
        return torch.baddbmm(self.bias, inputs.expand(len(self.weight), -1, -1), self.weight)


@dataclass(frozen=True)
class _Window:
    """Tokens `start` to `start + count`, a place known on the host."""

    start: int
    count: int

    def attend(self, qkv: Tensor, layer: _IncrementalLayer, cooled: Tensor | None) -> Tensor:
        """Keep the keys and values of (3 P, M, C / P); return what is mixed, (P, M, C / P)."""
        parts, rows, heads, width = layer.shape
        end = self.start + self.count
        if self.count == 1:
            split = qkv.view(3, -1, 1, width)
        else:
            split = qkv.view(3, parts, rows, self.count, heads, width).transpose(3, 4)
            split = split.reshape(3, -1, self.count, width)
        layer.cache[:, :, self.start : end] = split[1:]
        query = split[0]
        if cooled is not None:
            query = (query.view(parts, rows, -1) * cooled).view(query.shape)
        keys, values = layer.keys[:, :, :end], layer.values[:, :end]
        if self.count == 1:
            return _products(query, keys, values, None).view(parts, rows, -1)
        if self.count < FUSED_FROM:
            mask = query.new_full((self.count, end), -torch.inf).triu(self.start + 1)
            mixed = _products(query, keys, values, mask)
        else:
            mask = query.new_ones((self.count, end), dtype=torch.bool).tril(self.start)
            mixed = F.scaled_dot_product_attention(query, keys.mT, values, mask, scale=1.0)
        mixed = mixed.view(parts, rows, heads, self.count, width).transpose(2, 3)
        return mixed.reshape(parts, rows * self.count, -1)


@dataclass(frozen=True)
class _Place:
    """One token at a place known on the device only."""

    position: Tensor  # (1,)
    looked_at: Tensor  # (filled,), 0, 1, ...

    def attend(self, qkv: Tensor, layer: _IncrementalLayer, cooled: Tensor | None) -> Tensor:
        """Do as `_Window` does, over all the keys that are looked at."""
        parts, rows, _, width = layer.shape
        split = qkv.view(3, -1, 1, width)
        layer.cache.index_copy_(2, self.position, split[1:])
        query = split[0]
        if cooled is not None:
            query = (query.view(parts, rows, -1) * cooled).view(query.shape)
        filled = len(self.looked_at)
        keys, values = layer.keys[:, :, :filled], layer.values[:, :filled]
        mask = torch.where(self.looked_at > self.position, -torch.inf, 0.0).to(query.dtype)[None]
        return _products(query, keys, values, mask).view(parts, rows, -1)


def _products(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by plain products; `mask` (n, m) is added to the logits."""
    logits = torch.bmm(query, keys) if mask is None else torch.baddbmm(mask, query, keys)
    return torch.bmm(logits.softmax(2), values)


def _normed(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
