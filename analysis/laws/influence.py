"""What leaving one run out changes."""

from dataclasses import dataclass

import numpy as np

from analysis.laws.fit import Fit
from analysis.laws.validation import STARTS, Table


@dataclass(frozen=True)
class Influence:
    """What leaving one run out changes."""

    cluster: str  # the run that is left out
    change: float  # relative change of the prediction at the largest compute of the table
    parameter: str  # the parameter that moves most
    parameter_change: float  # in units of half its 90% interval


def influence(law: Fit, table: Table) -> tuple[Influence, ...]:
    """Refit without each run in turn; the largest change of the prediction comes first.

    The prediction is the one at the largest compute of the table.
    """
    at = {name: column[[table.compute.argmax()]] for name, column in table.inputs.items()}
    found = []
    for cluster in dict.fromkeys(table.clusters):
        rest = table.take(np.array([name != cluster for name in table.clusters]))
        other = rest.fit(law.form, STARTS, 0)
        moves = {name: _move(law, other, name) for name in law.values}
        most = max(moves, key=lambda name: moves[name])
        change = float(other.predict(**at)[0] / law.predict(**at)[0] - 1)
        found.append(Influence(cluster, change, most, moves[most]))
    return tuple(sorted(found, key=lambda item: -abs(item.change)))


def _move(law: Fit, other: Fit, name: str) -> float:
    low, high = law.intervals[name]
    half = (high - low) / 2
    return abs(other.values[name] - law.values[name]) / half if 0 < half < np.inf else 0.0
