"""A form given by a plain function: write the law, name its parameters, and it can be fitted."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.laws.forms.form import Array, Form, Parameter

STEP = 1e-30  # of the derivative; a complex step has no rounding error, however small


@dataclass(frozen=True, eq=False)
class FunctionForm(Form):
    """A form whose derivatives are taken by complex steps (Squire and Trapp 1998).

    The function gets inputs and parameters by name, as in the printed formula. Inputs arrive
    divided by their geometric mean, which only changes the parameters that have `units`.
    """

    function: Callable[..., Any] = lambda: None

    def predict(self, theta: Array, logs: Array) -> Array:
        """Return the (S, n) values at inner parameters (S, p) and centred logs (k, n)."""
        values: Array = self._call(theta.T[:, :, None], logs, (len(theta), logs.shape[1]))
        return values

    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Return the (S, p, n) derivatives with respect to the inner parameters."""
        count = theta.shape[1]
        steps = theta[:, None, :] + 1j * STEP * np.eye(count)
        shape = (len(theta), count, logs.shape[1])
        slopes: Array = self._call(np.moveaxis(steps, 2, 0)[..., None], logs, shape).imag / STEP
        return slopes

    def _call(self, theta: NDArray[Any], logs: Array, shape: tuple[int, ...]) -> NDArray[Any]:
        with np.errstate(all="ignore"):  # the solver steps back from values that are not finite
            inputs = {
                name: log if name in self.raw else np.exp(log)
                for name, log in zip(self.inputs, logs, strict=True)
            }
            parameters = {
                name: np.exp(column) if logged else column
                for name, column, logged in zip(self.parameters, theta, self._logged, strict=True)
            }
            return np.broadcast_to(self.function(**inputs, **parameters), shape)


def form_of(
    function: Callable[..., Any],
    name: str,
    formula: str,
    parameters: Sequence[Parameter],
    raw: Sequence[str] = (),
) -> FunctionForm:
    """Return the form of a function such as `loss(params, tokens, E, A, a, B, b)`.

    Args:
        function: The law. Arguments that are no parameters are its inputs, the columns of a
            table. It works on arrays, of complex numbers too: no abs, and comparisons on `.real`.
        name: Name of the form.
        formula: The law as people read it.
        parameters: Name, role and units of each parameter.
        raw: Inputs that the function gets as they are in the table, not scaled: those that laws
            do not take powers of.
    """
    names = {parameter.name for parameter in parameters}
    inputs = tuple(name for name in inspect.signature(function).parameters if name not in names)
    return FunctionForm(name, formula, inputs, tuple(parameters), tuple(raw), function)


def softplus(x: NDArray[Any]) -> NDArray[Any]:
    """Return ln(1 + e^x) of real or complex numbers, without overflow."""
    positive = x.real > 0
    return np.where(positive, x, 0.0) + np.log1p(np.exp(np.where(positive, -x, x)))
