"""A form given by a plain function: write the law, name its parameters, and it can be fitted."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms.form import Array, Form

Numbers = NDArray[Any]  # real, or complex where a derivative is taken
Law = Callable[[SimpleNamespace, SimpleNamespace], Any]

STEP = 1e-30  # of the derivative; a complex step has no rounding error, however small


def no_law(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    """Stand for a function that was not given."""
    raise NotImplementedError("give FunctionForm the function of the law")


@dataclass(frozen=True, eq=False)
class FunctionForm(Form):
    """A form whose derivatives are taken by complex steps (Squire and Trapp 1998).

    The function gets inputs and parameters by name, as in `p.E + p.A / x.flops**p.a`. They are
    arrays, complex ones too, so it uses neither abs nor comparisons, except of `.real`. Inputs
    arrive divided by their geometric mean, which changes only parameters with `units`; those in
    `raw` arrive as they are in the table.
    """

    function: Law = no_law

    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values at inner parameters (S, p) and centred logs (k, n)."""
        shape = (len(theta), logs.shape[1])
        values: Array = np.broadcast_to(self._call(list(theta.T[:, :, None]), logs), shape)
        return values

    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives with respect to the inner parameters."""
        slopes = np.empty((*theta.shape, logs.shape[1]))
        columns: list[Numbers] = list(theta.T[:, :, None])
        for j, column in enumerate(columns):  # only one is complex, because real powers are fast
            stepped = [*columns[:j], column + 1j * STEP, *columns[j + 1 :]]
            slopes[:, j] = self._call(stepped, logs).imag / STEP
        return slopes

    def _call(self, theta: list[Numbers], logs: Array) -> Numbers:
        with np.errstate(all="ignore"):  # the solver steps back from values that are not finite
            x = {
                name: log if name in self.raw else np.exp(log)
                for name, log in zip(self.inputs, logs, strict=True)
            }
            p = {
                name: np.exp(column) if logged else column
                for name, column, logged in zip(self.parameters, theta, self._logged, strict=True)
            }
            values: Numbers = self.function(SimpleNamespace(**x), SimpleNamespace(**p))
        return values


def softplus(x: Numbers) -> Numbers:
    """Return ln(1 + e^x) of real or complex numbers, without overflow."""
    if not np.iscomplexobj(x):
        return np.logaddexp(0.0, x)
    positive = x.real > 0
    return np.where(positive, x, 0.0) + np.log1p(np.exp(np.where(positive, -x, x)))
