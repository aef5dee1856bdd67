"""What leaving one run out changes."""

from dataclasses import dataclass

import numpy as np

from analysis.laws.fit import Fit, Observations, fit
from analysis.laws.validation import STARTS


@dataclass(frozen=True)
class Influence:
    """What leaving one run out changes."""

    cluster: str  # the run that is left out
    change: float  # relative change of the prediction at the largest compute
    parameter: str  # the parameter that moves most
    parameter_change: float  # in units of half its 90% interval


def influence(law: Fit, data: Observations) -> tuple[Influence, ...]:
    """Refit without each run in turn; the largest change of the prediction comes first.

    Args:
        law: A law fitted to all rows.
        data: The rows, with clusters. The prediction compared is that at their largest compute.
    """
    at = {name: column[[data.compute.argmax()]] for name, column in data.inputs.items()}
    clusters, changes = data.clusters or (), []
    for cluster in dict.fromkeys(clusters):
        rest = data.take(np.array([name != cluster for name in clusters]))
        other = fit(law.form, rest, starts=STARTS, draws=0)
        moves = {name: _move(law, other, name) for name in law.values}
        most = max(moves, key=lambda name: moves[name])
        change = float(other.predict(**at)[0] / law.predict(**at)[0] - 1)
        changes.append(Influence(cluster, change, most, moves[most]))
    return tuple(sorted(changes, key=lambda item: -abs(item.change)))


def _move(law: Fit, other: Fit, name: str) -> float:
    """Return how far a parameter moves, in units of half its interval; 0 if that is unknown."""
    low, high = law.intervals[name]
    half = (high - low) / 2
    return abs(other.values[name] - law.values[name]) / half if 0 < half < np.inf else 0.0
