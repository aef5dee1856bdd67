"""One token of every image through a block, by few kernels.

A step reads each weight and each cached key and value once, so the time to launch kernels and the
passes over memory in between decide. The position is a device tensor, and attention reads just the
keys that are filled, so that one CUDA graph serves all positions.

Legend: `B` images, `R` rows (`B`, or `2B` with guidance), `T` tokens per image, `D` values per
token, `C` channels, `H` heads, `K` channels of a head, `S` parts of a sum.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from tarflow.config import SamplerConfig
from tarflow.cuda.kernels import add_norm
from tarflow.cuda.products import product
from tarflow.model.block import FlowBlock
from tarflow.model.transformer import Layer

KEYS, WARPS, STAGES = 64, 4, 2  # keys that a program reads at a time, its warps, loads under way


class DecodeStep:
    """The step from one token of every image to the next, through a block of a published TarFlow.

    The hidden states are float32; so are the products that read or write tokens.
    """

    def __init__(
        self,
        block: FlowBlock,
        caches: Sequence[Tensor],
        embedding: Tensor,
        sampler: SamplerConfig | None = None,
        weights: Tensor | None = None,
        query_scale: Tensor | None = None,
    ) -> None:
        """Lay out the weights in the type of the caches.

        Args:
            block: Flow block to invert.
            caches: Keys and values of each layer, (2, R * H, T, K); steps fill them.
            embedding: (1 or R, T, C) what is added to the first hidden states.
            sampler: Guidance of this block, or `None`.
            weights: (T, 1) of guidance, or `None`.
            query_scale: (R, 1) factors of the queries, or `None`.
        """
        _, row_heads, _, head_dim = caches[0].shape
        rows = row_heads * head_dim // block.config.channels
        self.layers = [
            _DecodeLayer(cast(Layer, layer), cache, query_scale)
            for layer, cache in zip(block.attn_blocks, caches, strict=True)
        ]
        self.embedding, self.sampler, self.weights = embedding, sampler, weights
        self.ends = [
            (linear.weight.detach().float(), linear.bias.detach().float())
            for linear in (block.proj_in, block.proj_out)
        ]
        self.token = embedding.new_empty(rows, block.config.token_dim, dtype=torch.float32)
        self.hidden = embedding.new_empty(rows, block.config.channels, dtype=torch.float32)

    def begin(self, token: Tensor, place: int) -> None:
        """Go to the token (B, D) at a place; the caches hold all tokens before it."""
        self.token.view(-1, *token.shape).copy_(token)
        self.hidden.copy_(self.embedding[:, place])

    def __call__(self, latents: Tensor, tokens: Tensor, position: Tensor) -> None:
        """Write the successor of the token at a position, and make it the current token.

        Args:
            latents: (B, T, D) latents.
            tokens: (B, T, D) tokens; the successor is written.
            position: (1,) int64, place of the token.
        """
        (enter, bias), (leave, leave_bias) = self.ends
        hidden, update = self.hidden, product(self.token, enter)
        for layer in self.layers:
            hidden, update, bias = layer(hidden, update, bias, position)
        output = product(hidden, leave, terms=update, terms_bias=bias)
        (batch, count, width), (rows, channels) = latents.shape, hidden.shape
        sampler = self.sampler
        _advance[(rows,)](
            *(output, leave_bias, latents, tokens, self.token, self.embedding, self.hidden),
            *(self.weights, position, batch, rows, count, width, channels),
            self.embedding.stride(0) if len(self.embedding) > 1 else 0,
            *(self.embedding.stride(1), len(output), sampler is not None),
            *((sampler.rule, sampler.part) if sampler else (None, None)),
            *(triton.next_power_of_2(width), triton.next_power_of_2(channels)),
        )


class _DecodeLayer:
    def __init__(self, layer: Layer, cache: Tensor, query_scale: Tensor | None) -> None:
        dtype, mlp = cache.dtype, cast(Any, layer.mlp.main)
        linears = layer.attention.qkv, layer.attention.proj, mlp[0], mlp[2]
        self.matrices = [linear.weight.detach().to(dtype) for linear in linears]
        self.biases = [linear.bias.detach().to(dtype) for linear in linears]
        self.norms, self.cache = (layer.attention.norm, layer.mlp.norm), cache
        self.query_scale = query_scale

    def __call__(
        self, hidden: Tensor, update: Tensor, bias: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states (R, C), terms of an update (S, R, C) to be added, and its bias."""
        dtype, (first, second) = self.cache.dtype, self.norms
        (qkv, proj, up, down), biases = self.matrices, self.biases
        hidden, normed, *_ = add_norm(
            hidden, update, bias, first.weight, first.bias, first.eps, dtype
        )
        joined = product(normed, qkv, biases[0])
        mixed = attend(joined, self.cache, position, self.query_scale)
        update = product(mixed, proj)
        hidden, normed, *_ = add_norm(
            hidden, update, biases[1], second.weight, second.bias, second.eps, dtype
        )
        active = product(normed, up, biases[2], gelu=True)
        return hidden, product(active, down), biases[3]


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


@triton.jit
def _coefficients(output, bias, row, rows, width, index, PARTS: tl.constexpr):
    """Return log-scale and shift of one row from the terms of the last product."""
    inside = index < width
    log_scale = tl.load(bias + index, mask=inside, other=0.0)
    shift = tl.load(bias + width + index, mask=inside, other=0.0)
    for part in tl.static_range(PARTS):
        at = output + (part * rows + row) * 2 * width + index
        log_scale += tl.load(at, mask=inside, other=0.0)
        shift += tl.load(at + width, mask=inside, other=0.0)
    return log_scale, shift


@triton.jit
def _advance(
    output,
    bias,
    latents,
    tokens,
    token,
    embedding,
    hidden,
    weights,
    position,
    batch,
    rows,
    count,
    width,
    channels,
    embedding_row,
    embedding_place,
    PARTS: tl.constexpr,
    GUIDED: tl.constexpr,
    RULE: tl.constexpr,
    PART: tl.constexpr,
    VALUES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    image = row % batch  # with guidance, both rows of an image compute the same token
    place = tl.load(position)
    index = tl.arange(0, VALUES)
    inside = index < width
    good, shift = _coefficients(output, bias, image, rows, width, index, PARTS)
    scale = tl.exp(good)
    if GUIDED:
        worse, worse_shift = _coefficients(output, bias, image + batch, rows, width, index, PARTS)
        weight = tl.load(weights + place)  # for the rules, see `tarflow.sample.guidance.combine`
        guided, guided_shift = scale, shift + weight * (shift - worse_shift)
        if RULE == "log-scale":
            guided = tl.exp(good + weight * (good - worse))
        elif RULE == "sigma-linear":
            guided = scale + weight * (scale - tl.exp(worse))
        else:
            ratio = tl.minimum(tl.exp(2 * (good - worse)), 1.0)
            spread = 1 + weight - weight * ratio
            guided = scale / tl.sqrt(spread)
            guided_shift = shift + weight * ratio / spread * (shift - worse_shift)
        if PART != "shift":
            scale = guided
        if PART != "scale":
            shift = guided_shift
    at = (image * count + place + 1) * width + index
    value = tl.load(latents + at, mask=inside, other=0.0).to(tl.float32) * scale + shift
    tl.store(token + row * width + index, value, mask=inside)
    tl.store(tokens + at, value.to(tokens.dtype.element_ty), mask=inside & (row < batch))
    channel = tl.arange(0, WIDTH)
    known = channel < channels
    start = embedding + row * embedding_row + (place + 1) * embedding_place
    value = tl.load(start + channel, mask=known).to(tl.float32)
    tl.store(hidden + row * channels + channel, value, mask=known)
