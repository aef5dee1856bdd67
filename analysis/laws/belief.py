"""What some runs say about the loss of any other run: one normal distribution.

    ln(loss) = ln(law) + misfit + noise

The law has a weak prior, so that no run at all is enough to start with. The misfit is how far a
law is off. It changes smoothly with the logarithms of the inputs, so a run tells little about one
far away, and several neighbours hardly tell more than one of them. Noise is what differs between
equal runs. Forms and sizes of the misfit count by how well they explain the runs (evidence).
Sources: Laplace's approximation, MacKay 1992; misfit as a Gaussian process, Kennedy and O'Hagan
2001. `docs/decisions/027-next-runs.md` states every constant.
Legend: `n` runs, `m` points, `p` parameters, `k` inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares

from analysis.laws.forms import Array, Form
from analysis.laws.observations import Observations

MISFITS = (0.003, 0.01, 0.03)  # relative standard deviations of the misfit; the runs weigh them
QUIET = 5.0  # misfit over noise, if the noise between equal runs is not known
SMOOTH = 2.0  # in ln(input): distance over which the misfit changes
PRIOR = 256  # starting points of a form whose mean and covariance are its prior
STARTS = 5  # of a fit
MOST = 500  # runs that count, spread over all compute: time grows with the cube
STEEPEST = 60.0  # bound of parameters whose form sets none
LEAST = 1e-12  # a loss cannot be smaller


@dataclass(frozen=True, eq=False)
class Belief:
    """What is known about ln(loss) at some points."""

    mean: Array  # (m,)
    covariance: Array  # (m, m) of the loss that runs would have without noise
    noise: float  # relative standard deviation between equal runs
    forms: Mapping[str, float]  # probability of each form

    def deviation(self, points: NDArray[np.intp]) -> float:
        """Return the relative standard deviation at points, as root mean square."""
        return float(np.sqrt(np.mean(np.diag(self.covariance)[points])))


@dataclass(frozen=True, eq=False)
class _Part:
    """The belief under one form and one size of the misfit."""

    form: str
    evidence: float  # ln, up to a constant that all parts share
    mean: Array
    covariance: Array
    noise: float


def believe(forms: Sequence[Form], data: Observations, points: Mapping[str, Array]) -> Belief:
    """Return what runs say about the loss at points.

    Args:
        forms: Laws that may hold.
        data: Runs so far, perhaps none. If their noise is known, it is used.
        points: (m,) positive values of each input of the forms.
    """
    names = list(points)
    runs = np.log([np.asarray(data.inputs[name], float) for name in names])
    ranks = np.linspace(0, len(data.values) - 1, min(MOST, len(data.values))).astype(int)
    spread = np.argsort(runs.sum(axis=0))[ranks]
    runs, values = runs[:, spread], np.asarray(data.values, float)[spread]
    targets = np.log([np.asarray(points[name], float) for name in names])
    logs = np.concatenate([runs, targets], axis=1)
    logs -= (runs if len(values) else targets).mean(axis=1, keepdims=True)
    distance = np.sum((logs[:, :, None] - logs[:, None, :]) ** 2, axis=0)
    alike = np.exp(-distance / (2 * SMOOTH**2))
    parts = []
    for form in forms:
        chosen, start = logs[[names.index(name) for name in form.inputs]], None
        for misfit in MISFITS:
            noise = data.noise.std or misfit / QUIET
            part, start = _under(form, chosen, values, misfit**2 * alike, noise, start)
            parts.append(part)
    return _mixture(parts)


def _mixture(parts: Sequence[_Part]) -> Belief:
    """Return the normal distribution with the mean and covariance of a mixture."""
    evidence = np.array([part.evidence for part in parts])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    means = np.stack([part.mean for part in parts])
    mean = weights @ means
    apart = means - mean
    inside = sum(w * part.covariance for w, part in zip(weights, parts, strict=True))
    noise = np.sqrt(weights @ np.array([part.noise**2 for part in parts]))
    names = dict.fromkeys(part.form for part in parts)
    return Belief(
        mean=mean,
        covariance=inside + (weights * apart.T) @ apart,
        noise=float(noise),
        forms={
            name: float(
                sum(w for w, part in zip(weights, parts, strict=True) if part.form == name)
            )
            for name in names
        },
    )


def _under(
    form: Form, logs: Array, values: Array, misfit: Array, noise: float, start: Array | None
) -> tuple[_Part, Array]:
    """Return the belief at the points under one form, and its best parameters (p,).

    Args:
        form: The law.
        logs: (k, n + m) centred logarithms of the inputs of runs and points.
        values: (n,) losses of the runs.
        misfit: (n + m, n + m) covariance of the misfit.
        noise: Relative standard deviation between equal runs.
        start: (p,) first guess of the parameters; None searches from several.
    """
    n = len(values)
    level = values if n else np.ones(1)
    starts = form.starts(level, 0.0, PRIOR)
    prior, covariance = starts.mean(axis=0), np.cov(starts.T)
    errors = misfit[:n, :n] + noise**2 * np.eye(n)
    theta, evidence = prior, 0.0
    if n:
        begin = [prior, *starts[: STARTS - 1]] if start is None else [start]
        theta, evidence = _fit(form, logs[:, :n], values, errors, (prior, covariance), begin)
    slopes = _slopes(form, theta, logs)
    expected = _log_loss(form, theta, logs) + slopes @ (prior - theta)
    joint = slopes @ covariance @ slopes.T + misfit
    mean, spread = expected[n:], joint[n:, n:]
    if n:
        seen = joint[:n, :n] + noise**2 * np.eye(n)
        gain = np.linalg.solve(seen, joint[:n, n:]).T
        mean = mean + gain @ (np.log(values) - expected[:n])
        spread = spread - gain @ joint[:n, n:]
    return _Part(form.name, evidence, mean, spread, noise), theta


def _fit(
    form: Form,
    logs: Array,
    values: Array,
    errors: Array,
    prior: tuple[Array, Array],
    begin: Sequence[Array],
) -> tuple[Array, float]:
    """Return the most probable parameters (p,), and the evidence of the form."""
    mean, covariance = prior
    low, high = form.bounds(values, 0.0)
    low, high = np.maximum(low, -STEEPEST), np.minimum(high, STEEPEST)
    errors_root, prior_root = np.linalg.cholesky(errors), np.linalg.cholesky(covariance)
    whiten, shrink = np.linalg.inv(errors_root), np.linalg.inv(prior_root)

    def residuals(theta: Array) -> Array:
        missed = whiten @ (np.log(values) - _log_loss(form, theta, logs))
        return np.concatenate([missed, shrink @ (theta - mean)])

    def jacobian(theta: Array) -> Array:
        return np.concatenate([-whiten @ _slopes(form, theta, logs), shrink])

    inner = 1e-6 * (high - low)
    ends: list[OptimizeResult] = [
        least_squares(
            residuals,
            np.clip(theta, low + inner, high - inner),
            jacobian,
            bounds=(low, high),
            x_scale="jac",
            ftol=1e-7,
            max_nfev=60,
        )
        for theta in begin
    ]
    best = min(ends, key=lambda end: float(end.cost))
    precision = best.jac.T @ best.jac
    evidence = (
        -float(best.cost)
        - float(np.log(np.diag(errors_root)).sum() + np.log(np.diag(prior_root)).sum())
        - float(np.linalg.slogdet(precision)[1]) / 2
    )
    return best.x, evidence


def _log_loss(form: Form, theta: Array, logs: Array) -> Array:
    value: Array = np.log(np.maximum(form.predict(theta[None], logs)[0], LEAST))
    return value


def _slopes(form: Form, theta: Array, logs: Array) -> Array:
    """Return the derivatives of ln(loss) with respect to the parameters, (n, p)."""
    value = np.maximum(form.predict(theta[None], logs)[0], LEAST)
    slopes: Array = (form.jacobian(theta[None], logs)[0] / value).T
    return slopes
