"""How a flow is inverted: noise to images, block by block from the last to the first.

Legend: `B` images, `T` tokens per image, `D` values per token.
In each block `u[0] = v[0]` and `u[i + 1] = v[i + 1] * scale(u[..i]) + shift(u[..i])` is solved for
the tokens `u` given the latents `v`: one token after another, or a window of them at once by
fixed-point sweeps. Both give the same tokens up to the tolerance of the sweeps.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from tarflow.config import SamplerConfig
from tarflow.cuda_graph import Replay, capture, graph_pool, repeat, supports_cuda_graphs
from tarflow.model.flow import FlowBlock, TarFlow, unpatchify
from tarflow.sample.coefficients import Coefficients, Memory
from tarflow.sample.guidance import is_guided
from tarflow.sample.plan import SEQUENTIAL, Method, Plan

LOG = logging.getLogger("tarflow")
BUCKET = 64  # keys by which the attention of a capture step grows
SWEEP_BUCKET = 256  # and that of a capture sweep, of which there are fewer to replay


def invert(
    flow: TarFlow,
    latents: Tensor,
    labels: Tensor | None = None,
    sampler: SamplerConfig | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Map latents (B, T, D) to images (B, c, height, width): the inverse of `flow`.

    Args:
        flow: the model.
        latents: (B, T, D), not changed; what `flow` returned, or noise times `flow.var.sqrt()`.
        labels: (B,) int64, -1 where dropped; `None` drops all.
        sampler: guidance, which makes it another map than the inverse; none by default.
        plan: how to solve each block; one token after another by default.

    Raises:
        UserError: if a label is unknown.
    """
    flow.check_labels(labels)
    with torch.inference_mode():  # less is kept about each of thousands of operations
        inversion = Inversion(flow, latents, labels, sampler)
        tokens = latents
        for index in reversed(range(len(flow.blocks))):
            method = plan.methods[index] if plan else SEQUENTIAL
            tokens = inversion.block(index, tokens, method)
        images = unpatchify(tokens, flow.config.patch)
    return images.clone()  # one that gradients may be taken of


class Inversion:
    """The inverse of a flow for one batch, block by block."""

    def __init__(
        self,
        flow: TarFlow,
        latents: Tensor,
        labels: Tensor | None,
        sampler: SamplerConfig | None,
    ) -> None:
        """Allocate what all blocks share; matrix products run in autocast's type where it is on.

        Args:
            flow: the model.
            latents: (B, T, D), whose size and type count.
            labels: (B,) or `None`.
            sampler: guidance, or `None`.
        """
        self.flow = flow
        self.batch = len(latents)
        self.labels = labels
        self.sampler = sampler if is_guided(sampler, labels) else None
        kind = latents.device.type
        auto = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if auto else latents.dtype
        self.memory = Memory(flow, len(latents) * (2 if self.sampler else 1), dtype)

    def block(self, index: int, latents: Tensor, method: Method) -> Tensor:
        """Invert one block; latents and result (B, T, D) are in raster order.

        What sweeps leave unsolved is solved token by token, and a line says so.
        """
        block = cast(FlowBlock, self.flow.blocks[index])
        ordered = block.permute(latents)
        coefficients = self.coefficients(index)
        if not method.segments:
            return block.permute(sequential(coefficients, ordered))
        swept = sweep(coefficients, ordered, method)
        if swept.done < ordered.shape[1] - 1:
            LOG.warning(
                "block %d: tokens %d on have not settled after %d sweeps; solved one by one",
                index,
                swept.done,
                swept.sweeps,
            )
        return block.permute(sequential(coefficients, ordered, swept.tokens, swept.done))

    def coefficients(self, index: int) -> Coefficients:
        """Return the coefficients of a block; those of the block before must be done with."""
        guided = self.sampler and self.sampler.guides(index, len(self.flow.blocks))
        block = cast(FlowBlock, self.flow.blocks[index])
        with torch.autocast(self.flow.var.device.type, enabled=False):
            return Coefficients(
                block, self.memory, self.batch, self.labels, self.sampler if guided else None
            )


def sequential(
    coefficients: Coefficients, latents: Tensor, tokens: Tensor | None = None, start: int = 0
) -> Tensor:
    """Invert one block token by token; latents (B, T, D) and result in the block's order.

    Args:
        coefficients: of the block.
        latents: not changed.
        tokens: final up to `start`, overwritten after it; by default nothing is known.
        start: where to go on.
    """
    tokens = latents.clone() if tokens is None else tokens
    if supports_cuda_graphs(latents.device):
        return sequential_on_device(coefficients, latents, tokens, start)
    for index in range(start, latents.shape[1] - 1):
        scale, shift = coefficients(tokens[:, index : index + 1], index)
        successor = latents[:, index + 1 : index + 2]
        tokens[:, index + 1 : index + 2] = torch.addcmul(shift, successor, scale)
    return tokens


def sequential_on_device(
    coefficients: Coefficients, latents: Tensor, tokens: Tensor, start: int
) -> Tensor:
    """Do the same by one step that is replayed: it finds its place in a tensor on the device.

    Attention looks at whole buckets of keys, so that few steps have to be captured.
    """
    position = torch.tensor([start], device=latents.device)
    last = latents.shape[1] - 1
    while start < last:
        filled = min(-(-(start + 1) // BUCKET) * BUCKET, last)

        def step(filled: int = filled) -> None:
            token = tokens.index_select(1, position)
            scale, shift = coefficients.at(token, position, filled)
            position.add_(1)
            successor = latents.index_select(1, position)
            tokens.index_copy_(1, position, torch.addcmul(shift, successor, scale).to(tokens))

        repeat(step, filled - start, latents.device)
        start = filled
    return tokens


@dataclass(frozen=True)
class Swept:
    """What sweeps have found."""

    tokens: Tensor  # (B, T, D) in the block's order
    done: int  # tokens up to and including this one are final
    sweeps: int


def sweep(
    coefficients: Coefficients, latents: Tensor, method: Method, seconds: float = math.inf
) -> Swept:
    """Invert one block by fixed-point sweeps over a window that moves on as tokens settle.

    A sweep computes the successors of all tokens of the window from their current values. The
    first of them is exact, for its predecessors are final; so are, within the tolerance, those
    whose predecessors did not change. They leave the window with the values that their cached keys
    and values were computed from. What is still a guess is bounded, what is final never.

    Args:
        coefficients: of the block.
        latents: (B, T, D) in the block's order, not changed.
        method: window, first guess, tolerance, budget of sweeps.
        seconds: budget of time.

    Returns:
        All tokens solved, unless a budget ran out.
    """
    if supports_cuda_graphs(latents.device):
        return sweep_on_device(coefficients, latents, method, seconds)
    last = latents.shape[1] - 1
    width = -(-last // method.segments)
    bound, tokens = method.bound, first_guess(latents, method)
    ends = time.perf_counter() + seconds
    done = sweeps = 0
    while done < last and (not method.sweeps or sweeps < method.sweeps):
        end = min(done + width, last)
        scale, shift = coefficients(tokens[:, done:end], done)
        found = torch.addcmul(shift, latents[:, done + 1 : end + 1], scale)
        guessed = tokens[:, done + 1 : end + 1]
        change = (found - guessed).abs().amax((0, 2))
        settled = int((change < method.tolerance).long().cumprod(0).sum())  # waits for the device
        sweeps += 1
        if settled < end - done:
            guessed[:, settled] = found[:, settled]
            rest = found[:, settled + 1 :].nan_to_num(0.0)  # a mask does not hide a NaN
            guessed[:, settled + 1 :] = rest.clamp(-bound, bound)
            settled += 1
        done += settled
        if time.perf_counter() > ends:
            break
    return Swept(tokens, done, sweeps)


def sweep_on_device(
    coefficients: Coefficients, latents: Tensor, method: Method, seconds: float = math.inf
) -> Swept:
    """Do the same by one sweep that is replayed: it finds its window in a tensor on the device.

    The window keeps its width to the end, where it reaches back over tokens that are final.
    """
    last, device = latents.shape[1] - 1, latents.device
    width = -(-last // method.segments)
    bound, tokens = method.bound, first_guess(latents, method)
    reached = torch.zeros(1, dtype=torch.int64, device=device)  # tokens up to it are final
    offsets = torch.arange(width, device=device)
    recordings: dict[int, Replay] = {}
    pool = graph_pool(device)

    def once(filled: int) -> None:
        positions = reached.clamp(max=last - width) + offsets
        scale, shift = coefficients.at(tokens.index_select(1, positions), positions, filled)
        found = torch.addcmul(shift, latents.index_select(1, positions + 1), scale).to(tokens)
        guessed = tokens.index_select(1, positions + 1)
        change = (found - guessed).abs().amax((0, 2))
        settled = (change < method.tolerance).long().cumprod(0).sum(0, keepdim=True)
        rest = found.nan_to_num(0.0).clamp(-bound, bound)  # a mask does not hide a NaN
        place = offsets[:, None]
        chosen = torch.where(place < settled, guessed, torch.where(place > settled, rest, found))
        tokens.index_copy_(1, positions + 1, chosen)
        reached.copy_(positions[:1] + (settled + 1).clamp(max=width))

    ends = time.perf_counter() + seconds
    done = sweeps = 0
    while done < last and (not method.sweeps or sweeps < method.sweeps):
        end = min(done, last - width) + width
        filled = min(-(-end // SWEEP_BUCKET) * SWEEP_BUCKET, last + 1)
        if filled in recordings:
            recordings[filled]()
        else:
            recordings[filled] = capture(partial(once, filled), device, pool)
        sweeps += 1
        done = int(reached)  # waits for the device
        if time.perf_counter() > ends:
            break
    return Swept(tokens, done, sweeps)


def first_guess(latents: Tensor, method: Method) -> Tensor:
    """Return what sweeps begin with, (B, T, D); the first token is final."""
    bound = method.bound
    tokens = latents.clamp(-bound, bound) if method.guess == "latents" else latents * 0
    tokens[:, 0] = latents[:, 0]
    return tokens
