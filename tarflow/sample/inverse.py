"""The inverse of a flow: noise to images, block by block from the last to the first.

Legend: `B` images, `T` tokens per image, `D` values per token, `n` tokens of a window.
Each block solves `u[0] = v[0]` and `u[i + 1] = v[i + 1] * scale(u[..i]) + shift(u[..i])` for the
tokens `u` given the latents `v`: one token after another, or a window of tokens at once by Jacobi
iteration. Both give the same tokens up to the tolerance of the iteration. A start token is both
`u[0]` and `v[0]`, and dropped in the end.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from tarflow.config import SamplerConfig
from tarflow.cuda_graph import Replay, capture, graph_pool, supports_cuda_graphs
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.patches import unpatchify
from tarflow.sample.guidance import is_guided
from tarflow.sample.incremental import IncrementalBlock
from tarflow.sample.kv_cache import AnyWindow, DeviceWindow, KVCache, Window
from tarflow.sample.plan import SEQUENTIAL, Method, Plan

LOG = logging.getLogger("tarflow")
STEP_BUCKET = 64  # keys by which the attention of a captured sequential step grows
JACOBI_BUCKET = 256  # the same for a captured Jacobi iteration, which is replayed less often
PATIENCE = 8  # iterations without progress after which Jacobi iteration gives up
ROUNDING = 16  # largest change that is put down to rounding, in units of machine precision


def invert(
    flow: TarFlow,
    latents: Tensor,
    condition: Tensor | None = None,
    sampler: SamplerConfig | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Map latents (B, T, D) to images (B, c, height, width): the inverse of `flow`.

    Args:
        flow: Model to invert.
        latents: (B, T, D) output of `flow`, or noise times `flow.var.sqrt()`; not changed.
        condition: As for `TarFlow.forward`.
        sampler: Guidance, which makes the map another one than the inverse; `None` for no
            guidance.
        plan: Method for each block; `None` solves all sequentially.

    Raises:
        UserError: If a label is unknown, or vectors have the wrong shape.
    """
    flow.check_condition(condition)
    with torch.inference_mode():  # autograd's records would slow thousands of small operations
        inversion = Inversion(flow, latents, condition, sampler)
        tokens = latents
        for index in reversed(range(len(flow.blocks))):
            method = plan.methods[index] if plan else SEQUENTIAL
            tokens = inversion.invert_block(index, tokens, method)
        images = unpatchify(tokens, flow.config)
    return images.clone()  # a normal tensor, which autograd accepts


class Inversion:
    """The inverse of a flow for one batch, block by block."""

    def __init__(
        self,
        flow: TarFlow,
        latents: Tensor,
        condition: Tensor | None,
        sampler: SamplerConfig | None,
    ) -> None:
        """Allocate what all blocks share.

        Args:
            flow: Model to invert.
            latents: (B, T, D) tensor of the size and type of the latents.
            condition: As for `TarFlow.forward`.
            sampler: Guidance, or `None`.
        """
        self.flow = flow
        self.batch = len(latents)
        self.condition = flow.complete(condition, self.batch)
        self.sampler = sampler if is_guided(sampler, condition) else None
        rows = self.batch * (2 if self.sampler else 1)
        self.cache = KVCache(flow, rows, product_dtype(latents))

    def invert_block(self, index: int, latents: Tensor, method: Method) -> Tensor:
        """Invert one block; latents and result (B, T, D) are in raster order.

        Tokens that Jacobi iteration leaves unsolved are solved sequentially, with a warning.
        """
        flow_block = cast(FlowBlock, self.flow.blocks[index])
        latents = flow_block.with_start(flow_block.permute(latents))
        first = latents.shape[1] - self.flow.config.tokens
        block = self.incremental_block(index)
        if not method.segments:
            return flow_block.permute(sequential(block, latents)[:, first:])
        result = jacobi(block, latents, method)
        if result.converged < latents.shape[1] - 1:
            LOG.warning(
                "block %d: the tokens after token %d have not converged after %d Jacobi "
                "iterations; solving them sequentially",
                index,
                result.converged,
                result.iterations,
            )
        tokens = sequential(block, latents, result.tokens, result.converged)
        return flow_block.permute(tokens[:, first:])

    def incremental_block(self, index: int) -> IncrementalBlock:
        """Return the scale and shift of a block; the one returned before becomes invalid."""
        block, sampler = cast(FlowBlock, self.flow.blocks[index]), self.sampler
        condition = self.condition
        if sampler:
            differs = block.conditional or sampler.temperature != 1
            guided = differs and sampler.guides(index, len(self.flow.blocks))
            sampler = sampler if guided else None
        if sampler and condition is not None:
            every = torch.ones(self.batch, dtype=torch.bool, device=condition.device)
            condition = torch.cat([condition, self.flow.drop(condition, every)])
        with torch.autocast(self.flow.var.device.type, enabled=False):
            return IncrementalBlock(block, self.cache, self.batch, condition, sampler)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type of matrix products with a tensor: autocast's where it is enabled."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def sequential(
    block: IncrementalBlock, latents: Tensor, tokens: Tensor | None = None, start: int = 0
) -> Tensor:
    """Invert one block token by token; latents (B, T, D) and result in the block's order.

    Args:
        block: Scale and shift of the block.
        latents: (B, T, D) latents, not changed.
        tokens: (B, T, D) tokens, final up to `start` and overwritten after it; `None` if none
            are known.
        start: Position of the last token that is known.
    """
    last, latents = latents.shape[1] - 1, latents.contiguous()
    tokens = latents.clone() if tokens is None else tokens.contiguous()

    def step(window: AnyWindow) -> None:
        successors, values = _successors(block, latents, tokens, window)
        successors.write(tokens, values)

    if not supports_cuda_graphs(latents.device):
        for index in range(start, last):
            step(Window(index, 1))
        return tokens

    position, decoder = torch.tensor([start], device=latents.device), block.decoder
    if decoder:
        decoder.begin(tokens[:, start], start)

    def device_step(filled: int) -> None:
        if decoder:
            decoder(latents, tokens, position)
        else:
            step(DeviceWindow(position, filled))
        position.add_(1)

    bucket = last if decoder else STEP_BUCKET
    replay = _captured(device_step, bucket, last, latents.device)
    for index in range(start, last):
        replay(index + 1)
    return tokens


@dataclass(frozen=True)
class JacobiResult:
    """Tokens that Jacobi iteration has solved."""

    tokens: Tensor  # (B, T, D) in the block's order
    converged: int  # tokens up to and including this one are final
    iterations: int


def jacobi(
    block: IncrementalBlock, latents: Tensor, method: Method, seconds: float = math.inf
) -> JacobiResult:
    """Invert one block by Jacobi iteration over a window that slides past converged tokens.

    An iteration computes the successors of all tokens of the window from their current values. The
    first successor is exact, because its predecessors are final; so are, within the tolerance,
    those whose predecessors did not change. They leave the window with the values that their
    cached keys and values were computed from. Guesses are bounded, final tokens never.

    Where rounding alone changes tokens by more than the tolerance, only the exact token converges
    in each iteration. Iteration therefore stops when for `PATIENCE` iterations no other token has
    converged and the change has not reached a new minimum, but only if the change is as small as
    rounding makes it: a change that rises before it falls is larger.

    Args:
        block: Scale and shift of the block.
        latents: (B, T, D) latents in the block's order, not changed.
        method: Window, first guess, tolerance and most iterations.
        seconds: Time limit.

    Returns:
        All tokens solved, unless iterations or time ran out, or rounding stopped them.
    """
    last, device = latents.shape[1] - 1, latents.device
    width = -(-last // method.segments)
    tokens = _first_guess(latents, method)
    offsets = torch.arange(width, device=device)

    def iterate(window: AnyWindow) -> tuple[Tensor, Tensor]:
        """Update the successors of a window; return how many are final, and the change, (1,)."""
        successors, values = _successors(block, latents, tokens, window)
        values, guesses = values.to(tokens), successors.read(tokens)
        change = (values - guesses).abs_().amax((0, 2))
        converged = (change < method.tolerance).long().cumprod(0).sum(0, keepdim=True)
        exact = converged.clamp(max=window.count - 1)  # the token after the converged ones
        # guesses must be finite: attention multiplies masked NaN by zero, which stays NaN
        bounded = values.nan_to_num(0.0).clamp_(-method.bound, method.bound)
        bounded.index_copy_(1, exact, values.index_select(1, exact))
        keep = offsets[: window.count, None] < converged
        successors.write(tokens, torch.where(keep, guesses, bounded))
        return exact + 1, change.amax(0, keepdim=True)

    position = torch.zeros(1, dtype=torch.int64, device=device)
    largest = torch.zeros(1, dtype=tokens.dtype, device=device)

    def device_step(filled: int) -> None:
        start = position.clamp(max=last - width)  # the width is fixed: final tokens fill it up
        final, change = iterate(DeviceWindow(start + offsets, filled))
        position.copy_(start + final)
        largest.copy_(change)

    replay = _captured(device_step, JACOBI_BUCKET, last, device)

    def advance(start: int) -> tuple[int, float]:
        if supports_cuda_graphs(device):
            replay(min(start + width, last))
            return int(position), float(largest)  # waits for the device
        final, change = iterate(Window(start, min(width, last - start)))
        return start + int(final), float(change)

    rounding = ROUNDING * torch.finfo(product_dtype(latents)).eps * float(latents.abs().max())
    deadline = time.perf_counter() + seconds
    converged = iterations = waited = 0
    smallest = math.inf
    while converged < last and (not method.sweeps or iterations < method.sweeps):
        before = converged
        converged, change = advance(before)
        iterations += 1
        progress = change < smallest or converged > before + 1
        smallest, waited = (change, 0) if progress else (smallest, waited + 1)
        stalled = waited >= PATIENCE and change < rounding
        if stalled or time.perf_counter() > deadline:
            break
    return JacobiResult(tokens, converged, iterations)


def _successors(
    block: IncrementalBlock, latents: Tensor, tokens: Tensor, window: AnyWindow
) -> tuple[AnyWindow, Tensor]:
    """Return the window one token further, and its tokens (B, n, D) given those before."""
    scale, shift = block(window.read(tokens), window)
    successors = window.shifted(1)
    return successors, torch.addcmul(shift, successors.read(latents), scale)


def _first_guess(latents: Tensor, method: Method) -> Tensor:
    """Return the tokens (B, T, D) that iteration starts from; the first token is final."""
    bound = method.bound
    tokens = latents.clamp(-bound, bound) if method.guess == "latents" else latents * 0
    tokens[:, 0] = latents[:, 0]
    return tokens


def _captured(
    step: Callable[[int], None], bucket: int, most: int, device: torch.device
) -> Callable[[int], None]:
    """Return a step that is captured in one CUDA graph per bucket of keys and replayed.

    Args:
        step: Function of the number of keys that attention reads.
        bucket: Keys by which that number grows, so that few graphs are captured.
        most: Largest number of keys.
        device: CUDA device.
    """
    graphs: dict[int, Replay] = {}
    pool = graph_pool(device)

    def run(keys: int) -> None:
        filled = min(-(-keys // bucket) * bucket, most)
        if filled in graphs:
            graphs[filled]()
        else:
            graphs[filled] = capture(partial(step, filled), device, pool)

    return run
