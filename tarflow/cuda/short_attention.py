"""Causal attention over few tokens as Triton kernels.

A program takes a stretch of a head's tokens: as queries it walks along the keys before them, and
in the backward pass, as keys, along the queries after them too. Gradients are written where the
product before them reads them, with the sums over rows that its bias needs.

Legend: `B` images, `T` tokens per image, `M = B * T` rows, `C` channels, `H` heads, `K` channels
of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tarflow.cuda.kernels import sum_rows

BLOCK = 64  # queries or keys that a program takes at a time
WARPS = 4
LN_2 = 0.6931471805599453


@triton.jit
def _logits(query, key, first_query, first_key, tokens, factor, BLOCK: tl.constexpr):
    """Return (queries, keys) logits to base 2, minus infinity where a key is not seen."""
    logits = tl.dot(query, tl.trans(key)) * factor
    at = first_query + tl.arange(0, BLOCK)
    of = first_key + tl.arange(0, BLOCK)
    seen = (at[:, None] >= of[None, :]) & (at < tokens)[:, None]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _place(start, tokens, head_dim, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Return offsets and mask (BLOCK, WIDTH) of one head's values at some tokens."""
    token = start + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    inside = (token < tokens)[:, None] & (column < head_dim)[None, :]
    return token[:, None] * stride + column[None, :], inside


@triton.jit
def _forward(
    joined,
    mixed,
    total,
    heads,
    tokens,
    head_dim,
    factor,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image = (tl.program_id(1) // heads).to(tl.int64)
    head, channels = tl.program_id(1) % heads, heads * head_dim
    first = tl.program_id(0) * BLOCK
    queries = joined + image * tokens * 3 * channels + head * head_dim
    at, inside = _place(first, tokens, head_dim, 3 * channels, BLOCK, WIDTH)
    query = tl.load(queries + at, mask=inside, other=0.0)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, first + BLOCK, BLOCK):
        at, inside = _place(start, tokens, head_dim, 3 * channels, BLOCK, WIDTH)
        key = tl.load(queries + channels + at, mask=inside, other=0.0)
        value = tl.load(queries + 2 * channels + at, mask=inside, other=0.0)
        logits = _logits(query, key, first, start, tokens, factor, BLOCK)
        above = tl.maximum(tl.maximum(largest, tl.max(logits, 1)), -1e30)  # finite beyond the end
        shares = tl.exp2(logits - above[:, None])
        shrink = tl.exp2(largest - above)
        weight = weight * shrink + tl.sum(shares, 1)
        sums = sums * shrink[:, None]
        sums = tl.dot(shares.to(value.dtype), value, sums)
        largest = above
    weight = tl.where(weight > 0, weight, 1.0)
    at, inside = _place(first, tokens, head_dim, channels, BLOCK, WIDTH)
    result = (sums / weight[:, None]).to(mixed.dtype.element_ty)
    tl.store(mixed + image * tokens * channels + head * head_dim + at, result, mask=inside)
    token = first + tl.arange(0, BLOCK)
    at = total + tl.program_id(1).to(tl.int64) * tokens + token
    tl.store(at, largest + tl.log2(weight), mask=token < tokens)


@triton.jit
def _backward(
    joined,
    mixed,
    dmixed,
    total,
    djoined,
    sums,
    heads,
    tokens,
    head_dim,
    factor,
    scale,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image = (tl.program_id(1) // heads).to(tl.int64)
    head, channels = tl.program_id(1) % heads, heads * head_dim
    first = tl.program_id(0) * BLOCK
    whole = image * tokens * 3 * channels + head * head_dim
    part = image * tokens * channels + head * head_dim
    queries, dqueries = joined + whole, djoined + whole
    mixed += part
    dmixed += part
    total += tl.program_id(1).to(tl.int64) * tokens
    own = tl.arange(0, BLOCK)
    kind = joined.dtype.element_ty

    # as keys: the gradient from all queries that see them
    at, inside = _place(first, tokens, head_dim, 3 * channels, BLOCK, WIDTH)
    key = tl.load(queries + channels + at, mask=inside, other=0.0)
    value = tl.load(queries + 2 * channels + at, mask=inside, other=0.0)
    dkey = tl.zeros((BLOCK, WIDTH), tl.float32)
    dvalue = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(first, tokens, BLOCK):
        at, inside = _place(start, tokens, head_dim, 3 * channels, BLOCK, WIDTH)
        query = tl.load(queries + at, mask=inside, other=0.0)
        at, inside = _place(start, tokens, head_dim, channels, BLOCK, WIDTH)
        gradient = tl.load(dmixed + at, mask=inside, other=0.0)
        result = tl.load(mixed + at, mask=inside, other=0.0)
        along = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1)
        norm = tl.load(total + start + own, mask=start + own < tokens, other=0.0)
        logits = _logits(query, key, start, first, tokens, factor, BLOCK)
        shares = tl.exp2(logits - norm[:, None])
        dvalue = tl.dot(tl.trans(shares.to(kind)), gradient, dvalue)
        dshares = tl.dot(gradient, tl.trans(value))
        dlogits = shares * (dshares - along[:, None])
        dkey = tl.dot(tl.trans(dlogits.to(kind)), query, dkey)
    dkey *= scale
    at, inside = _place(first, tokens, head_dim, 3 * channels, BLOCK, WIDTH)
    tl.store(dqueries + channels + at, dkey.to(kind), mask=inside)
    tl.store(dqueries + 2 * channels + at, dvalue.to(kind), mask=inside)

    # as queries: the gradient from all keys that they see
    query = tl.load(queries + at, mask=inside, other=0.0)
    to, within = _place(first, tokens, head_dim, channels, BLOCK, WIDTH)
    gradient = tl.load(dmixed + to, mask=within, other=0.0)
    result = tl.load(mixed + to, mask=within, other=0.0)
    along = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1)
    norm = tl.load(total + first + own, mask=first + own < tokens, other=0.0)
    dquery = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, first + BLOCK, BLOCK):
        of, within = _place(start, tokens, head_dim, 3 * channels, BLOCK, WIDTH)
        key = tl.load(queries + channels + of, mask=within, other=0.0)
        value = tl.load(queries + 2 * channels + of, mask=within, other=0.0)
        logits = _logits(query, key, first, start, tokens, factor, BLOCK)
        shares = tl.exp2(logits - norm[:, None])
        dshares = tl.dot(gradient, tl.trans(value))
        dlogits = shares * (dshares - along[:, None])
        dquery = tl.dot(dlogits.to(kind), key, dquery)
    dquery *= scale
    tl.store(dqueries + at, dquery.to(kind), mask=inside)

    column = tl.arange(0, WIDTH)
    known = column < head_dim
    row = image * tl.num_programs(0) + tl.program_id(0)
    at = sums + row * 3 * channels + head * head_dim + column
    tl.store(at, tl.sum(dquery, 0), mask=known)
    tl.store(at + channels, tl.sum(dkey, 0), mask=known)
    tl.store(at + 2 * channels, tl.sum(dvalue, 0), mask=known)


def attention(joined: Tensor, tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Attend from each token to itself and those before it.

    Args:
        joined: (M, 3 C) queries, keys and values, in 16 bits.
        tokens: Tokens per image, T.
        head_dim: Channels of a head, K.

    Returns:
        (M, C) mixed values, and for `attention_backward` (B, H, T) float32.
    """
    rows, channels = len(joined), joined.shape[1] // 3
    heads, images = channels // head_dim, rows // tokens
    mixed = joined.new_empty(rows, channels)
    total = joined.new_empty(images, heads, tokens, dtype=torch.float32)
    _forward[(triton.cdiv(tokens, BLOCK), images * heads)](
        *(joined, mixed, total, heads, tokens, head_dim, head_dim**-0.5 / LN_2),
        *(BLOCK, _width(head_dim)),
        num_warps=WARPS,
    )
    return mixed, total


def attention_backward(
    joined: Tensor, mixed: Tensor, total: Tensor, dmixed: Tensor
) -> tuple[Tensor, Tensor]:
    """Go backward through `attention`.

    Args:
        joined: (M, 3 C) as there.
        mixed: (M, C) that it returned.
        total: (B, H, T) likewise.
        dmixed: (M, C) gradient of `mixed`.

    Returns:
        (M, 3 C) gradients of queries, keys and values, and their sums over the rows, float32.
    """
    (images, heads, tokens), channels = total.shape, mixed.shape[1]
    head_dim, blocks = channels // heads, triton.cdiv(tokens, BLOCK)
    djoined = torch.empty_like(joined)
    sums = total.new_empty(images * blocks, 3 * channels)
    scale = head_dim**-0.5
    _backward[(blocks, images * heads)](
        *(joined, mixed, dmixed, total, djoined, sums, heads, tokens, head_dim),
        *(scale / LN_2, scale, BLOCK, _width(head_dim)),
        num_warps=WARPS,
    )
    return djoined, sum_rows(sums)


def _width(head_dim: int) -> int:
    """Return a power of 2 of columns that hold a head, 16 or more for the matrix units."""
    return int(max(16, triton.next_power_of_2(head_dim)))
