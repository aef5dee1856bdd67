"""What leaving one run out changes."""

from dataclasses import dataclass

import numpy as np

from analysis.laws.fit import Fit
from analysis.laws.observations import log_compute


@dataclass(frozen=True)
class Influence:
    """What leaving one run out changes."""

    cluster: str  # the run that is left out
    change: float  # relative change of the prediction at the largest compute
    parameter: str  # the parameter that moves most
    parameter_change: float  # in units of half its 90% interval


def influence(law: Fit) -> tuple[Influence, ...]:
    """Refit without each run in turn; the largest change of the prediction comes first.

    The prediction compared is that at the largest compute of the rows.
    """
    clusters = np.array(law.data.clusters or [str(row) for row in range(law.rows)])
    names = list(dict.fromkeys(clusters.tolist()))
    others = law.refit(weights=np.stack([clusters != name for name in names]).astype(float))
    last = law.problem.logs[:, [int(log_compute(law.data.inputs).argmax())]]
    value = law.form.predict(law.theta[None], last)[0, 0]
    changes = law.form.predict(others, last)[:, 0] / value - 1
    half = np.array([(high - low) / 2 for low, high in law.intervals.values()])
    shift = np.abs(law.form.natural(others, law.centre) - list(law.values.values()))
    known = (half > 0) & np.isfinite(half)
    moves = np.where(known, shift / np.where(known, half, 1.0), 0.0)
    most = moves.argmax(axis=1)
    effects = [
        Influence(name, float(change), law.form.parameters[j], float(move[j]))
        for name, change, j, move in zip(names, changes, most, moves, strict=True)
    ]
    return tuple(sorted(effects, key=lambda item: -abs(item.change)))
