"""Scale and shift of one block, window by window, with the keys and values of earlier tokens kept.

Legend: `B` images, `R` rows (`B`, or `2B` with guidance), `n` tokens of a window, `M = R * n`,
`T` tokens per image, `D` values per token, `C` channels.
"""

import math
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from tarflow.config import SamplerConfig
from tarflow.model.flow import FlowBlock, Layer, TarFlow
from tarflow.sample import guidance
from tarflow.sample.incremental import IncrementalLayer, Place, Room, SplitLinear, Window


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
            IncrementalLayer(cast(Layer, layer), cache, memory.parts, rows)
            for layer, cache in zip(block.attn_blocks, caches, strict=True)
        ]
        dtype = caches.dtype
        self.proj_in = SplitLinear.columns(block.proj_in.weight, block.proj_in.bias, 1, dtype)
        self.proj_out = SplitLinear.columns(block.proj_out.weight, block.proj_out.bias, 1, dtype)
        positions = torch.arange(self.tokens, device=caches.device)
        self.positions = positions
        self.weights = guidance.weights(sampler, positions, self.tokens - 1) if sampler else None
        self.cooled: Tensor | None = None  # (R, 1): what queries are multiplied with
        if sampler and sampler.temperature != 1:
            self.cooled = torch.ones(rows, 1, dtype=dtype, device=caches.device)
            self.cooled[batch:] /= sampler.temperature

    @cached_property
    def room(self) -> Room:
        """Room for single tokens, made at the first: windows need none, nor does `at`."""
        return Room(self.layers[0])

    def __call__(self, tokens: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, n, D) of the successors of n tokens.

        Args:
            tokens: (B, n, D), those at `start` to `start + n` in the block's order.
            start: tokens before it must have been given, in their final state, in earlier calls;
                those from it on are forgotten and learned anew.
        """
        count = tokens.shape[1]
        window = slice(start, start + count)
        if count == 1:
            output = self._step(tokens[:, 0], start)[:, None]
        else:
            output = self._transform(tokens, self.embedding[:, window], Window(start, count))
        return self._split(output, None if self.weights is None else self.weights[window])

    def at(self, tokens: Tensor, positions: Tensor, filled: int) -> tuple[Tensor, Tensor]:
        """Do the same for tokens whose place is only known on the device.

        The shapes of all operations depend on `n` and `filled` only, so that a recording can be
        replayed for one place after another.

        Args:
            tokens: (B, n, D).
            positions: (n,) int64, one after another, below `filled`.
            filled: keys and values that are looked at; those after a token are masked.
        """
        embedding = self.embedding.index_select(1, positions)
        output = self._transform(tokens, embedding, Place(positions, self.positions[:filled]))
        return self._split(output, None if self.weights is None else self.weights[positions])

    def _transform(self, tokens: Tensor, embedding: Tensor, view: Window | Place) -> Tensor:
        """Run the Transformer on a window; return what the last projection gives, (R, n, D')."""
        if self.sampler:
            tokens = torch.cat([tokens, tokens])
        rows, count, _ = tokens.shape
        hidden = self.proj_in(tokens.reshape(rows * count, -1))[0].view(rows, count, -1)
        hidden = (hidden + embedding).view(rows * count, -1)
        for layer in self.layers:
            layer(hidden, view, self.cooled)
        return self.proj_out(hidden)[0].view(rows, count, -1)

    def _step(self, token: Tensor, index: int) -> Tensor:
        """Do the same for one token (B, D); return (R, D')."""
        if self.sampler:
            token = token.repeat(2, 1)
        hidden = self.proj_in(token[None])[0] + self.embedding[:, index]
        for layer in self.layers:
            layer.step(hidden, index, self.room, self.cooled)
        return self.proj_out(hidden[None])[0]

    def _split(self, output: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.volume_preserving:
            log_scale, shift = torch.zeros_like(output), output
        else:
            log_scale, shift = output.chunk(2, dim=2)
        if self.sampler is None or weights is None:
            return torch.exp(log_scale), shift
        return guidance.combine(log_scale, shift, weights, self.sampler)
