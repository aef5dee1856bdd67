"""Forms of law for the tables of `scalebench.py`: varying exponents, and repeated data.

Each is a plain function of inner parameters; its Jacobian is a complex step, exact to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from analysis.laws.forms import EXPONENT, GAMMA, Array, Form, Parameter

Complex = NDArray[np.complex128]
STEP = 1e-30


@dataclass(frozen=True, eq=False)
class BoxedForm(Form):
    """A form by its function, bounds and the box in which its starts lie."""

    function: Callable[[list[Any], list[Any]], Any] = field(kw_only=True)
    boxes: tuple[tuple[float, float], ...] = field(kw_only=True)  # of starts, after the first two
    limits: tuple[tuple[float, float], ...] = field(kw_only=True)

    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values."""
        columns = [theta[:, j, None] for j in range(theta.shape[1])]
        values: Array = np.real(self.function(columns, list(logs[:, None])))
        return values

    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives."""
        derivatives = []
        for j in range(theta.shape[1]):
            shifted = theta.astype(complex)
            shifted[:, j] += 1j * STEP
            columns = [shifted[:, i, None] for i in range(theta.shape[1])]
            derivatives.append(np.imag(self.function(columns, list(logs[:, None]))) / STEP)
        return np.stack(derivatives, axis=1)

    def natural(self, theta: Array, centre: Array) -> Array:
        """Return the inner parameters: these forms are for predictions only."""
        del centre
        return theta

    def bounds(
        self, values: Array, floor: float, logs: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the (p,) bounds; the first parameter is the floor or its logarithm."""
        del floor, logs
        highest = float(values.max())
        first = (0.0, highest) if self.parameters[0] == "E" else (-20.0, float(np.log(highest)))
        low, high = np.array((first, *self.limits)).T
        return low, high

    def starts(self, values: Array, floor: float, count: int, logs: Array | None = None) -> Array:
        """Return (count, p) points that split the loss of the median row as other forms do."""
        del floor, logs
        unit = qmc.Halton(2 + len(self.boxes), scramble=False).random(count + 1)[1:]
        lowest = float(values.min()) * (1 - (0.02 + 0.98 * unit[:, 0]) ** 2)
        rest = np.log(np.maximum(float(np.median(values)) - lowest, 1e-9))
        first = lowest if self.parameters[0] == "E" else np.log(np.maximum(lowest, 1e-9))
        low, high = np.array(self.boxes).T
        others = low + (high - low) * unit[:, 2:]
        if "A" in self.parameters:  # two terms; a power of their sum is the last parameter
            power = others[:, -1] if self.parameters[-1] == "g" else 1.0
            share = 0.1 + 0.8 * unit[:, 1]
            terms = [rest / power + np.log(share), rest / power + np.log(1 - share)]
            return np.column_stack([first, *terms, others])
        return np.column_stack([first, rest, others])


def power(x: Any) -> Any:
    """Return exp(x), clipped so that it is finite, for complex steps too."""
    return np.exp(np.clip(np.real(x), -150, 150) + 1j * np.imag(x))


def bent(log: Any, bend: Any) -> Any:
    """Return (exp(bend * log) - 1) / bend, which is `log` without a bend."""
    flat = np.abs(bend) < 1e-4
    safe = np.where(flat, 1.0, bend)
    return np.where(flat, log + bend * log * log / 2, (power(safe * log) - 1) / safe)


def _varying(theta: list[Any], logs: list[Any]) -> Any:
    floor, coefficient, fall, growth, exponent, change = theta
    size, tokens = logs
    slope = power(exponent + change * size)
    return power(floor + fall * size) + power(coefficient + growth * size - slope * tokens)


def _farseer(theta: list[Any], logs: list[Any]) -> Any:
    floor, coefficient, fall, growth, exponent, change, *bends = theta
    size, tokens = logs
    first, second, third = (bent(size, bend) for bend in bends)
    slope = power(exponent + change * third)
    return power(floor + fall * first) + power(coefficient + growth * second - slope * tokens)


def _repeated(theta: list[Any], logs: list[Any]) -> Any:
    floor, size_term, data_term, a, b, worth, *outer = theta
    size, tokens, unique = logs
    scarcity = np.log(power(-tokens) + power(-unique - worth))
    terms = power(size_term - a * size) + power(data_term + b * scarcity)
    return floor + (terms ** outer[0] if outer else terms)


def named(*names: str) -> tuple[Parameter, ...]:
    """Return parameters that have no other role than their name."""
    return tuple(Parameter(name, "constant") for name in names)


_VARYING = {
    "inputs": ("params", "tokens"),
    "boxes": ((-0.3, 0.0), (-0.2, 0.2), (-3.0, 0.18), (-0.15, 0.15)),
    "limits": ((-60.0, 60.0), (-1.0, 0.3), (-2.0, 2.0), (-4.0, 1.0), (-1.0, 1.0)),
}
_REPEATED = {
    "inputs": ("params", "tokens", "unique_tokens"),
    "boxes": ((0.05, 1.2), (0.05, 1.2), (-2.0, 2.0)),
    "limits": ((-60.0, 60.0), (-60.0, 60.0), EXPONENT, EXPONENT, (-8.0, 8.0)),
}
VARYING = BoxedForm(
    "varying exponent",
    "E / N^e + B N^k / D^(b N^h)",
    _VARYING["inputs"],
    named("lnE", "lnB", "e", "k", "lnb", "h"),
    function=_varying,
    boxes=_VARYING["boxes"],
    limits=_VARYING["limits"],
)
FARSEER = BoxedForm(
    "farseer",  # Li et al. 2025, arXiv 2506.10972
    "exp(a3 N^g + b3) + exp(a2 N^b + b2) / D^exp(a1 N^a + b1)",
    _VARYING["inputs"],
    named("lnE", "lnB", "e", "k", "lnb", "h", "bend1", "bend2", "bend3"),
    function=_farseer,
    boxes=(*_VARYING["boxes"], (-0.3, 0.3), (-0.3, 0.3), (-0.3, 0.3)),
    limits=(*_VARYING["limits"], (-1.5, 1.5), (-1.5, 1.5), (-1.5, 1.5)),
)
REPEATED = BoxedForm(
    "repeated",
    "E + A / N^a + B (1 / D + 1 / (R U))^b",
    _REPEATED["inputs"],
    named("E", "A", "B", "a", "b", "lnR"),
    function=_repeated,
    boxes=_REPEATED["boxes"],
    limits=_REPEATED["limits"],
)
REPEATED_GAMMA = BoxedForm(
    "repeated gamma",
    "E + (A / N^a + B (1 / D + 1 / (R U))^b)^g",
    _REPEATED["inputs"],
    named("E", "A", "B", "a", "b", "lnR", "g"),
    function=_repeated,
    boxes=(*_REPEATED["boxes"], (0.5, 2.0)),
    limits=(*_REPEATED["limits"], GAMMA),
)
