"""Products of few rows with a matrix, of which each weight is read once.

A library multiplies thousands of rows well; for some tens, most of its multiprocessors idle. Here
tiles are as small as it takes to occupy them, and a long sum is cut into parts, which the kernel
that reads the result adds in a fixed order. A product of float32 is the sum of three products of
TF32, which is as exact as float32 and faster.

Legend: `R` rows, `I` values of a row, `F` outputs, `S` parts of a sum.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 4  # into which a sum is cut at most
WARPS = 4
MULTIPROCESSORS = 132  # of an H100, on which the tiles were chosen


@dataclass(frozen=True)
class Tile:
    """What a program of a product computes at a time."""

    rows: int
    columns: int
    inner: int  # values of a row
    stages: int = 3  # loads under way


ENDS = Tile(16, 32, 64, stages=2)  # of rows that are themselves a sum


def tiles(rows: int, outer: int, parts: int, dtype: torch.dtype) -> Tile:
    """Return the tile of a product of (R, I) rows with a matrix (F, I).

    Programs that all run at once read long stretches; fewer than half of those are made smaller.
    It is within 15% of the fastest of 60 tiles for the layers of 512 and 768 channels, 64 to 256
    rows, on an H100 (`benchmarks/README.md`).
    """
    programs = triton.cdiv(rows, 64) * triton.cdiv(outer, 32) * parts
    few, wide = 2 * programs <= MULTIPROCESSORS, dtype == torch.float32
    inner = (128 if programs <= MULTIPROCESSORS else 64) * (1 if wide else 2)
    return Tile(16 if few and wide else 64, 16 if few and not wide else 32, inner)


@triton.jit
def _product(
    inputs,
    weight,
    bias,
    terms,
    terms_bias,
    output,
    rows,
    inner,
    outer,
    share,
    BIASED: tl.constexpr,
    TERMS: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(2) * share
    last = tl.minimum(first + share, inner)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(first, last, INNER, num_stages=STAGES):
        along = start + tl.arange(0, INNER)
        inside = (row < rows)[:, None] & (along < last)[None, :]
        at = row[:, None] * inner + along[None, :]
        left = tl.load(inputs + at, mask=inside, other=0.0)
        if TERMS:
            left += tl.load(terms_bias + along, mask=along < last, other=0.0)[None, :]
            for term in tl.static_range(TERMS):
                left += tl.load(terms + term * rows * inner + at, mask=inside, other=0.0)
        inside = (along < last)[:, None] & (column < outer)[None, :]
        right = tl.load(weight + column[None, :] * inner + along[:, None], mask=inside, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    if BIASED:
        total += tl.load(bias + column, mask=column < outer, other=0.0).to(tl.float32)[None, :]
    if GELU:
        total *= 0.5 + 0.5 * tl.erf(total * 0.7071067811865476)
    inside = (row < rows)[:, None] & (column < outer)[None, :]
    at = (tl.program_id(2) * rows + row)[:, None] * outer + column[None, :]
    tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)


def product(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    terms: Tensor | None = None,
    terms_bias: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Multiply few rows by the transpose of a matrix.

    Args:
        inputs: (R, I) rows.
        weight: (F, I) matrix, of the type of the rows.
        bias: (F,) added to the result, which then is whole and of the type of the rows.
        terms: (S, R, I) also added to the rows, float32 as they are.
        terms_bias: (I,) likewise.
        gelu: Whether to apply the exact GELU.

    Returns:
        (R, F), or without a bias float32 terms of it, (S, R, F).
    """
    (rows, inner), outer = inputs.shape, len(weight)
    cuts = 1 if bias is not None else PARTS
    tile = tiles(rows, outer, cuts, inputs.dtype) if terms is None else ENDS
    share = triton.cdiv(triton.cdiv(inner, tile.inner), cuts) * tile.inner
    parts = triton.cdiv(inner, share)
    shape = (rows, outer) if bias is not None else (parts, rows, outer)
    output = inputs.new_empty(shape, dtype=inputs.dtype if bias is not None else torch.float32)
    _product[(triton.cdiv(rows, tile.rows), triton.cdiv(outer, tile.columns), parts)](
        *(inputs, weight, bias, terms, terms_bias, output, rows, inner, outer, share),
        *(bias is not None, 0 if terms is None else len(terms), gelu),
        "tf32x3" if inputs.dtype == torch.float32 else "tf32",
        *(tile.stages, tile.rows, tile.columns, tile.inner),
        num_warps=WARPS,
    )
    return output
