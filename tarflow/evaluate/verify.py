"""Check that a trained model is, on this machine, the flow that the mathematics describes.

Every check compares a measured number with a stated tolerance. Derivatives are taken in float64.

Legend: `N` images, `c` colour channels, `H` height and width, `T` tokens per image, `D` values per
token.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tarflow.config import NoiseConfig
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.model.patches import patchify
from tarflow.sample.inverse import invert
from tarflow.sample.plan import default_tolerance

EXACT = 1e-9  # relative error of a sum of some thousand float64 numbers
SINGLE = 1e-3  # error of float32 in bits per dimension
JACOBIAN = 800  # values of the largest map whose whole Jacobian is computed
ROWS = 64  # rows of a Jacobian computed at a time
ALL_POSITIONS = 64  # causality is tried at every token of shorter images,
SOME_POSITIONS = 16  # and at this number of tokens in others


@dataclass(frozen=True)
class Check:
    """One measured number against its tolerance."""

    name: str
    measured: float
    tolerance: float
    quantity: str  # what was measured

    @property
    def passed(self) -> bool:
        """Whether the number is within its tolerance; NaN is not."""
        return self.measured <= self.tolerance


def verify(
    flow: TarFlow, images: Tensor, condition: Tensor | None, noise: NoiseConfig
) -> Iterator[Check]:
    """Yield the checks of a flow; if its weights are not finite, nothing else is measured.

    Args:
        flow: The model in float32 and eval mode, on its device.
        images: Images like those it was trained on, noise included, (N, c, H, H). Derivatives are
            taken at the first.
        condition: As for `TarFlow.forward`.
        noise: Training noise, which says what error of an inverse matters.

    Yields:
        Checks of the weights, of each block's causality and log-determinant, of the flow's
        log-determinant, of the arithmetic and of the inverse.
    """
    weights = _finite_weights(flow)
    yield weights
    if not weights.passed:
        return
    flow.requires_grad_(False)
    tokens = patchify(images.double(), flow.config)
    logdet = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    complete = flow.complete(condition, len(images))
    wide_condition = None if complete is None else complete.to(_wide(complete))
    first = None if wide_condition is None else wide_condition[:1]
    for index, block in enumerate(flow.blocks):
        wide = copy.deepcopy(cast(FlowBlock, block)).double()
        yield _causality(f"block {index} causality", wide, tokens[:1], first)
        yield _block_log_determinant(f"block {index} log-determinant", wide, tokens[:1], first)
        tokens, part = wide(tokens, wide_condition)
        logdet += part
    yield _flow_log_determinant(flow, images, condition, logdet)
    single = negative_log_likelihood(*flow(images, condition)).double()
    error = (single - negative_log_likelihood(tokens, logdet)).abs().max().item() / math.log(2)
    quantity = "float32 against float64, bits per dimension"
    yield Check("arithmetic of the likelihood", error, SINGLE, quantity)
    error = (invert(flow, flow(images, condition)[0], condition) - images).abs().max().item()
    yield Check("round trip", error, default_tolerance(noise), "largest pixel error")


def _wide(condition: Tensor) -> torch.dtype:
    """Return the type of a condition in float64 arithmetic: labels keep theirs."""
    return torch.float64 if condition.is_floating_point() else condition.dtype


def _finite_weights(flow: TarFlow) -> Check:
    """Count the values of parameters and buffers that are not finite."""
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in flow.state_dict().items()}
    first = next((f", the first in {name}" for name, count in bad.items() if count), "")
    return Check("weights", sum(bad.values()), 0, f"values that are not finite{first}")


def _causality(name: str, block: FlowBlock, tokens: Tensor, condition: Tensor | None) -> Check:
    """Change all tokens after a position; no output up to that position may change.

    In small images every position is tried, which covers every pair of tokens; in others
    `SOME_POSITIONS` spread over the image, both ends included.
    """
    last = tokens.shape[1] - 1
    positions = last if last < ALL_POSITIONS else SOME_POSITIONS
    outputs = block.permute(block(tokens, condition)[0])
    original = block.permute(tokens)
    others = original.roll(1, 1) + 1
    worst = 0.0
    for position in torch.linspace(0, last - 1, positions).round().long().tolist():
        kept = position + 1
        changed = block.permute(torch.cat([original[:, :kept], others[:, kept:]], 1))
        difference = block.permute(block(changed, condition)[0]) - outputs
        change = difference[:, :kept].abs().max().item()
        worst = max(worst, change if math.isfinite(change) else math.inf)
    quantity = f"change of outputs with later tokens, after {positions} of {last} positions"
    return Check(name, worst / max(1.0, outputs.abs().max().item()), EXACT, quantity)


def _block_log_determinant(
    name: str, block: FlowBlock, tokens: Tensor, condition: Tensor | None
) -> Check:
    """Compare a block's log-determinant with that of its Jacobian.

    A causal map treats the first tokens of an image like a short image. So a large block is cut to
    the number of tokens that the Jacobian allows, at least two.
    """
    count, dims = tokens.shape[1:]
    kept = min(count, max(2, JACOBIAN // dims))

    def cut(values: Tensor) -> Tensor:
        return block.permute(block.permute(values)[:, :kept])

    short = copy.deepcopy(block)
    if block.pos_embed is not None:
        short.pos_embed = nn.Parameter(cut(block.pos_embed[None])[0], requires_grad=False)
    error = _log_determinant_error(short, cut(tokens), condition)
    return Check(name, error, EXACT, f"against autograd, nats per dimension, {kept} tokens")


def _flow_log_determinant(
    flow: TarFlow, images: Tensor, condition: Tensor | None, of_blocks: Tensor
) -> Check:
    """Compare the flow's log-determinant with autograd's, or with its blocks' if it is large."""
    name = "flow log-determinant"
    if flow.config.dims > JACOBIAN:
        error = (flow(images, condition)[1] - of_blocks).abs().max().item() / math.log(2)
        return Check(name, error, SINGLE, "against the sum of its blocks', bits per dimension")
    first = None if condition is None else condition[:1].to(_wide(condition))
    error = _log_determinant_error(copy.deepcopy(flow).double(), images[:1].double(), first)
    return Check(name, error, EXACT, "against autograd, nats per dimension")


def _log_determinant_error(
    mapping: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    point: Tensor,
    condition: Tensor | None,
) -> float:
    """Return the relative error of a map's own log-determinant at one point (1, ...)."""
    dims = point.numel()
    jacobian: list[Tensor] = []
    for rows in torch.eye(dims, dtype=point.dtype, device=point.device).split(ROWS):
        with torch.enable_grad():
            batch = point.expand(len(rows), *point.shape[1:]).clone().requires_grad_()
            of_all = (
                None if condition is None else condition.expand(len(rows), *condition.shape[1:])
            )
            mapped, _ = mapping(batch, of_all)
            jacobian += torch.autograd.grad(mapped, batch, rows.view_as(mapped))
    exact = torch.linalg.slogdet(torch.cat(jacobian).flatten(1)).logabsdet.item() / dims
    error: float = abs(mapping(point, condition)[1].item() - exact) / max(1.0, abs(exact))
    return error
