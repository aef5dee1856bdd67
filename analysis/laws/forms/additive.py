"""Sums of power laws, one term for each input, with exact derivatives.

Sources: power law with floor, Henighan et al. 2020; E + A/N^a + B/D^b, Hoffmann et al. 2022;
one exponent for both terms, Gadre et al. 2024; both terms to a power g, Busbridge et al. 2025;
terms for width and depth beside N and D, McLeish et al. 2025 (Gemstones, arXiv 2502.06857).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.laws.forms.form import Array, Form, Parameter, Positions, Slopes

COEFFICIENTS = "ABCFHJKM"  # by term; the exponent is the small letter, so no E and no g
SYMBOLS = {"params": "N", "tokens": "D", "flops": "C"}


@dataclass(frozen=True, eq=False)
class Additive(Form):
    """E + (A / x^a + B / y^b + ...)^g.

    E is 0 in forms without it, g is 1 in forms without it; terms without an exponent use a.
    """

    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values at inner parameters (S, p) and centred logs (k, n)."""
        return self._evaluate(theta, logs)[0]

    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives with respect to the inner parameters."""
        return self.linearised(theta, logs)[1](np.arange(len(theta)))

    def linearised(self, theta: Array, logs: Array) -> tuple[Array, Slopes]:
        """Return the (S, n) values, and a function to get the derivatives of some problems."""
        value, reducible, terms = self._evaluate(theta, logs)

        def slopes(chosen: Positions) -> Array:
            out = np.empty((len(chosen), theta.shape[1], logs.shape[1]))
            columns = [term[chosen] for term in terms]
            if self._floor is not None:
                out[:, self._floor] = 1.0
            if self._power is not None:
                power, sizes = theta[chosen, self._power, None], reducible[chosen]
                total = np.maximum(sum(columns), 1e-300)
                out[:, self._power] = sizes * np.log(total)
                outer = power * sizes / total
                columns = [outer * column for column in columns]
            exponents = set()
            for (coefficient, exponent), log, column in zip(
                self._terms, logs, columns, strict=True
            ):
                out[:, coefficient] = column
                slope = -log * column
                out[:, exponent] = out[:, exponent] + slope if exponent in exponents else slope
                exponents.add(exponent)
            return out

        return value, slopes

    def exponent_of(self, coefficient: str) -> str:
        """Return the name of the exponent that belongs to a coefficient."""
        own = coefficient.lower()
        return own if own in self.parameters else "a"

    def _evaluate(self, theta: Array, logs: Array) -> tuple[Array, Array, list[Array]]:
        inner, terms = theta.T[:, :, None], []
        for (coefficient, exponent), log in zip(self._terms, logs, strict=True):
            term = inner[coefficient] - inner[exponent] * log
            np.clip(term, -150, 150, out=term)
            terms.append(np.exp(term, out=term))
        reducible: Array = sum(terms[1:], start=terms[0])
        if self._power is not None:
            reducible = reducible ** inner[self._power]
        value = reducible if self._floor is None else inner[self._floor] + reducible
        return value, reducible, terms

    @cached_property
    def _terms(self) -> tuple[tuple[int, int], ...]:
        """Positions of the coefficient and of the exponent of each input's term."""
        names = self.parameters
        return tuple(
            (names.index(name), names.index(self.exponent_of(name)))
            for name in COEFFICIENTS[: len(self.inputs)]
        )

    @cached_property
    def _floor(self) -> int | None:
        return self.parameters.index("E") if "E" in self.parameters else None

    @cached_property
    def _power(self) -> int | None:
        return self.parameters.index("g") if "g" in self.parameters else None


def additive(
    name: str, *inputs: str, floor: bool = True, tied: bool = False, power: bool = False
) -> Additive:
    """Return a form with a term for each input.

    Args:
        name: Name of the form.
        inputs: Columns such as params, tokens, width, depth, blocks; up to eight.
        floor: Whether a loss remains, E.
        tied: Whether all terms share the exponent a.
        power: Whether the sum of the terms is raised to a power g.

    >>> additive("shapes", "width", "depth", "tokens").formula
    'E + A / width^a + B / depth^b + C / D^c'
    """
    details = [Parameter("E", "floor")] if floor else []
    terms, exponents = [], []
    for coefficient, column in zip(COEFFICIENTS, inputs, strict=False):
        exponent = "a" if tied else coefficient.lower()
        terms.append(f"{coefficient} / {SYMBOLS.get(column, column)}^{exponent}")
        details.append(Parameter(coefficient, "coefficient", {column: exponent}))
        exponents.append(Parameter(exponent, "exponent"))
        if not tied:
            details.append(exponents[-1])
    details += exponents[:1] if tied else []
    formula = " + ".join(terms)
    if power:
        formula = f"({formula})^g"
        details.append(Parameter("g", "power"))
    return Additive(name, f"E + {formula}" if floor else formula, inputs, tuple(details))


POWER = additive("power", "flops")
POWER_WITHOUT_FLOOR = additive("power without floor", "flops", floor=False)
TIED = additive("tied", "params", "tokens", tied=True)
CHINCHILLA = additive("chinchilla", "params", "tokens")
GAMMA_FORM = additive("gamma", "params", "tokens", power=True)
