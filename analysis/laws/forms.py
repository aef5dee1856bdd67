"""The functional forms of scaling laws: value, exact Jacobian, starts and bounds.

Legend: `S` problems solved side by side, `n` rows, `p` parameters, `k` inputs.
The solver works on inner parameters: inputs are centred logarithms, and a coefficient is its
logarithm at the centre, because raw coefficients correlate almost perfectly with their exponents.
`Form.natural` turns inner parameters into those of the printed formula.
Sources: power law with floor, Henighan et al. 2020; E + A/N^a + B/D^b, Hoffmann et al. 2022;
one exponent for both terms, Gadre et al. 2024; both terms to a power g, Busbridge et al. 2025.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

Array = NDArray[np.float64]

EXPONENT = (1e-3, 4.0)  # bounds; outside them a term is a constant or a step
GAMMA = (0.1, 6.0)  # bounds of the outer power


@dataclass(frozen=True)
class Form:
    """A law with one input ("flops") or two ("params", "tokens").

    Parameters: E is the floor (0 in forms without it), A and B are the coefficients of the inputs,
    a and b their exponents (forms without b use a for both), g is the power of the sum (1 in forms
    without it).
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]

    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values at inner parameters (S, p) and centred logs (k, n)."""
        return self._evaluate(theta, logs)[0]

    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives with respect to the inner parameters."""
        _, reducible, terms = self._evaluate(theta, logs)
        inner = self._columns(theta)
        outer = np.ones_like(reducible)
        columns: dict[str, Array] = {"E": outer}
        if "g" in inner:
            total = np.maximum(sum(terms), 1e-300)
            outer = inner["g"] * reducible / total
            columns["g"] = reducible * np.log(total)
        for coefficient, log, term in zip("AB", logs, terms, strict=False):
            exponent = self.exponent_of(coefficient)
            columns[coefficient] = outer * term
            columns[exponent] = columns.get(exponent, 0.0) - log * columns[coefficient]
        return np.stack([columns[name] for name in self.parameters], axis=1)

    def exponent_of(self, coefficient: str) -> str:
        """Return the name of the exponent that belongs to coefficient A or B."""
        return "b" if coefficient == "B" and "b" in self.parameters else "a"

    def natural(self, theta: Array, centre: Array) -> Array:
        """Return the (S, p) parameters of the formula.

        Args:
            theta: (S, p) inner parameters.
            centre: (k,) mean logarithms of the inputs.
        """
        inner, out = self._columns(theta), theta.copy()
        for j, name in enumerate(self.parameters):
            if name in "AB":
                shift = inner[self.exponent_of(name)][:, 0] * centre["AB".index(name)]
                out[:, j] = np.exp(np.clip(theta[:, j] + shift, -700, 700))
        return out

    def bounds(self, values: Array, floor: float) -> tuple[Array, Array]:
        """Return the (p,) lower and upper bounds of the inner parameters.

        Args:
            values: (n,) losses.
            floor: Smallest possible value of E; -inf derives one from the values.
        """
        if not np.isfinite(floor):
            floor = float(values.min()) - 100 * _spread(values)
        low = {"E": floor, "A": -np.inf, "B": -np.inf, "g": GAMMA[0]}
        high = {"E": float(values.max()), "A": np.inf, "B": np.inf, "g": GAMMA[1]}
        return (
            np.array([low.get(name, EXPONENT[0]) for name in self.parameters]),
            np.array([high.get(name, EXPONENT[1]) for name in self.parameters]),
        )

    def starts(self, values: Array, floor: float, count: int) -> Array:
        """Return (count, p) starting points scaled to the data.

        They split the reducible loss of the median row between the terms. A low-discrepancy
        sequence makes them the same for the same data.
        """
        unit = qmc.Halton(5, scramble=False).random(count + 1)[1:].T
        least, middle = float(values.min()), float(np.median(values))
        gap = _spread(values) * 10 ** (2.5 * unit[0] - 1.5)
        if np.isfinite(floor):
            gap = (least - floor) * (0.02 + 0.98 * unit[0]) ** 2
        start = {"E": least - gap, "a": 0.05 * 24 ** unit[1], "b": 0.05 * 24 ** unit[2]}
        start["g"] = 0.5 * 4 ** unit[3]
        reducible = middle - start["E"] if "E" in self.parameters else np.full(count, middle)
        total = np.log(np.maximum(reducible, 1e-300))
        if "g" in self.parameters:
            total = total / start["g"]
        share = 0.1 + 0.8 * unit[4] if "B" in self.parameters else np.ones(count)
        start["A"] = total + np.log(share)
        start["B"] = total + np.log(np.maximum(1 - share, 1e-300))
        return np.stack([start[name] for name in self.parameters], axis=1)

    def _columns(self, theta: Array) -> dict[str, Array]:
        return {name: theta[:, j, None] for j, name in enumerate(self.parameters)}

    def _evaluate(self, theta: Array, logs: Array) -> tuple[Array, Array, list[Array]]:
        inner = self._columns(theta)
        terms = [
            np.exp(np.clip(inner[name] - inner[self.exponent_of(name)] * log, -150, 150))
            for name, log in zip("AB", logs, strict=False)
        ]
        reducible: Array = terms[0] + terms[1] if len(terms) == 2 else terms[0]
        if "g" in inner:
            reducible = reducible ** inner["g"]
        value = inner["E"] + reducible if "E" in inner else reducible
        return value, reducible, terms


POWER = Form("power", "E + A / C^a", ("flops",), ("E", "A", "a"))
POWER_WITHOUT_FLOOR = Form("power without floor", "A / C^a", ("flops",), ("A", "a"))
TIED = Form("tied", "E + A / N^a + B / D^a", ("params", "tokens"), ("E", "A", "B", "a"))
CHINCHILLA = Form(
    "chinchilla", "E + A / N^a + B / D^b", ("params", "tokens"), ("E", "A", "a", "B", "b")
)
GAMMA_FORM = Form(
    "gamma", "E + (A / N^a + B / D^b)^g", ("params", "tokens"), ("E", "A", "a", "B", "b", "g")
)
FRONTIER_FORMS = (POWER_WITHOUT_FLOOR, POWER)
SURFACE_FORMS = (TIED, CHINCHILLA, GAMMA_FORM)


def _spread(values: Array) -> float:
    return float(np.ptp(values)) or abs(float(values.max())) or 1.0
