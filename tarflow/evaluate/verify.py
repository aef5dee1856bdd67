"""Proof that a model does what the mathematics says, with its own weights on this machine.

Everything is measured and compared with a stated tolerance. Derivatives are taken in float64.

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
from tarflow.model.flow import FlowBlock, TarFlow, patchify
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.sample.inverse import invert
from tarflow.sample.plan import default_tolerance

EXACT = 1e-9  # relative error of a sum of some thousand float64 numbers
SINGLE = 1e-3  # bits per dimension that float32 may be off
JACOBIAN = 800  # values of the largest map whose Jacobian is taken whole
ROWS = 64  # of a Jacobian at a time
ALL_PLACES, SOME_PLACES = 64, 16  # of the token order at which causality is tried


@dataclass(frozen=True)
class Check:
    """One measured number against its tolerance."""

    name: str
    measured: float
    tolerance: float
    how: str  # what was measured

    @property
    def passed(self) -> bool:
        """Whether the number is within its tolerance; NaN is not."""
        return self.measured <= self.tolerance


def verify(
    flow: TarFlow, images: Tensor, labels: Tensor | None, noise: NoiseConfig
) -> Iterator[Check]:
    """Measure a flow; if its weights are not finite, nothing else is measured.

    Args:
        flow: float32, in eval mode, on its device.
        images: (N, c, H, H) such as it was trained on, noise included. Derivatives are taken at
            the first.
        labels: (N,) int64, or None.
        noise: of the training, which says what error of an inverse matters.

    Yields:
        Checks of the weights, of each block's causality and log-determinant, of the whole flow's
        log-determinant, of the arithmetic and of the inverse.
    """
    weights = finite_weights(flow)
    yield weights
    if not weights.passed:
        return
    flow.requires_grad_(False)
    tokens = patchify(images.double(), flow.config.patch)
    logdet = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    first = None if labels is None else labels[:1]
    for index, block in enumerate(flow.blocks):
        wide = copy.deepcopy(cast(FlowBlock, block)).double()
        yield causality(f"block {index} causality", wide, tokens[:1], first)
        yield block_log_determinant(f"block {index} log-determinant", wide, tokens[:1], first)
        tokens, part = wide(tokens, labels)
        logdet += part
    yield flow_log_determinant(flow, images, labels, logdet)
    single = negative_log_likelihood(*flow(images, labels)).double()
    error = (single - negative_log_likelihood(tokens, logdet)).abs().max().item() / math.log(2)
    how = "float32 against float64, bits per dimension"
    yield Check("arithmetic of the likelihood", error, SINGLE, how)
    yield round_trip(flow, images, labels, noise)


def finite_weights(flow: TarFlow) -> Check:
    """Count the values of parameters and buffers that are not finite."""
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in flow.state_dict().items()}
    where = next((f", the first in {name}" for name, count in bad.items() if count), "")
    return Check("weights", sum(bad.values()), 0, f"values that are not finite{where}")


def causality(name: str, block: FlowBlock, tokens: Tensor, labels: Tensor | None) -> Check:
    """Change all tokens after a place; no output up to that place may change.

    In small images every place is tried, which covers every pair of tokens; in others
    `SOME_PLACES` spread over the image, both ends included.

    Args:
        name: of the check.
        block: float64.
        tokens: (1, T, D).
        labels: (1,) or None.
    """
    last = tokens.shape[1] - 1
    tried = last if last < ALL_PLACES else SOME_PLACES
    before = block.permute(block(tokens, labels)[0])
    given = block.permute(tokens)
    others = given.roll(1, 1) + 1
    worst = 0.0
    for place in torch.linspace(0, last - 1, tried).round().long().tolist():
        changed = torch.cat([given[:, : place + 1], others[:, place + 1 :]], 1)
        after = block.permute(block(block.permute(changed), labels)[0])
        moved = (after - before)[:, : place + 1].abs().max().item()
        worst = max(worst, moved if math.isfinite(moved) else math.inf)
    how = f"change of outputs with later tokens, after {tried} of {last} places"
    return Check(name, worst / max(1.0, before.abs().max().item()), EXACT, how)


def block_log_determinant(
    name: str, block: FlowBlock, tokens: Tensor, labels: Tensor | None
) -> Check:
    """Compare a block's log-determinant with that of its Jacobian.

    The first tokens of a causal map are exactly the map of so short an image, so a large block is
    cut to as many tokens as the Jacobian allows, at least two.

    Args:
        name: of the check.
        block: float64.
        tokens: (1, T, D).
        labels: (1,) or None.
    """
    count, dims = tokens.shape[1:]
    kept = min(count, max(2, JACOBIAN // dims))

    def cut(values: Tensor) -> Tensor:
        return block.permute(block.permute(values)[:, :kept])

    short = copy.deepcopy(block)
    short.pos_embed = nn.Parameter(cut(block.pos_embed[None])[0], requires_grad=False)
    error = _log_determinant_error(short, cut(tokens), labels)
    return Check(name, error, EXACT, f"against autograd, nats per dimension, {kept} tokens")


def flow_log_determinant(
    flow: TarFlow, images: Tensor, labels: Tensor | None, of_blocks: Tensor
) -> Check:
    """Compare the flow's log-determinant with autograd's, or with its blocks' if it is large.

    Args:
        flow: float32.
        images: (N, c, H, H).
        labels: (N,) or None.
        of_blocks: (N,) sum of the log-determinants of the blocks, float64.
    """
    name = "flow log-determinant"
    if flow.config.dims > JACOBIAN:
        error = (flow(images, labels)[1] - of_blocks).abs().max().item() / math.log(2)
        return Check(name, error, SINGLE, "against the sum of its blocks', bits per dimension")
    first = None if labels is None else labels[:1]
    error = _log_determinant_error(copy.deepcopy(flow).double(), images[:1].double(), first)
    return Check(name, error, EXACT, "against autograd, nats per dimension")


def round_trip(flow: TarFlow, images: Tensor, labels: Tensor | None, noise: NoiseConfig) -> Check:
    """Map images to noise and back in float32.

    The tolerance is a tenth of the training noise, far less than denoising removes, or half a
    grey level for models of uniform noise; pixels are in [-1, 1].
    """
    back = invert(flow, flow(images, labels)[0], labels)
    tolerance = default_tolerance(noise)
    return Check(
        "round trip", (back - images).abs().max().item(), tolerance, "largest pixel error"
    )


def _log_determinant_error(
    mapping: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    point: Tensor,
    labels: Tensor | None,
) -> float:
    """Return the relative error of the log-determinant that a map claims at one point (1, ...)."""
    dims = point.numel()
    jacobian: list[Tensor] = []
    for rows in torch.eye(dims, dtype=point.dtype, device=point.device).split(ROWS):
        with torch.enable_grad():
            batch = point.expand(len(rows), *point.shape[1:]).clone().requires_grad_()
            mapped, _ = mapping(batch, None if labels is None else labels.expand(len(rows)))
            jacobian += torch.autograd.grad(mapped, batch, rows.view_as(mapped))
    exact = torch.linalg.slogdet(torch.cat(jacobian).flatten(1)).logabsdet.item() / dims
    claimed = mapping(point, labels)[1].item()
    error: float = abs(claimed - exact) / max(1.0, abs(exact))
    return error
