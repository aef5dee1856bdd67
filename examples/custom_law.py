"""A custom law in ten lines: usable by name, with starts, bounds and intervals.

    python examples/custom_law.py

Here the value of data depends on the size of the model. Write the law as you read it. Inputs
arrive divided by their geometric mean, so say which parameters that changes: `units` gives the
power of each input by which a parameter is multiplied.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.laws.fit import fit
from analysis.laws.forms import FunctionForm, Parameter
from analysis.laws.observations import Observations


def loss(x: SimpleNamespace, p: SimpleNamespace) -> Any:
    """Return the loss; `x` holds the inputs and `p` the parameters, by name."""
    return p.E + p.A / x.params**p.a + p.B / (x.params**p.k * x.tokens**p.b)


INTERACTION = FunctionForm(
    name="interaction",
    formula="E + A / N^a + B / (N^k D^b)",
    inputs=("params", "tokens"),
    function=loss,
    details=(
        Parameter("E", "floor"),
        Parameter("A", "coefficient", {"params": "a"}),
        Parameter("a", "exponent"),
        Parameter("B", "coefficient", {"params": "k", "tokens": "b"}),
        Parameter("k", "exponent", low=-2.0),
        Parameter("b", "exponent"),
    ),
)


def main() -> None:
    """Fit the law to a table of it."""
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(6, 9, 80), 10 ** rng.uniform(8, 11, 80)
    values = 1.6 + 200 / params**0.35 + 3000 / (params**-0.1 * tokens**0.45)
    rows = {"params": params, "tokens": tokens}
    law = fit(INTERACTION, Observations(rows, values * np.exp(0.002 * rng.normal(size=80))))
    for name, value in law.values.items():
        low, high = law.intervals[name]
        print(f"{name} = {value:.4g} (90% interval {low:.4g} to {high:.4g})")


if __name__ == "__main__":
    main()
