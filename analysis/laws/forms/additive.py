"""Sums of power laws, one term for each input, with exact derivatives.

Sources: power law with floor, Henighan et al. 2020; E + A/N^a + B/D^b, Hoffmann et al. 2022;
one exponent for both terms, Gadre et al. 2024; both terms to a power g, Busbridge et al. 2025;
terms for width and depth beside N and D, McLeish et al. 2025 (Gemstones, arXiv 2502.06857).
"""

from dataclasses import dataclass

import numpy as np

from analysis.laws.forms.form import Array, Form, Parameter

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
        return self.linearised(theta, logs)[1]

    def linearised(self, theta: Array, logs: Array) -> tuple[Array, Array]:
        """Return the values (S, n) and the derivatives (S, p, n)."""
        value, reducible, terms = self._evaluate(theta, logs)
        index = {name: j for j, name in enumerate(self.parameters)}
        out = np.empty((len(theta), len(index), logs.shape[1]))
        if "E" in index:
            out[:, index["E"]] = 1.0
        if "g" in index:
            total = np.maximum(sum(terms), 1e-300)
            outer = theta[:, index["g"], None] * reducible / total
            out[:, index["g"]] = reducible * np.log(total)
            terms = [outer * term for term in terms]
        exponents = set()
        for coefficient, log, column in zip(COEFFICIENTS, logs, terms, strict=False):
            out[:, index[coefficient]] = column
            exponent = index[self.exponent_of(coefficient)]
            slope = -log * column
            out[:, exponent] = out[:, exponent] + slope if exponent in exponents else slope
            exponents.add(exponent)
        return value, out

    def exponent_of(self, coefficient: str) -> str:
        """Return the name of the exponent that belongs to a coefficient."""
        own = coefficient.lower()
        return own if own in self.parameters else "a"

    def _evaluate(self, theta: Array, logs: Array) -> tuple[Array, Array, list[Array]]:
        inner = {name: theta[:, j, None] for j, name in enumerate(self.parameters)}
        terms = [
            np.exp(np.clip(inner[name] - inner[self.exponent_of(name)] * log, -150, 150))
            for name, log in zip(COEFFICIENTS, logs, strict=False)
        ]
        reducible: Array = sum(terms[1:], start=terms[0])
        if "g" in inner:
            reducible = reducible ** inner["g"]
        value = inner["E"] + reducible if "E" in inner else reducible
        return value, reducible, terms


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
