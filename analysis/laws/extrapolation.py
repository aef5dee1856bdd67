"""How much less certain a law is beyond its runs, as far as roll-outs have tested it."""

from dataclasses import dataclass, replace

import numpy as np

from analysis.laws.forms import Array

FAR = float(np.log(1.5))  # in ln(compute): budgets round to whole batches, some percent apart
SLACK = float(np.log(1.2))  # in ln(compute): compute within 20% counts as equal


@dataclass(frozen=True)
class Discrepancy:
    """The error of a law beyond its runs. Distances are ln(compute / largest compute seen)."""

    factor: float  # width that the bands needed in the roll-outs over the width they had
    tested: float  # distance of the farthest roll-out, 0 without roll-outs

    @property
    def widening_only(self) -> "Discrepancy":
        """The same for a law that the roll-outs did not test: they cannot narrow its bands."""
        return replace(self, factor=max(1.0, self.factor))

    def widening(self, distance: Array | float) -> Array:
        """Return the factor by which intervals widen: `factor`, and more where nothing was tested.

        Farther than roll-outs have tested, it grows with the square root of the distance, as an
        error does that adds up in random steps.
        """
        away = np.asarray(distance, float) / max(self.tested, FAR)
        factor: Array = self.factor * np.sqrt(np.maximum(1.0, away))
        return factor

    def caution(self, distance: float) -> str:
        """Say that a distance lies beyond the roll-outs; empty if it does not."""
        if distance <= self.tested + SLACK:
            return ""
        if not self.tested:
            tested = "no roll-out has tested the law"
        else:
            tested = f"roll-outs have tested up to {np.exp(self.tested):.2g} times"
        times = f"{np.exp(distance):.3g} times the largest budget"
        return f"At {times}, the interval is a guess: {tested}."


NEVER = Discrepancy(factor=1.0, tested=float("inf"))  # parameters and noise only, at any distance
