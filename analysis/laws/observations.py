"""The rows of a table that a law explains, and what their inputs say about compute and repeats.

Legend: `n` rows, `k` inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.laws.forms import Array, Form
from analysis.laws.noise import NOTHING_KNOWN, Known
from analysis.laws.repetition import effective_tokens
from tarflow.errors import UserError

Mask = NDArray[np.bool_]
Space = Literal["log", "raw"]

NO_COMPUTE = ("batch", "epochs", "group", "unique_tokens")  # inputs that do not count as compute


@dataclass(frozen=True)
class Observations:
    """Losses to explain and the inputs that explain them, one row per measurement."""

    inputs: Mapping[str, Array]  # (n,) positive values of each input of a form
    values: Array  # (n,) losses, positive in log space
    clusters: Sequence[str] | None = None  # (n,) rows of one cluster share a part of their error
    noise: Known = NOTHING_KNOWN  # of equal runs, relative in log space, unless they are rows too
    space: Space = "log"  # residuals of ln(values), with a floor of 0 or more, or of raw values
    weights: Array | None = None  # (n,) how often each row counts; once by default
    unique_tokens: float | Array = np.inf  # tokens of the training set of all rows, or (n,) of
    # each; tokens beyond them are repeats

    def take(self, rows: Mask) -> "Observations":
        """Return the rows where the (n,) mask holds."""
        chosen = np.flatnonzero(rows).tolist()
        return replace(
            self,
            inputs={name: column[chosen] for name, column in self.inputs.items()},
            values=self.values[chosen],
            clusters=None if self.clusters is None else [self.clusters[row] for row in chosen],
            weights=None if self.weights is None else self.weights[chosen],
            unique_tokens=self.unique_tokens[chosen]
            if isinstance(self.unique_tokens, np.ndarray)
            else self.unique_tokens,
        )

    def at(self, rows: NDArray[np.intp]) -> dict[str, Array]:
        """Return the inputs of rows, given by position, as `Fit.predict` takes them."""
        inputs = {name: np.asarray(column)[rows] for name, column in self.inputs.items()}
        if isinstance(self.unique_tokens, np.ndarray):
            inputs["unique_tokens"] = self.unique_tokens[rows]
        return inputs

    @property
    def compute(self) -> Array:
        """What each row cost, (n,), up to a constant factor."""
        cost: Array = np.exp(log_compute(self.inputs))
        return cost

    @property
    def counts(self) -> Array:
        """How often each row counts, (n,)."""
        given = np.ones(len(self.values)) if self.weights is None else self.weights
        return np.asarray(given, float)

    @property
    def runs(self) -> NDArray[np.intp]:
        """Number of the run of each row, (n,); every row is its own without clusters."""
        if self.clusters is None:
            return np.arange(len(self.values))
        return np.unique(np.array(self.clusters), return_inverse=True)[1]


def log_compute(inputs: Mapping[str, ArrayLike]) -> Array:
    """Return ln(compute) up to a constant: of FLOPs, else N D, else the product of the inputs.

    Width counts twice in a product, because a layer has as many weights as its width squared.
    """
    if "flops" in inputs:
        names = ["flops"]
    elif {"params", "tokens"} <= set(inputs):
        names = ["params", "tokens"]
    else:
        names = [name for name in inputs if name not in NO_COMPUTE]
        names += [name for name in names if name == "width"]
    logs: Array = np.log([np.asarray(inputs[name], float) for name in names]).sum(axis=0)
    return logs


def with_repeats(
    form: Form, inputs: Mapping[str, Array], unique_tokens: float | Array
) -> dict[str, Array]:
    """Return the inputs with epochs if the form reads them, else with tokens at their worth."""
    columns = dict(inputs)
    if "epochs" in form.inputs and "tokens" in columns:
        columns.setdefault("epochs", columns["tokens"] / unique_tokens)
    elif "tokens" in columns:
        columns["tokens"] = effective_tokens(columns["tokens"], unique_tokens)
    return columns


def shared_size(unique_tokens: float | Array) -> float:
    """Return the size of the training set, nan if rows differ."""
    least = float(np.min(unique_tokens))
    return least if np.all(unique_tokens == least) else float("nan")


def checked_columns(form: Form, data: Observations) -> tuple[Array, Array]:
    """Return the logarithms of the inputs (k, n) and the values (n,), all of them valid."""
    values = np.asarray(data.values, float)
    given = [name for name in form.inputs if name in data.inputs]
    columns = {name: np.asarray(data.inputs[name], float) for name in given}
    columns = with_repeats(form, columns, data.unique_tokens)
    if missing := [name for name in form.inputs if name not in columns]:
        raise UserError(f"the {form.name} law needs a column of {' and of '.join(missing)}")
    inputs = np.stack([columns[name] for name in form.inputs])
    if inputs.shape[1:] != values.shape or not values.size:
        raise UserError("a fit needs inputs and values of one length, at least one row")
    logged = [name for name in form.inputs if name not in form.raw]
    if not np.all(np.isfinite(inputs)) or not all(np.all(columns[name] > 0) for name in logged):
        raise UserError(f"{' and '.join(logged)} must be positive in every row")
    if not np.all(np.isfinite(values)) or (data.space == "log" and values.min() <= 0):
        raise UserError(
            "losses must be finite, and positive in log space; fit negative ones in raw space"
        )
    return form.columns(columns), values
