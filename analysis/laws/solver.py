"""Levenberg-Marquardt with Huber weights and bounds, for many small problems at once.

Legend: `S` problems (starts or resamples), `n` rows, `p` parameters, `k` inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array, Form, Positions

HUBER = 1.345  # in robust standard deviations: 95% efficient on normal noise (Huber 1981)
CHUNK = 100_000  # values of one Jacobian; larger ones fall out of the cache
FIRST_DAMPING, EASED = 1e-2, 0.2  # of the first real step; its change when a step is better

# Gauss-Newton matrices (c, p, p) and descent directions (c, p) of the problems at some positions
Normal = Callable[[Positions], tuple[Array, Array]]


@dataclass(frozen=True)
class Problem:
    """A sum over rows of weight * huber(residual), to be minimised."""

    form: Form
    logs: Array  # (k, n) centred logs of the inputs
    targets: Array  # (n,) or (S, n): values, or their logs if `log`
    weights: Array  # (n,) or (S, n)
    delta: float  # where Huber's loss turns linear; inf is least squares
    log: bool  # residuals in ln(value)
    low: Array  # (p,)
    high: Array  # (p,)

    def take(self, chosen: Positions) -> "Problem":
        """Return the problems at the given positions."""
        if self.targets.ndim == self.weights.ndim == 1:
            return self
        targets = self.targets[chosen] if self.targets.ndim == 2 else self.targets
        weights = self.weights[chosen] if self.weights.ndim == 2 else self.weights
        return replace(self, targets=targets, weights=weights)

    def rows(self, chosen: NDArray[Any]) -> "Problem":
        """Return the problem of some rows only, given by a mask (n,) or by their positions."""
        return replace(
            self,
            logs=self.logs[:, chosen],
            targets=self.targets[..., chosen],
            weights=self.weights[..., chosen],
        )

    def at_bound(self, theta: Array) -> NDArray[np.bool_]:
        """Tell which parameters of theta (..., p) lie on a bound."""
        return np.asarray((theta <= self.low) | (theta >= self.high))

    def residuals(self, theta: Array) -> Array:
        """Return the (S, n) residuals."""
        return self._residuals(self.form.predict(theta, self.logs))

    def cost(self, residuals: Array) -> Array:
        """Return the (S,) sums of Huber terms; rows without weight may have any residual."""
        total = self._cost(residuals)
        if np.isfinite(total).all():
            return total
        return self._cost(np.where(self.weights > 0, residuals, 0.0))

    def _cost(self, residuals: Array) -> Array:
        size = np.abs(residuals)
        inner = np.minimum(size, self.delta)
        terms: Array = np.sum(self.weights * inner * (size - inner / 2), axis=1)
        return terms

    def slopes(self, theta: Array) -> Array:
        """Return the (S, p, n) derivatives of what the residuals are taken from."""
        value, slopes = self.form.linearised(theta, self.logs)
        return self._slopes(value, slopes(np.arange(len(theta))))

    def linear_step(self, theta: Array, errors: Array) -> Array:
        """Return how far theta (p,) moves, (R, p), if errors (R, n) are added to the targets."""
        columns = self.slopes(theta[None])[0]
        fixed = self.at_bound(theta)
        weighted = np.where(fixed[:, None], 0.0, columns) * self.weights
        matrix = weighted @ columns.T + np.diag(np.where(fixed, 1.0, 0.0))
        moved: Array = np.linalg.solve(matrix, weighted @ errors.T).T
        return moved

    def linearised(self, theta: Array) -> tuple[Array, Normal]:
        """Return the (S, n) residuals, and a function to get the normal equations of some."""
        value, slopes_of = self.form.linearised(theta, self.logs)
        residuals = self._residuals(value)

        def normal(chosen: Positions) -> tuple[Array, Array]:
            left, slopes = residuals[chosen], self._slopes(value[chosen], slopes_of(chosen))
            if not (np.isfinite(slopes).all() and np.isfinite(left).all()):
                left, slopes = np.nan_to_num(left), np.nan_to_num(slopes)
            weighted = slopes * self._weights(left, chosen)[:, None]
            return weighted @ slopes.swapaxes(1, 2), (weighted @ left[:, :, None])[..., 0]

        return residuals, normal

    def _slopes(self, value: Array, derivatives: Array) -> Array:
        """Return derivatives (S, p, n) of the values or of their logs, in place."""
        if self.log:
            derivatives /= np.maximum(value, 1e-300)[:, None]
        return derivatives

    def _residuals(self, value: Array) -> Array:
        return self.targets - (np.log(np.maximum(value, 1e-300)) if self.log else value)

    def _weights(self, residuals: Array, chosen: Positions) -> Array:
        """Return weights (c, n) of the least-squares problems that Huber's loss is nearby."""
        own = self.weights[chosen] if self.weights.ndim == 2 else self.weights
        if not np.isfinite(self.delta):
            return np.broadcast_to(own, residuals.shape)
        return own * np.minimum(1, self.delta / np.maximum(np.abs(residuals), 1e-300))


def minimise(
    problem: Problem, theta: Array, tolerance: float = 1e-10, steps: int = 200
) -> tuple[Array, Array]:
    """Descend from every start.

    As many problems descend side by side as fit the cache; settled ones give way to others.

    Args:
        problem: One problem, or one per start.
        theta: (S, p) starting points.
        tolerance: Relative change of parameters or cost below which a step counts as converged.
        steps: Largest number of steps.

    Returns:
        Parameters (S, p) and costs (S,); a cost is inf where the start is not finite.
    """
    low, high = problem.low, problem.high
    best = np.clip(theta, low, high)
    count, parameters = best.shape
    side = max(1, CHUNK // (parameters * problem.logs.shape[1]))
    # The first step of each problem is of length 0, to its start.
    cost = np.full(count, np.inf)
    matrix, descent = np.zeros((count, parameters, parameters)), np.zeros_like(best)
    damping = np.full(count, FIRST_DAMPING / EASED)
    quiet, left = np.full(count, -1), np.full(count, steps + 1)
    live, waiting = np.arange(0), np.arange(count)
    # Steps back from what is not finite.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        while len(live) or len(waiting):
            if len(waiting) and len(live) <= side / 2:
                live, waiting = np.split(np.append(live, waiting), [side])
                active = problem.take(live)
            at, costs = best[live], cost[live]
            step = _step(matrix[live], descent[live], damping[live], at, low, high)
            trial = np.clip(at + step, low, high)
            residuals, normal = active.linearised(trial)
            value = active.cost(residuals)
            better = value < costs
            small = np.all(np.abs(trial - at) <= tolerance * (1 + np.abs(trial)), axis=1)
            little = small | (better & (costs - value <= tolerance * costs))
            costs = np.where(better, value, costs)
            best[live[better]], cost[live] = trial[better], costs
            calm = np.where(little, quiet[live] + 1, np.where(better, 0, quiet[live]))
            damped = np.maximum(damping[live] * np.where(better, EASED, 5.0), 1e-12)
            quiet[live], damping[live], left[live] = calm, damped, left[live] - 1
            keep = (calm < 2) & (damped < 1e12) & (left[live] > 0)
            keep &= (costs > 0) & np.isfinite(costs)
            moved = np.flatnonzero(better & keep)
            if len(moved):
                matrix[live[moved]], descent[live[moved]] = normal(moved)
            if not keep.all():
                live = live[keep]
                active = problem.take(live)
    return best, cost


def _step(
    matrix: Array, descent: Array, damping: Array, theta: Array, low: Array, high: Array
) -> Array:
    """Solve the damped system, keeping parameters that press against a bound where they are."""
    pinned = ((theta <= low) & (descent < 0)) | ((theta >= high) & (descent > 0))
    diagonal = np.einsum("sii->si", matrix)
    # Without a little damping, a parameter without influence makes the system singular.
    ridge = np.maximum(diagonal, 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300)
    unit: Array = np.where(pinned, 0.0, 1 / np.sqrt(diagonal + damping[:, None] * ridge))
    system = matrix * unit[:, :, None] * unit[:, None, :]
    index = np.arange(theta.shape[1])
    system[:, index, index] = 1 + 1e-14
    step = np.linalg.solve(system, (descent * unit)[:, :, None])[:, :, 0]
    moved: Array = step * unit
    return moved
