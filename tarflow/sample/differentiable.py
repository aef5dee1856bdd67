"""The inverse of a flow with gradients: with respect to latents, conditions and parameters.

Following autograd through an inversion would keep every step of a sequence of T passes. Instead
each block `v = f(u)` is inverted without gradients, and differentiated as an implicit function:
`du = J^-1 (dv - df)`, where `J` is the Jacobian of `f` at the solution and `df` the change of `f`
by parameters and conditions. So a gradient `g` at `u` needs one solution of `J^T x = g`.

`J` is triangular in the order of the tokens, with the diagonal `d`. The iteration
`x <- (g - J^T x) / d + x` is therefore exact after at most T steps, each one pass backward through
the block, and usually converges much earlier.

Legend: `B` images, `T` tokens per image, `D` values per token.
"""

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.patches import unpatchify
from tarflow.sample.inverse import Inversion
from tarflow.sample.plan import SEQUENTIAL

LOG = logging.getLogger("tarflow")
ROUNDING = 8  # change of the solution that counts as converged, in units of machine precision
TINY = 1e-30  # instead of zero in a denominator


def differentiable_inverse(
    flow: TarFlow, latents: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Map latents (B, T, D) to images (B, c, height, width), the inverse of `flow`.

    Gradients reach the latents and the parameters that require them. With parameters memory is
    that of a training pass, for latents alone that of one block. There are no second derivatives:
    asking for them raises a `RuntimeError`.

    Args:
        flow: Model to invert, in eval mode.
        latents: (B, T, D) output of `flow`, or noise times `flow.var.sqrt()`.
        condition: As for `TarFlow.forward`.

    Raises:
        UserError: If the condition does not fit the flow.
    """
    flow.check_condition(condition)
    condition = flow.complete(condition, len(latents))
    tokens = latents
    with torch.no_grad():
        inversion = Inversion(flow, latents.detach(), condition, None)
    for index in reversed(range(len(flow.blocks))):
        with torch.no_grad():
            solution = inversion.invert_block(index, tokens.detach(), SEQUENTIAL)
        tokens = _attach(cast(FlowBlock, flow.blocks[index]), solution, tokens, condition)
    return unpatchify(tokens, flow.config)


def _attach(
    block: FlowBlock, solution: Tensor, latents: Tensor, condition: Tensor | None
) -> Tensor:
    """Return the tokens (B, T, D) that a block maps to the latents, with their gradients."""
    mapped, _ = block(solution, condition)  # carries the gradients of parameters and conditions

    def solve(gradient: Tensor) -> Tensor:
        return _solve_transposed(block, condition, solution, gradient)

    tokens: Tensor = _Implicit.apply(solution, latents - mapped, solve)
    return tokens


class _Implicit(torch.autograd.Function):
    """The solution of an equation, as a function of its residual."""

    @staticmethod
    def forward(
        ctx: Any, solution: Tensor, _residual: Tensor, solve: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.solve = solve
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("the inverse of a flow has no second derivatives")
        return None, ctx.solve(gradient), None


def _solve_transposed(
    block: FlowBlock, condition: Tensor | None, tokens: Tensor, gradient: Tensor
) -> Tensor:
    """Return `x` with `J^T x = gradient`, where `J` is the Jacobian of a block.

    Args:
        block: Block to differentiate.
        condition: Its condition.
        tokens: (B, T, D) tokens that it is differentiated at.
        gradient: (B, T, D) gradient with respect to these tokens.
    """
    point = tokens.detach().requires_grad_()
    with torch.enable_grad():
        mapped, _ = block(point, condition)
    diagonal = _own_scale(block, point, condition)
    tolerance = ROUNDING * torch.finfo(gradient.dtype).eps
    solution, change = gradient / diagonal, float("inf")
    for _ in range(tokens.shape[1]):
        (product,) = torch.autograd.grad(mapped, point, solution, retain_graph=True)
        step = (gradient - product) / diagonal
        solution = solution + step
        change = float(step.abs().max() / solution.abs().max().clamp(min=TINY))
        if change <= tolerance:
            break
    if not change <= tolerance**0.5:
        LOG.warning("a gradient of the inverse is accurate to %.1g only", change)
    return solution


def _own_scale(block: FlowBlock, point: Tensor, condition: Tensor | None) -> Tensor:
    """Return the derivative (B, T, D) of each value that a block gives by the one it came from.

    All that a token tells its successors passes through `proj_in`, and is held fixed there. The
    solution does not depend on this, only how fast it is found.
    """
    fixed = block.proj_in.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    try:
        with torch.enable_grad():
            mapped, _ = block(point, condition)
    finally:
        fixed.remove()
    (scale,) = torch.autograd.grad(mapped, point, torch.ones_like(mapped))
    return scale
