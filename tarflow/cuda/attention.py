"""Causal attention in training on a GPU: PyTorch's, or for few tokens `short_attention`.

PyTorch's kernels are made for long sequences: at 256 tokens they take some six times as long as
their tensors take to be read and written. Which is faster is measured once for each shape.

Legend: `B` images, `T` tokens per image, `M = B * T` rows, `C` channels, `H` heads, `K` channels
of a head.
"""

import contextlib
import logging
import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tarflow.cuda import kernels
from tarflow.cuda.short_attention import attention, attention_backward
from tarflow.errors import UserError
from tarflow.record import read_json, write_json
from tarflow.storage import cache_folder

LOG = logging.getLogger("tarflow")
LONGEST = 512  # tokens up to which the kernels for few are tried
LARGE = 2**23  # values in all; in smaller passes kernels that take seconds to compile do not pay
MEASURED = "attention.json"  # file in the cache folder: gains by device, version and shape
CLEAR_GAIN = 1.05  # over PyTorch's attention, forward and backward
SEQUENCES = 1024  # heads times images that are measured, enough to fill a GPU
TURNS = 5


def attend(joined: Tensor, qkv_bias: Tensor, tokens: int, head_dim: int) -> Tensor:
    """Attend from each token to itself and those before it.

    Args:
        joined: (M, 3 C) queries, keys and values.
        qkv_bias: (3 C,) bias of the product that gave them. It receives its gradient here, where
            the sums over rows are computed.
        tokens: Tokens per image, T.
        head_dim: Channels of a head, K.

    Returns:
        (M, C) mixed values.
    """
    large = joined.numel() >= LARGE
    short = large and gain_of_short(tokens, head_dim, joined.dtype, joined.device) > CLEAR_GAIN
    way = by_short_kernels if short else by_pytorch
    return way(joined, qkv_bias, tokens, head_dim)


def by_pytorch(joined: Tensor, qkv_bias: Tensor, tokens: int, head_dim: int) -> Tensor:
    """Do the work of `attend` by PyTorch's attention."""
    query, key, value = _Split.apply(joined, qkv_bias, tokens, head_dim)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).reshape(len(joined), -1)


def by_short_kernels(joined: Tensor, qkv_bias: Tensor, tokens: int, head_dim: int) -> Tensor:
    """Do the work of `attend` by the kernels for few tokens, in 16 bits."""
    mixed: Tensor = _Short.apply(joined, qkv_bias, tokens, head_dim)
    return mixed


class _Split(torch.autograd.Function):
    """Take queries, keys and values (B, H, T, K) from (M, 3 C); their gradients are joined."""

    @staticmethod
    def forward(
        ctx: Any, joined: Tensor, qkv_bias: Tensor, tokens: int, head_dim: int
    ) -> tuple[Tensor, ...]:
        del ctx, qkv_bias
        parts = joined.view(-1, tokens, 3, joined.shape[1] // (3 * head_dim), head_dim)
        return parts.permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dparts: Tensor) -> Any:
        del ctx
        return *kernels.join_heads(*dparts), None, None


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, qkv_bias: Tensor, tokens: int, head_dim: int) -> Tensor:
        del qkv_bias
        mixed, total = attention(joined, tokens, head_dim)
        ctx.save_for_backward(joined, mixed, total)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dmixed: Tensor) -> Any:
        joined, mixed, total = ctx.saved_tensors
        return *attention_backward(joined, mixed, total, dmixed.contiguous()), None, None


@cache
def gain_of_short(tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return how many times as fast as PyTorch's attention the kernels for few tokens are.

    It is measured once and kept in the cache folder, so that later runs on such a device do the
    same arithmetic.

    Returns:
        The gain; 0 where they do not serve: on a CPU, in 32 bits, for many tokens, and should
        they give another result.
    """
    if device.type != "cuda" or dtype.itemsize > 2 or tokens > LONGEST:
        return 0.0
    path, name = cache_folder() / MEASURED, torch.cuda.get_device_name(device)
    key = f"{name}, PyTorch {torch.__version__}: {tokens} tokens, heads of {head_dim}, {dtype}"
    kept: dict[str, float] = read_json(path) or {}
    if key not in kept:
        kept[key] = round(measured_gain(tokens, head_dim, dtype, device), 3)
        with contextlib.suppress(UserError):  # where nothing can be kept, each process measures
            write_json(path, kept)
        LOG.info("attention over %d tokens: %.2f times as fast by our kernels", tokens, kept[key])
    return kept[key]


def measured_gain(tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> float:
    """Measure `gain_of_short`: medians of forward and backward passes that take turns."""
    heads = 4
    rng = torch.Generator(device).manual_seed(0)
    shape = SEQUENCES // heads * tokens, 3 * heads * head_dim
    joined = torch.randn(shape, generator=rng, device=device).to(dtype)
    ways = by_pytorch, by_short_kernels
    passes = [partial(_forward_and_backward, way, joined, tokens, head_dim) for way in ways]
    expected, found = (work() for work in passes)
    if not (found - expected).norm() < 0.02 * expected.norm():
        LOG.warning("attention over %d tokens: our kernels err; PyTorch's serve", tokens)
        return 0.0
    seconds: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for taken, work in zip(seconds, passes, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end))
    slow, fast = (statistics.median(taken) for taken in seconds)
    return slow / fast


def _forward_and_backward(
    way: Callable[[Tensor, Tensor, int, int], Tensor], joined: Tensor, tokens: int, head_dim: int
) -> Tensor:
    """Attend, go backward with the mixed values as gradient, and return that of `joined`."""
    with torch.enable_grad():
        given = joined.detach().requires_grad_()
        bias = given.new_zeros(given.shape[1], dtype=torch.float32).requires_grad_()
        mixed = way(given, bias, tokens, head_dim)
        gradient, _ = torch.autograd.grad(mixed, (given, bias), mixed.detach())
    return gradient
