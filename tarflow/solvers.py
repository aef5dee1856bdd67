"""How a flow is inverted: noise to images, block by block from the last to the first.

Legend: `B` batch, `T` tokens per image, `D` values per token, `H` heads, `K` channels of a head.
A solver gets the latents of one block and a function of tokens, `Coefficients`, and finds the
tokens that the block maps to these latents.
"""

from typing import cast

import torch
from torch import Tensor

from tarflow.config import SamplerConfig
from tarflow.model import FlowBlock, Past, TarFlow, unpatchify


@torch.no_grad()
def invert(
    flow: TarFlow,
    latents: Tensor,
    labels: Tensor | None = None,
    sampler: SamplerConfig | None = None,
) -> Tensor:
    """Map latents (B, T, D) to images (B, c, height, width): the inverse of `flow`.

    Args:
        flow: the model.
        latents: (B, T, D), not changed; what `flow` returned, or noise times `flow.var.sqrt()`.
        labels: (B,) int64, -1 where dropped; `None` drops all.
        sampler: guidance, which makes it another map than the inverse; none by default.

    Raises:
        ConfigError: if a label is unknown.
    """
    flow.check_labels(labels)
    tokens = latents
    memory = _memory(flow, 2 * len(latents) if _guided(labels, sampler) else len(latents), latents)
    for block in reversed(flow.blocks):
        block = cast(FlowBlock, block)
        coefficients = Coefficients(block, memory, labels, sampler)
        tokens = block.order(sequential(coefficients, block.order(tokens)))
    return unpatchify(tokens, flow.config.patch)


def sequential(coefficients: "Coefficients", latents: Tensor) -> Tensor:
    """Invert one block token by token; latents (B, T, D) and result in the block's order."""
    tokens = latents.clone()
    for index in range(latents.shape[1] - 1):
        log_scale, shift = coefficients(tokens[:, index : index + 1], index)
        successor = latents[:, index + 1 : index + 2]
        tokens[:, index + 1 : index + 2] = successor * torch.exp(log_scale) + shift
    return tokens


class Coefficients:
    """Guided log-scale and shift of one block, which remembers keys and values.

    Guidance extrapolates from a worse branch, whose label is dropped and whose attention has
    another temperature: `good + weight * (good - worse)` (Zhai et al. 2025, section 3.5).
    Both branches run as one batch, the good one first.
    """

    def __init__(
        self,
        block: FlowBlock,
        memory: Tensor,
        labels: Tensor | None,
        sampler: SamplerConfig | None,
    ) -> None:
        """Take what `invert` was given; `memory` is overwritten."""
        self.block = block
        self.memory = memory
        self.sampler = sampler if sampler and _guided(labels, sampler) else None
        self.temperature: Tensor | None = None
        self.last = len(block.pos_embed) - 1
        if self.sampler:
            half = memory.shape[2] // 2
            if labels is not None:
                labels = torch.cat([labels, torch.full_like(labels, -1)])
            if self.sampler.temperature != 1:
                self.temperature = block.pos_embed.new_ones(2 * half)
                self.temperature[half:] = self.sampler.temperature
        self.embedding = block.embedding(labels)

    def __call__(self, tokens: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift (B, n, D) of the successors of n tokens.

        Args:
            tokens: (B, n, D), those at `start` to `start + n` in the block's order.
            start: tokens before it must have been given, in their final state, in earlier calls.
        """
        count = tokens.shape[1]
        past = [Past(keys, values, start) for keys, values in self.memory]
        embedding = self.embedding[:, start : start + count]
        if not self.sampler:
            return self.block.coefficients(tokens, embedding, past)
        both = torch.cat([tokens, tokens])
        log_scale, shift = self.block.coefficients(both, embedding, past, self.temperature)
        weight = torch.as_tensor(self.sampler.guidance, dtype=shift.dtype, device=shift.device)
        if self.sampler.annealed:
            place = torch.arange(start + 1, start + count + 1, device=shift.device)
            weight = (weight * place / self.last)[:, None]
        part = self.sampler.part
        return (
            _extrapolate(log_scale, weight * (part != "shift")),
            _extrapolate(shift, weight * (part != "scale")),
        )


def _extrapolate(branches: Tensor, weight: Tensor) -> Tensor:
    good, worse = branches.chunk(2)
    return good + weight * (good - worse)


def _guided(labels: Tensor | None, sampler: SamplerConfig | None) -> bool:
    """Tell whether the two branches differ."""
    return bool(
        sampler
        and sampler.guidance
        and (sampler.temperature != 1 or (labels is not None and bool((labels >= 0).any())))
    )


def _memory(flow: TarFlow, batch: int, like: Tensor) -> Tensor:
    """Make room for keys and values, (layers, 2, B, H, T, K), shared by the blocks in turn."""
    config = flow.config
    heads = config.channels // config.head_dim
    kind = like.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
    shape = (config.layers, 2, batch, heads, config.tokens, config.head_dim)
    return torch.empty(shape, dtype=dtype, device=like.device)
