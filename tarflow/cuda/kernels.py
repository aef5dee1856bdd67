"""Triton kernels of a training step: one pass over memory for each stretch between products.

Sums are taken in float32. A kernel that sums over rows gives each program some of the rows, and
the sums of the programs are added afterwards, so that results do not depend on their order.

Legend: `M` rows (images times tokens), `C` channels, `F` columns of any matrix, `B` images,
`T` tokens per image, `H` heads, `K` channels of a head.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: what was fastest on an H100 (`benchmarks/gpu.py tuning`)."""

    tile: int  # values of each matrix that a program holds
    warps: int  # of a program, 32 threads each
    programs: int = 0  # per multiprocessor, of a kernel that sums over rows
    stages: int = 1  # loads under way at once


ADD_NORM = Launch(4096, 4)
NORM_BACKWARD = Launch(2048, 8, 2, 3)
GELU_BACKWARD = Launch(8192, 16, 2, 1)
JOIN_HEADS = Launch(8192, 8, 2, 1)


@triton.jit
def _add_norm(
    hidden,
    update,
    bias,
    gain,
    shift,
    total,
    normed,
    mean,
    inverse,
    rows,
    channels,
    eps,
    UPDATES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = column < channels
    inside = (row < rows)[:, None] & known[None, :]
    at = row[:, None] * channels + column[None, :]
    value = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
    if UPDATES:
        for term in tl.static_range(UPDATES):
            given = update + term * rows * channels + at
            value += tl.load(given, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
        value = value.to(total.dtype.element_ty)
        tl.store(total + at, value, mask=inside)
        value = value.to(tl.float32)
    average = tl.sum(value, 1) / channels
    centred = tl.where(inside, value - average[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    gains = tl.load(gain + column, mask=known, other=0.0).to(tl.float32)
    shifts = tl.load(shift + column, mask=known, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * gains[None, :] + shifts[None, :]
    tl.store(normed + at, result.to(normed.dtype.element_ty), mask=inside)
    tl.store(mean + row, average, mask=row < rows)
    tl.store(inverse + row, scale, mask=row < rows)


def add_norm(
    hidden: Tensor,
    update: Tensor | None,
    bias: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add an update to the hidden states, and normalise the sum.

    Args:
        hidden: (M, C) hidden states.
        update: (M, C) what a sublayer adds to them without its bias, or terms of it, (P, M, C);
            `None` for nothing.
        bias: (C,) bias of that sublayer; `None` without an update.
        gain: (C,) of the layer norm.
        shift: (C,) of the layer norm.
        eps: What the layer norm adds to the variance.
        dtype: Type of the normalised states.

    Returns:
        Sum (M, C) of the type of `hidden`, normalised states (M, C), and the mean and the inverse
        standard deviation of each row, (M,) float32.
    """
    rows, channels = hidden.shape
    total = hidden if update is None else torch.empty_like(hidden)
    terms = 0 if update is None else update.numel() // hidden.numel()
    normed = torch.empty_like(hidden, dtype=dtype)
    mean, inverse = hidden.new_empty(2, rows, dtype=torch.float32)
    width = _padded(channels)
    spread = triton.next_power_of_2(triton.cdiv(rows, _multiprocessors(hidden.device)))
    tile = max(1, min(ADD_NORM.tile // width, spread))
    _add_norm[(triton.cdiv(rows, tile),)](
        *(hidden, update, bias, gain, shift, total, normed, mean, inverse),
        *(rows, channels, eps, terms, tile, width),
        num_warps=ADD_NORM.warps,
    )
    return total, normed, mean, inverse


@triton.jit
def _norm_backward(
    dnormed,
    total,
    mean,
    inverse,
    gain,
    dtotal,
    dhidden,
    dupdate,
    sums,
    rows,
    channels,
    per_program,
    NARROWED: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    known = column < channels
    gains = tl.load(gain + column, mask=known, other=0.0).to(tl.float32)[None, :]
    dgain = tl.zeros((ROWS, WIDTH), tl.float32)
    dshift = tl.zeros((ROWS, WIDTH), tl.float32)
    dbias = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in tl.range(0, per_program, ROWS, num_stages=STAGES):
        row = program * per_program + start + tl.arange(0, ROWS)
        within = row < rows
        inside = within[:, None] & known[None, :]
        at = row[:, None] * channels + column[None, :]
        gradient = tl.load(dnormed + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        result = tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        average = tl.load(mean + row, mask=within, other=0.0)[:, None]
        scale = tl.load(inverse + row, mask=within, other=0.0)[:, None]
        unit = tl.where(inside, (value - average) * scale, 0.0)
        weighted = gradient * gains
        along = tl.sum(weighted * unit, 1)[:, None] / channels
        middle = tl.sum(weighted, 1)[:, None] / channels
        result += tl.where(inside, (weighted - unit * along - middle) * scale, 0.0)
        tl.store(dhidden + at, result.to(dhidden.dtype.element_ty), mask=inside)
        if NARROWED:
            tl.store(dupdate + at, result.to(dupdate.dtype.element_ty), mask=inside)
        dgain += gradient * unit
        dshift += gradient
        dbias += result
    at = sums + program * (3 * channels) + column
    tl.store(at, tl.sum(dgain, 0), mask=known)
    tl.store(at + channels, tl.sum(dshift, 0), mask=known)
    tl.store(at + 2 * channels, tl.sum(dbias, 0), mask=known)


def norm_backward(
    dnormed: Tensor, total: Tensor, mean: Tensor, inverse: Tensor, gain: Tensor, dtotal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go backward through `add_norm`.

    Args:
        dnormed: (M, C) gradient of the normalised states.
        total: (M, C) states before the norm.
        mean: (M,) as `add_norm` returned it.
        inverse: (M,) likewise.
        gain: (C,) of the layer norm.
        dtotal: (M, C) gradient of `total` from elsewhere.

    Returns:
        Gradients of the hidden states (M, C), of the update (M, C) in the type of `dnormed`, and
        of gain, shift and bias (3, C), float32.
    """
    rows, channels = total.shape
    dhidden = torch.empty_like(total)
    same = total.dtype == dnormed.dtype
    dupdate = dhidden if same else torch.empty_like(dnormed)
    width = _padded(channels)
    launch, tile = NORM_BACKWARD, max(1, NORM_BACKWARD.tile // width)
    programs, per_program = _shares(total, rows, tile, launch)
    sums = total.new_empty(programs, 3 * channels, dtype=torch.float32)
    _norm_backward[(programs,)](
        *(dnormed, total, mean, inverse, gain, dtotal, dhidden, dupdate, sums),
        *(rows, channels, per_program, not same, launch.stages, tile, width),
        num_warps=launch.warps,
    )
    return dhidden, dupdate, sum_rows(sums).view(3, channels)


@triton.jit
def _gelu_backward(
    before,
    gradient,
    sums,
    rows,
    width,
    per_program,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(0, per_program, ROWS, num_stages=STAGES):
        row = program * per_program + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & known[None, :]
        at = row[:, None] * width + column[None, :]
        value = tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        below = 0.5 + 0.5 * tl.erf(value * 0.7071067811865476)  # of the normal distribution
        density = 0.3989422804014327 * tl.exp(-0.5 * value * value)
        result = given * (below + value * density)
        tl.store(gradient + at, result.to(gradient.dtype.element_ty), mask=inside)
        total += result
    tl.store(sums + program * width + column, tl.sum(total, 0), mask=known)


def gelu_backward(before: Tensor, gradient: Tensor) -> Tensor:
    """Turn the gradient after an exact GELU into that before it, in place.

    Args:
        before: (M, F) values that GELU was applied to.
        gradient: (M, F) gradient of the result; overwritten.

    Returns:
        (F,) sums of the new gradient over the rows, float32: the gradient of a bias.
    """
    rows, width = before.shape
    columns = min(256, _padded(width))
    launch, tile = GELU_BACKWARD, max(1, GELU_BACKWARD.tile // columns)
    programs, per_program = _shares(before, rows, tile, launch, triton.cdiv(width, columns))
    sums = before.new_empty(programs, width, dtype=torch.float32)
    _gelu_backward[(programs, triton.cdiv(width, columns))](
        *(before, gradient, sums, rows, width, per_program, launch.stages, tile, columns),
        num_warps=launch.warps,
    )
    return sum_rows(sums)


@triton.jit
def _join_heads(
    dquery,
    dkey,
    dvalue,
    joined,
    sums,
    rows,
    tokens,
    channels,
    head_dim,
    per_image,
    per_head,
    per_token,
    per_program,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, COLUMNS)
    part = tl.program_id(1) // blocks
    column = (tl.program_id(1) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < channels
    source = dquery
    if part == 1:
        source = dkey
    if part == 2:
        source = dvalue
    from_column = (column // head_dim) * per_head + column % head_dim
    to_column = part * channels + column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(0, per_program, ROWS, num_stages=STAGES):
        row = program * per_program + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & known[None, :]
        from_row = (row // tokens) * per_image + (row % tokens) * per_token
        value = tl.load(source + from_row[:, None] + from_column[None, :], mask=inside, other=0.0)
        at = joined + row[:, None] * (3 * channels) + to_column[None, :]
        tl.store(at, value, mask=inside)
        total += value.to(tl.float32)
    tl.store(sums + program * (3 * channels) + to_column, tl.sum(total, 0), mask=known)


def join_heads(dquery: Tensor, dkey: Tensor, dvalue: Tensor) -> tuple[Tensor, Tensor]:
    """Join the gradients of queries, keys and values, (B, H, T, K) each.

    Returns:
        (B * T, 3 * H * K) joined gradients, and their sums over the rows, float32.
    """
    batch, heads, tokens, head_dim = dquery.shape
    parts = [dquery, dkey, dvalue]
    if len({part.stride() for part in parts}) > 1 or dquery.stride(3) != 1:
        parts = [part.contiguous() for part in parts]
    rows, channels = batch * tokens, heads * head_dim
    joined = dquery.new_empty(rows, 3 * channels)
    columns = min(256, _padded(channels))
    launch, tile = JOIN_HEADS, max(1, JOIN_HEADS.tile // columns)
    blocks = 3 * triton.cdiv(channels, columns)
    programs, per_program = _shares(joined, rows, tile, launch, blocks)
    sums = joined.new_empty(programs, 3 * channels, dtype=torch.float32)
    _join_heads[(programs, blocks)](
        *(*parts, joined, sums, rows, tokens, channels, head_dim),
        *(*parts[0].stride()[:3], per_program, launch.stages, tile, columns),
        num_warps=launch.warps,
    )
    return joined, sum_rows(sums)


@triton.jit
def _sum_rows(sums, result, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < width
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & known[None, :]
        total += tl.load(sums + row[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(result + column, tl.sum(total, 0), mask=known)


def sum_rows(sums: Tensor) -> Tensor:
    """Return the sums (F,) over the rows of a small matrix (rows, F), float32."""
    rows, width = sums.shape
    result = sums.new_empty(width)
    _sum_rows[(triton.cdiv(width, 32),)](sums, result, rows, width, 128, 32)
    return result


def _padded(width: int) -> int:
    """Return a power of 2 of columns that hold `width`; the same for all narrow models.

    Each value is compiled once, which takes Triton about a second for each kernel.
    """
    return int(max(64, triton.next_power_of_2(width)))


def _shares(
    tensor: Tensor, rows: int, tile: int, launch: Launch, columns: int = 1
) -> tuple[int, int]:
    """Return the number of programs that share the rows, and the rows of each: whole tiles."""
    most = max(1, launch.programs * _multiprocessors(tensor.device) // columns)
    per_program = triton.cdiv(triton.cdiv(rows, most), tile) * tile
    return triton.cdiv(rows, per_program), per_program


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter, in tests
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
