"""Laws in which a token seen may be worth less than one: repeated data and large batches.

Sources: Muennighoff et al. 2023, *Scaling data-constrained language models*, arXiv 2305.16264,
section 3; McCandlish et al. 2018, *An empirical model of large-batch training*, arXiv 1812.06162,
section 2, and Kaplan et al. 2020, arXiv 2001.08361, section 5.1.
"""

from types import SimpleNamespace

import numpy as np

from analysis.laws.forms.form import Parameter
from analysis.laws.forms.function import FunctionForm, Numbers

TERMS = (
    Parameter("E", "floor"),
    Parameter("A", "coefficient", {"params": "a"}),
    Parameter("a", "exponent"),
    Parameter("B", "coefficient", {"tokens": "b"}),
    Parameter("b", "exponent"),
)


def worth(excess: Numbers, limit: Numbers | float) -> Numbers:
    """Return 1 + R* (1 - exp(-R / R*)), what 1 + R rounds are worth in first ones.

    Args:
        excess: R, the rounds after the first one, 0 or more.
        limit: R*, the most that they are ever worth.
    """
    rounds: Numbers = 1 - limit * np.expm1(-excess / limit)
    return rounds


def _seen(x: SimpleNamespace, p: SimpleNamespace) -> tuple[Numbers, Numbers]:
    """Return different tokens seen, and what all tokens seen are worth."""
    unique = x.tokens / np.maximum(x.epochs, 1)
    return unique, unique * worth(np.maximum(x.epochs - 1, 0), p.R)


def _repeated(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    loss: Numbers = p.E + p.A / x.params**p.a + p.B / _seen(x, p)[1] ** p.b
    return loss


def _excess(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    unique, data = _seen(x, p)
    suited = (p.a * p.A / (p.b * p.B) * unique**p.b) ** (1 / p.a)  # best size for these tokens
    ratio = x.params / suited
    above = ratio.real > 1
    size = np.where(above, suited * worth(np.where(above, ratio - 1, 0), p.P), x.params)
    loss: Numbers = p.E + p.A / size**p.a + p.B / data**p.b
    return loss


def _batch(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    data = x.tokens / (1 + x.batch / p.K)
    loss: Numbers = p.E + p.A / x.params**p.a + p.B / data**p.b
    return loss


REPEATED = FunctionForm(
    name="repeated",
    formula="E + A / N^a + B / D'^b, D' = U + U R (1 - e^(-(D / U - 1) / R))",
    inputs=("params", "tokens", "epochs"),
    function=_repeated,
    details=(*TERMS, Parameter("R", "constant", low=0.5, high=200.0)),
    raw=("epochs",),
)
REPEATED_EXCESS = FunctionForm(
    name="repeated, excess size",
    formula="E + A / N'^a + B / D'^b, D' = U + U R (1 - e^(-(D / U - 1) / R)), N' likewise with P",
    inputs=("params", "tokens", "epochs"),
    function=_excess,
    details=(
        *TERMS,
        Parameter("R", "constant", low=0.5, high=200.0),
        Parameter("P", "constant", low=0.5, high=200.0),
    ),
    raw=("epochs",),
)
BATCH = FunctionForm(
    name="batch",
    formula="E + A / N^a + B / (D / (1 + batch / K))^b",
    inputs=("params", "tokens", "batch"),
    function=_batch,
    details=(*TERMS, Parameter("K", "position", {"batch": 1})),
)
