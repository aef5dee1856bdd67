"""Levenberg-Marquardt with Huber weights and bounds, for many small problems at once.

Legend: `S` problems (starts or resamples), `n` rows, `p` parameters, `k` inputs.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms import Array, Form

HUBER = 1.345  # in robust standard deviations: 95% efficient on normal noise (Huber 1981)
CHUNK = 100_000  # values of one Jacobian; larger ones fall out of the cache


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

    def take(self, chosen: NDArray[np.intp]) -> "Problem":
        """Return the problems at the given positions."""
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
        if not np.isfinite(residuals).all():
            residuals = np.where(self.weights > 0, residuals, 0.0)
        if not np.isfinite(self.delta):
            squares: Array = np.sum(self.weights * residuals * residuals, axis=1) / 2
            return squares
        size = np.abs(residuals)
        inner = np.minimum(size, self.delta)
        terms: Array = np.sum(self.weights * inner * (size - inner / 2), axis=1)
        return terms

    def slopes(self, theta: Array) -> Array:
        """Return the (S, p, n) derivatives of what the residuals are taken from."""
        value, columns = self.form.linearised(theta, self.logs)
        return columns / np.maximum(value, 1e-300)[:, None] if self.log else columns

    def linear_step(self, theta: Array, errors: Array) -> Array:
        """Return how far theta (p,) moves, (R, p), if errors (R, n) are added to the targets."""
        columns = self.slopes(theta[None])[0]
        fixed = self.at_bound(theta)
        weighted = np.where(fixed[:, None], 0.0, columns) * self.weights
        matrix = weighted @ columns.T + np.diag(np.where(fixed, 1.0, 0.0))
        moved: Array = np.linalg.solve(matrix, weighted @ errors.T).T
        return moved

    def normal(self, theta: Array) -> tuple[Array, Array]:
        """Return the (S, p, p) Gauss-Newton matrices and (S, p) descent directions."""
        if len(theta) > 1 and np.all(theta == theta[0]):
            return self._normal_of_one(theta)
        value, columns = self.form.linearised(theta, self.logs)
        residuals = self._residuals(value)
        if not (np.isfinite(columns).all() and np.isfinite(residuals).all()):
            residuals, columns = np.nan_to_num(residuals), np.nan_to_num(columns)
        root = np.sqrt(self._weights(residuals))
        columns *= (root / np.maximum(value, 1e-300) if self.log else root)[:, None]
        return columns @ columns.swapaxes(1, 2), (columns @ (root * residuals)[:, :, None])[..., 0]

    def _normal_of_one(self, theta: Array) -> tuple[Array, Array]:
        """Do the same where all problems are at one theta, with one Jacobian."""
        value, columns = self.form.linearised(theta[:1], self.logs)
        columns = columns[0] / np.maximum(value, 1e-300) if self.log else columns[0]
        residuals = self._residuals(value)
        weights = self._weights(residuals)
        products = (columns[:, None] * columns[None]).reshape(-1, columns.shape[1])
        matrix = (weights @ products.T).reshape(-1, len(columns), len(columns))
        descent = (weights * residuals) @ columns.T
        shape = (len(theta), len(columns))
        return np.broadcast_to(matrix, (*shape, len(columns))), np.broadcast_to(descent, shape)

    def _residuals(self, value: Array) -> Array:
        return self.targets - (np.log(np.maximum(value, 1e-300)) if self.log else value)

    def _weights(self, residuals: Array) -> Array:
        """Return the weights (S, n) of the least-squares problem that Huber's loss is nearby."""
        if not np.isfinite(self.delta):
            return np.broadcast_to(
                self.weights, np.broadcast_shapes(self.weights.shape, residuals.shape)
            )
        return self.weights * np.minimum(1, self.delta / np.maximum(np.abs(residuals), 1e-300))


def minimise(
    problem: Problem, theta: Array, tolerance: float = 1e-10, steps: int = 200
) -> tuple[Array, Array]:
    """Descend from every start.

    Args:
        problem: One problem, or one per start.
        theta: (S, p) starting points.
        tolerance: Relative change of parameters or cost below which a step counts as converged.
        steps: Largest number of steps.

    Returns:
        Parameters (S, p) and costs (S,); a cost is inf where the start is not finite.
    """
    size = max(1, CHUNK // (theta.shape[1] * problem.logs.shape[1]))
    with np.errstate(over="ignore", under="ignore"):  # steps back from what is not finite
        parts = [
            _descend(problem.take(chosen), theta[chosen], tolerance, steps)
            for chosen in np.split(np.arange(len(theta)), range(size, len(theta), size))
        ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([p[1] for p in parts])


def _descend(problem: Problem, theta: Array, tolerance: float, steps: int) -> tuple[Array, Array]:
    best = np.clip(theta, problem.low, problem.high)
    cost = problem.cost(problem.residuals(best))
    cost[~np.isfinite(cost)] = np.inf
    live = np.flatnonzero(np.isfinite(cost))
    damping = np.full(len(best), 1e-2)
    quiet = np.zeros(len(best), dtype=int)
    matrix = np.zeros((len(best), best.shape[1], best.shape[1]))
    descent = np.zeros_like(best)
    moved = live
    active = problem.take(live)
    for _ in range(steps):
        if not len(live):
            break
        if len(moved):
            matrix[moved], descent[moved] = problem.take(moved).normal(best[moved])
        step = _step(
            matrix[live], descent[live], damping[live], best[live], problem.low, problem.high
        )
        trial = np.clip(best[live] + step, problem.low, problem.high)
        value = active.cost(active.residuals(trial))
        better = value < cost[live]
        small = np.all(np.abs(trial - best[live]) <= tolerance * (1 + np.abs(trial)), axis=1)
        little = small | (better & (cost[live] - value <= tolerance * cost[live]))
        quiet[live] = np.where(little, quiet[live] + 1, np.where(better, 0, quiet[live]))
        moved = live[better]
        best[moved], cost[moved] = trial[better], value[better]
        damping[live] *= np.where(better, 0.2, 5.0)
        np.clip(damping, 1e-12, 1e14, out=damping)
        keep = (quiet[live] < 2) & (damping[live] < 1e12) & (cost[live] > 0)
        if not keep.all():
            live = live[keep]
            active = problem.take(live)
            moved = moved[np.isin(moved, live)]
    return best, cost


def _step(
    matrix: Array, descent: Array, damping: Array, theta: Array, low: Array, high: Array
) -> Array:
    """Solve the damped system, keeping parameters that press against a bound where they are."""
    pinned = ((theta <= low) & (descent < 0)) | ((theta >= high) & (descent > 0))
    diagonal = np.einsum("sii->si", matrix)
    # Without a little damping, a parameter without influence makes the system singular.
    ridge = np.maximum(diagonal, 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300)
    system = np.where(pinned[:, :, None] | pinned[:, None, :], 0.0, matrix)
    index = np.arange(theta.shape[1])
    system[:, index, index] = np.where(pinned, 1.0, diagonal + damping[:, None] * ridge)
    root = np.sqrt(np.einsum("sii->si", system))
    system = system / root[:, :, None] / root[:, None, :]
    right = np.where(pinned, 0.0, descent) / root
    system[:, index, index] += 1e-14
    step: Array = np.linalg.solve(system, right[:, :, None])[:, :, 0] / root
    return step
