"""One token of every image through the layers of a block, by few kernels.

A step reads each weight and each cached key and value once, so the time to launch kernels and the
passes over memory in between decide. The position is a device tensor, and attention reads just the
keys that are filled, so that one CUDA graph serves all positions.

Legend: `R` rows (images, twice as many with guidance), `T` tokens per image, `C` channels,
`H` heads, `K` channels of a head.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tarflow.cuda.kernels import add_norm
from tarflow.model.transformer import Layer

KEYS, WARPS, STAGES = 64, 4, 2  # keys that a program reads at a time, its warps, loads under way


class DecodeStep:
    """The layers of a block for one token of every row."""

    def __init__(self, layers: Sequence[Layer], caches: Sequence[Tensor]) -> None:
        """Lay out the weights in the type of the caches.

        Args:
            layers: Transformer layers of the block.
            caches: Keys and values of each layer, (2, R * H, T, K); steps fill them.
        """
        self.layers = [
            _DecodeLayer(layer, cache) for layer, cache in zip(layers, caches, strict=True)
        ]

    def __call__(self, hidden: Tensor, position: Tensor, query_scale: Tensor | None) -> Tensor:
        """Return the hidden states (R, C) after the layers.

        Args:
            hidden: (R, C) states before them, not changed.
            position: (1,) int64, place of the token; the caches hold all tokens before it.
            query_scale: (R, 1) factors of the queries, or `None`.
        """
        update = bias = None
        for layer in self.layers:
            hidden, update, bias = layer(hidden, update, bias, position, query_scale)
        return hidden if update is None or bias is None else hidden + update + bias


class _DecodeLayer:
    def __init__(self, layer: Layer, cache: Tensor) -> None:
        dtype, mlp = cache.dtype, cast(Any, layer.mlp.main)
        linears = layer.attention.qkv, layer.attention.proj, mlp[0], mlp[2]
        self.matrices = [linear.weight.detach().to(dtype).t() for linear in linears]
        self.biases = [linear.bias.detach().to(dtype) for linear in linears]
        self.norms, self.cache = (layer.attention.norm, layer.mlp.norm), cache

    def __call__(
        self,
        hidden: Tensor,
        update: Tensor | None,
        bias: Tensor | None,
        position: Tensor,
        query_scale: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states and an update (R, C) that is still to be added, with its bias."""
        dtype, (first, second) = self.cache.dtype, self.norms
        (qkv, proj, up, down), biases = self.matrices, self.biases
        hidden, normed, *_ = add_norm(
            hidden, update, bias, first.weight, first.bias, first.eps, dtype
        )
        joined = torch.addmm(biases[0], normed, qkv)
        mixed = attend(joined, self.cache, position, query_scale)
        hidden, normed, *_ = add_norm(
            hidden, torch.mm(mixed, proj), biases[1], second.weight, second.bias, second.eps, dtype
        )
        active = F.gelu(torch.addmm(biases[2], normed, up))
        return hidden, torch.mm(active, down), biases[3]


@triton.jit
def _attend(
    joined,
    cache,
    position,
    query_scale,
    mixed,
    heads,
    tokens,
    head_dim,
    stride,
    factor,
    SCALED: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, head = program // heads, program % heads
    column = tl.arange(0, WIDTH)
    known = column < head_dim
    channels = heads * head_dim
    place = tl.load(position)
    given = joined + row * 3 * channels + head * head_dim + column
    query = tl.load(given, mask=known, other=0.0).to(tl.float32) * factor
    if SCALED:
        query *= tl.load(query_scale + row).to(tl.float32)
    own_key = tl.load(given + channels, mask=known, other=0.0)
    own_value = tl.load(given + 2 * channels, mask=known, other=0.0)
    keys = cache + program * tokens * head_dim
    values = keys + stride
    tl.store(keys + place * head_dim + column, own_key, mask=known)
    tl.store(values + place * head_dim + column, own_value, mask=known)

    largest = tl.sum(query * own_key.to(tl.float32), 0)
    total = tl.exp(largest - largest)
    sums = own_value.to(tl.float32)
    for start in tl.range(0, place, KEYS, num_stages=STAGES):
        token = start + tl.arange(0, KEYS)
        inside = (token < place)[:, None] & known[None, :]
        at = token[:, None] * head_dim + column[None, :]
        key = tl.load(keys + at, mask=inside, other=0.0)
        value = tl.load(values + at, mask=inside, other=0.0)
        logits = tl.sum(query[None, :] * key.to(tl.float32), 1)
        logits = tl.where(token < place, logits, float("-inf"))
        above = tl.maximum(largest, tl.max(logits, 0))
        weights = tl.exp(logits - above)
        shrink = tl.exp(largest - above)
        total = total * shrink + tl.sum(weights, 0)
        sums = sums * shrink + tl.sum(weights[:, None] * value.to(tl.float32), 0)
        largest = above
    result = (sums / total).to(mixed.dtype.element_ty)
    tl.store(mixed + row * channels + head * head_dim + column, result, mask=known)


def attend(
    joined: Tensor, cache: Tensor, position: Tensor, query_scale: Tensor | None = None
) -> Tensor:
    """Attend from one token to itself and those before it, and cache its key and value.

    Args:
        joined: (R, 3 C) queries, keys and values of the token.
        cache: (2, R * H, T, K) keys and values; the token's are written.
        position: (1,) int64, place of the token.
        query_scale: (R, 1) factors of the queries, or `None`.

    Returns:
        (R, C) mixed values.
    """
    rows = len(joined)
    _, row_heads, tokens, head_dim = cache.shape
    mixed = joined.new_empty(rows, joined.shape[1] // 3)
    _attend[(row_heads,)](
        *(joined, cache, position, query_scale, mixed, row_heads // rows, tokens, head_dim),
        *(cache.stride(0), head_dim**-0.5, query_scale is not None, KEYS),
        *(STAGES, triton.next_power_of_2(head_dim)),
        num_warps=WARPS,
    )
    return mixed
