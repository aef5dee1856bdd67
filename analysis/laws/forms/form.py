"""What every form of law promises: values, derivatives, starts and bounds.

Legend: `S` problems solved side by side, `n` rows, `p` parameters, `k` inputs.
The solver works on inner parameters: inputs are centred logarithms, and a positive parameter is
its logarithm at the centre, because raw coefficients correlate almost perfectly with their
exponents. `Form.natural` turns inner parameters into those of the printed formula.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

Array = NDArray[np.float64]
Positions = NDArray[np.intp]
Slopes = Callable[[Positions], Array]  # derivatives of the problems at some positions, (c, p, n)
Role = Literal["floor", "coefficient", "exponent", "power", "position", "height", "constant"]

EXPONENT = (1e-3, 4.0)  # bounds; outside them a term is a constant or a step
GAMMA = (0.1, 6.0)  # bounds of the outer power
BEYOND = float(np.log(100))  # how far outside the rows a position may lie, in ln(input)
LOGARITHMS = ("coefficient", "position", "height", "constant")  # roles whose inner value is a log
DIMENSIONS = {"floor": (0,), "exponent": (1, 2), "power": (3,), "coefficient": (4,)}  # of starts


@dataclass(frozen=True)
class Parameter:
    """One parameter of a form. Its role says where the search starts and what bounds it.

    Roles: "floor" (the loss that remains), "coefficient" (positive; at the centre of the rows the
    coefficients share the loss above the floor), "exponent", "power" (of the sum of all terms),
    "position" (an input at which something happens), "height" (a loss above the floor that is
    never exceeded) and "constant" (any other positive number).
    """

    name: str
    role: Role
    units: Mapping[str, str | float] = field(default_factory=dict)
    """Power of each input that the parameter scales with: {"params": "a"} for A in A / N^a,
    {"tokens": 1} for a position in tokens."""
    low: float | None = None  # bounds where those of the role do not fit; a constant needs both,
    high: float | None = None  # and its search starts anywhere between them


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """A law of any inputs, such as ("flops",) or ("params", "tokens")."""

    name: str
    formula: str
    inputs: tuple[str, ...]
    details: tuple[Parameter, ...]
    raw: tuple[str, ...] = ()  # inputs that are neither logged nor centred

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(detail.name for detail in self.details)

    @abstractmethod
    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values at inner parameters (S, p) and centred logs (k, n)."""

    @abstractmethod
    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives with respect to the inner parameters."""

    def linearised(self, theta: Array, logs: Array) -> tuple[Array, Slopes]:
        """Return the (S, n) values, and a function to get the derivatives of some problems."""
        return self.predict(theta, logs), lambda chosen: self.jacobian(theta[chosen], logs)

    def columns(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """Return the logarithms of the inputs (k, n); raw inputs as they are."""
        rows = [np.asarray(inputs[name], float) for name in self.inputs]
        logs = [x if k in self.raw else np.log(x) for k, x in zip(self.inputs, rows, strict=True)]
        return np.stack(logs)

    def centre(self, columns: Array, weights: Array) -> Array:
        """Return the mean (k,) of columns (k, n); 0 for raw inputs."""
        logged = np.array([name not in self.raw for name in self.inputs])
        centre: Array = np.where(logged, np.average(columns, axis=1, weights=weights), 0.0)
        return centre

    def exponent_of(self, coefficient: str) -> str:
        """Return the name of the first exponent of a coefficient; empty if it has none."""
        units = self._detail(coefficient).units.values()
        return next((unit for unit in units if isinstance(unit, str)), "")

    def role_of(self, parameter: str) -> Role:
        """Return what a parameter is."""
        return self._detail(parameter).role

    def recentred(self, theta: Array, shift: Array) -> Array:
        """Return the inner parameters (S, p) for logs that are larger by `shift` (k,).

        The law stays the same: predict(recentred(theta, s), logs + s) = predict(theta, logs).
        """
        moved, index = theta.copy(), {name: j for j, name in enumerate(self.parameters)}
        by = dict(zip(self.inputs, shift, strict=True))
        for j, detail in enumerate(self.details):
            for name, unit in detail.units.items():
                exponent = theta[:, index[unit]] if isinstance(unit, str) else unit
                moved[:, j] += exponent * by[name]
        return moved

    def natural(self, theta: Array, centre: Array) -> Array:
        """Return the (S, p) parameters of the formula.

        Args:
            theta: (S, p) inner parameters.
            centre: (k,) mean logarithms of the inputs, 0 for raw ones.
        """
        raw = self.recentred(theta, centre)
        return np.where(self._logged, np.exp(np.clip(raw, -700, 700)), raw)

    def bounds(
        self, values: Array, floor: float, logs: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the (p,) lower and upper bounds of the inner parameters.

        Args:
            values: (n,) losses.
            floor: Smallest possible value of E; -inf derives one from the values.
            logs: (k, n) centred logs, which bound positions; without them, nothing does.
        """
        ends = np.array([self._bounds(detail, values, floor, logs) for detail in self.details])
        return ends[:, 0], ends[:, 1]

    def starts(self, values: Array, floor: float, count: int, logs: Array | None = None) -> Array:
        """Return (count, p) starting points scaled to the data.

        They split the reducible loss of the median row between the terms. A low-discrepancy
        sequence makes them the same for the same data.

        Args:
            values: (n,) losses.
            floor: Smallest possible value of E; -inf derives one from the values.
            count: Number of starting points.
            logs: (k, n) centred logs, among which positions start; without them, at the centre.
        """
        unit = self._sequence(count)
        start = {
            detail.name: self._start(detail, unit[detail.name], values, floor, logs)
            for detail in self.details
        }
        roles: dict[Role, list[str]] = {}
        for detail in self.details:
            roles.setdefault(detail.role, []).append(detail.name)
        reducible = np.full(count, float(np.median(values)))
        for name in roles.get("floor", []):
            reducible = reducible - start[name]
        total = np.log(np.maximum(reducible, 1e-300))
        for name in roles.get("power", []):
            total = total / start[name]
        left, coefficients = np.ones(count), roles.get("coefficient", [])
        for position, name in enumerate(coefficients):
            terms = len(coefficients) - position
            share = (0.1 + 0.8 * unit[name]) * 2 / terms if terms > 1 else 1.0
            start[name] = total + np.log(np.maximum(left * share, 1e-300))
            left = left * (1 - share)
        return np.stack([start[name] for name in self.parameters], axis=1)

    @property
    def _logged(self) -> NDArray[np.bool_]:
        return np.array([detail.role in LOGARITHMS for detail in self.details])

    def _detail(self, name: str) -> Parameter:
        return next(detail for detail in self.details if detail.name == name)

    def _sequence(self, count: int) -> dict[str, Array]:
        """Return numbers between 0 and 1, (count,), by parameter.

        The first parameters of a role have dimensions of the sequence to themselves, so that a
        form with more parameters starts those it shares with a smaller one where that one does.
        """
        seen: Counter[str] = Counter()
        dimension, free = {}, 5
        for detail in self.details:
            own = DIMENSIONS.get(detail.role, ())[seen[detail.role] :][:1]
            seen[detail.role] += 1
            dimension[detail.name] = own[0] if own else free
            free += not own
        unit = qmc.Halton(free, scramble=False).random(count + 1)[1:].T
        return {name: unit[axis] for name, axis in dimension.items()}

    def _bounds(
        self, detail: Parameter, values: Array, floor: float, logs: Array | None
    ) -> tuple[float, float]:
        if detail.role == "floor":
            lowest = floor if np.isfinite(floor) else float(values.min()) - 100 * spread(values)
            return lowest, float(values.max())
        if detail.role == "height":
            return float(np.log(1e-2 * spread(values))), float(np.log(1e4 * spread(values)))
        low, high = {"exponent": EXPONENT, "power": GAMMA}.get(detail.role, (-np.inf, np.inf))
        if detail.role == "position" and logs is not None:
            along = logs[self.inputs.index(next(iter(detail.units)))]
            low, high = float(along.min()) - BEYOND, float(along.max()) + BEYOND
        given = [detail.low, detail.high]
        if detail.role in LOGARITHMS:
            given = [None if end is None else float(np.log(end)) for end in given]
        return (low if given[0] is None else given[0], high if given[1] is None else given[1])

    def _start(
        self, detail: Parameter, unit: Array, values: Array, floor: float, logs: Array | None
    ) -> Array:
        if detail.role == "floor":
            least = float(values.min())
            if np.isfinite(floor):
                return least - (least - floor) * (0.02 + 0.98 * unit) ** 2
            return least - spread(values) * 10 ** (2.5 * unit - 1.5)
        if detail.role == "power":
            return 0.5 * 4**unit
        if detail.role == "height":
            return np.log(spread(values) * (1.1 + 4 * unit))
        if detail.role == "position":
            if logs is None:
                return np.zeros_like(unit)
            along = logs[self.inputs.index(next(iter(detail.units)))]
            at: Array = np.quantile(along, 0.1 + 0.8 * unit)
            return at
        if detail.role == "constant":
            low, high = self._bounds(detail, values, floor, logs)
            return low + (high - low) * unit
        if detail.low is not None and detail.low < 0:
            return unit - 0.5
        return 0.05 * 24**unit


def spread(values: Array) -> float:
    """Return the range of values, or their size if they are equal; never 0."""
    return float(np.ptp(values)) or abs(float(values.max())) or 1.0
