"""What bands promise, what they hold on roll-outs, and how much wider they should be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.laws.intervals import LEVEL, NORMAL_90
from analysis.laws.validation import Rollout

FAR = float(np.log(1.5))  # in ln(compute): budgets round to whole batches, some percent apart


@dataclass(frozen=True)
class Coverage:
    """How often a band held what it promised on the roll-outs."""

    band: str  # "parameters and noise", or "with discrepancy"
    level: float  # promised
    inside: int
    total: int

    @property
    def achieved(self) -> float:
        """Share of roll-outs inside the band."""
        return self.inside / self.total if self.total else float("nan")


def discrepancy(rollouts: Sequence[Rollout]) -> float:
    """Return the standard deviation a form misses per unit of ln(compute) of extrapolation.

    Chosen so that 90% of the extrapolating roll-outs lie inside their widened 90% band; 0 without
    any. Relative, as the band in log space.
    """
    needed = [
        np.sqrt(max(0.0, (_log_error(r) / NORMAL_90) ** 2 - _spread(r) ** 2)) / r.distance
        for r in _beyond(rollouts)
    ]
    return float(np.quantile(needed, LEVEL, method="higher")) if needed else 0.0


def coverage(rollouts: Sequence[Rollout]) -> tuple[Coverage, ...]:
    """Count the extrapolating roll-outs of one form inside their bands.

    For the widened band each window is judged with the discrepancy of the other windows.
    """
    beyond = _beyond(rollouts)
    plain = sum(r.interval[0] <= r.achieved <= r.interval[1] for r in beyond)
    wide = 0
    for rollout in beyond:
        extra = discrepancy([r for r in beyond if r.window != rollout.window])
        spread = np.hypot(_spread(rollout), extra * rollout.distance)
        wide += bool(abs(_log_error(rollout)) <= NORMAL_90 * spread)
    return (
        Coverage("parameters and noise", LEVEL, plain, len(beyond)),
        Coverage("with discrepancy", LEVEL, wide, len(beyond)),
    )


def _beyond(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the roll-outs that extrapolate: an error over a distance near zero has no slope."""
    return [r for r in rollouts if r.distance >= FAR and np.isfinite(_spread(r))]


def _log_error(rollout: Rollout) -> float:
    return float(np.log(rollout.achieved / rollout.predicted))


def _spread(rollout: Rollout) -> float:
    """Return the relative standard deviation its 90% band stands for."""
    low, high = rollout.interval
    return float(np.log(high / low) / 2 / NORMAL_90) if 0 < low <= high else float("inf")
