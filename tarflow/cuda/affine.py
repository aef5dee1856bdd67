"""The affine map of a block and its backward pass as Triton kernels: a program for each image.

Legend: `B` images, `T` tokens per image, `D` values per token.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _affine(
    tokens,
    output,
    mapped,
    logdet,
    count,
    width,
    BACKWARDS: tl.constexpr,
    VALUES: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    values = count * width
    total = tl.zeros((VALUES,), tl.float32)
    for start in range(0, values, VALUES):
        index = start + tl.arange(0, VALUES)
        token = index // width
        inside = index < values
        later = inside & (token > 0)
        given = output + image * 2 * values + (token - 1) * 2 * width + index % width
        log_scale = tl.load(given, mask=later, other=0.0).to(tl.float32)
        shift = tl.load(given + width, mask=later, other=0.0).to(tl.float32)
        value = tl.load(tokens + image * values + index, mask=inside, other=0.0)
        if BACKWARDS:
            index = (count - 1 - token) * width + index % width
        result = (value - shift) * tl.exp(-log_scale)
        tl.store(mapped + image * values + index, result, mask=inside)
        total += log_scale
    tl.store(logdet + image, -tl.sum(total, 0) / values)


@triton.jit
def _affine_backward(
    output,
    mapped,
    dmapped,
    dlogdet,
    dtokens,
    doutput,
    count,
    width,
    BACKWARDS: tl.constexpr,
    VALUES: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    values = count * width
    per_value = tl.load(dlogdet + image) / values
    for start in range(0, values, VALUES):
        index = start + tl.arange(0, VALUES)
        token = index // width
        inside = index < values
        later = inside & (token > 0)
        place = index
        if BACKWARDS:
            place = (count - 1 - token) * width + index % width
        gradient = tl.load(dmapped + image * values + place, mask=inside, other=0.0)
        value = tl.load(mapped + image * values + place, mask=inside, other=0.0)
        pair = image * 2 * values + index % width
        given = pair + (token - 1) * 2 * width
        log_scale = tl.load(output + given, mask=later, other=0.0).to(tl.float32)
        scaled = gradient * tl.exp(-log_scale)
        tl.store(dtokens + image * values + index, scaled, mask=inside)
        dlog_scale = -gradient * value - per_value
        kind = doutput.dtype.element_ty
        tl.store(doutput + given, dlog_scale.to(kind), mask=later)
        tl.store(doutput + given + width, (-scaled).to(kind), mask=later)
        unused = pair + (count - 1) * 2 * width  # the last token has no successor
        first = inside & (token == 0)
        zero = tl.zeros((VALUES,), kind)
        tl.store(doutput + unused, zero, mask=first)
        tl.store(doutput + unused + width, zero, mask=first)


def affine(
    tokens: Tensor,
    output: Tensor,
    mapped: Tensor,
    logdet: Tensor,
    batch: int,
    count: int,
    width: int,
    backwards: int,
) -> None:
    """Shift and scale tokens; see `tarflow.affine.AffineKernels`."""
    _affine[(batch,)](
        tokens, output, mapped, logdet, count, width, bool(backwards), _values(count * width)
    )


def affine_backward(
    output: Tensor,
    mapped: Tensor,
    dmapped: Tensor,
    dlogdet: Tensor,
    dtokens: Tensor,
    doutput: Tensor,
    batch: int,
    count: int,
    width: int,
    backwards: int,
) -> None:
    """Go backward through `affine`; see `tarflow.affine.AffineKernels`."""
    _affine_backward[(batch,)](
        *(output, mapped, dmapped, dlogdet, dtokens, doutput, count, width),
        *(bool(backwards), _values(count * width)),
    )


def _values(count: int) -> int:
    """Return how many values a program takes at a time."""
    return int(min(1024, triton.next_power_of_2(count)))
