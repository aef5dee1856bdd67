"""Which runs to train next: those that tell most about a prediction for their cost.

Candidates are chosen one after another by the variance that each would take from the prediction at
the targets, divided by its cost. The loss of a candidate need not be known for that: in a linear
model with normal errors, the variance after a run depends on where it is trained, not on its
result (Bayesian experimental design, Chaloner and Verdinelli 1995).
Legend: `m` points, `c` candidates, `t` targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.laws.belief import Belief, believe
from analysis.laws.forms import SURFACE_FORMS, Array, Form
from analysis.laws.observations import Observations

WORTHWHILE = 0.1  # of the largest reduction by one run, below which a run is not worth its trouble


@dataclass(frozen=True)
class NextRun:
    """A run to train, and what is known about the prediction before and after it."""

    candidate: int  # position among the candidates
    cost: float
    before: float  # relative standard deviation at the targets, as root mean square
    after: float


def next_runs(
    data: Observations,
    candidates: Mapping[str, Array],
    costs: Array,
    targets: Mapping[str, Array],
    count: int = 1,
    forms: Sequence[Form] = SURFACE_FORMS,
) -> list[NextRun]:
    """Choose the runs that lower the uncertainty at the targets most per cost.

    Args:
        data: Runs so far, perhaps none.
        candidates: (c,) values of each input.
        costs: (c,) positive cost of each candidate, in any unit.
        targets: (t,) values of each input of the runs to predict.
        count: Number of runs; fewer are returned if there are fewer candidates.
        forms: Laws that may hold.
    """
    points = {name: np.concatenate([candidates[name], targets[name]]) for name in targets}
    belief = believe(forms, data, points)
    wanted = np.arange(len(costs), len(belief.mean))
    return choose(belief, costs, wanted, count)


def choose(belief: Belief, costs: Array, targets: NDArray[np.intp], count: int) -> list[NextRun]:
    """Choose runs one after another, without refitting in between.

    Args:
        belief: What is known at the candidates, which come first, and at the targets.
        costs: (c,) positive cost of each candidate; inf leaves it out.
        targets: Positions of the targets.
        count: Number of runs.
    """
    runs: list[NextRun] = []
    left = np.array(costs, dtype=float)
    while len(runs) < count and np.isfinite(left).any():
        gain = reductions(belief, targets)[: len(left)]
        enough = gain >= WORTHWHILE * gain[np.isfinite(left)].max()
        best = int(np.argmax(np.where(enough, gain / left, -1.0)))
        after = observe(belief, best)
        runs.append(
            NextRun(best, float(left[best]), belief.deviation(targets), after.deviation(targets))
        )
        belief, left[best] = after, np.inf
    return runs


def reductions(belief: Belief, targets: NDArray[np.intp]) -> Array:
    """Return the variance that a run at each point would take from the targets, (m,)."""
    variance = np.diag(belief.covariance) + belief.noise**2
    taken: Array = np.mean(belief.covariance[targets] ** 2, axis=0) / variance
    return taken


def observe(belief: Belief, point: int) -> Belief:
    """Return the belief after a run at a point, whatever its loss; its mean stays."""
    column = belief.covariance[point]
    taken = np.outer(column, column) / (column[point] + belief.noise**2)
    return replace(belief, covariance=belief.covariance - taken)
