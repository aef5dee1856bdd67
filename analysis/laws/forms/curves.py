"""Laws of one input that bend where a power law is straight.

Sources: M3 and M4 of Alabdulmohsin, Neyshabur and Zhai 2022, arXiv 2209.06640; one smooth break,
Caballero et al. 2022, arXiv 2210.14891.
"""

from types import SimpleNamespace

import numpy as np

from analysis.laws.forms.form import Parameter
from analysis.laws.forms.function import FunctionForm, Numbers, softplus

NEWTON = 60  # steps at most; about six do
SETTLED = 1e-8  # step of the logit after which the next one is exact, because steps square


def _saturating(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    loss: Numbers = p.A * (1 / x.flops + 1 / p.d) ** p.a
    return loss


def _sigmoid(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    target = np.log(p.A / p.H) - p.a * np.log(x.flops)
    share = np.exp(-softplus(-_logit(target, p.s)))
    loss: Numbers = p.E + p.H * share
    return loss


def _logit(target: Numbers, s: Numbers) -> Numbers:
    """Solve ln w - s ln(1 - w) = target for z = ln(w / (1 - w)) by Newton's method.

    The left side rises everywhere, with a slope between 1 and s, and bends one way only, so that
    Newton's method converges from anywhere. The last step carries the complex part: a step from
    the solution is the derivative of an implicit function.
    """

    def step(z: Numbers, target: Numbers, s: Numbers) -> Numbers:
        bend = softplus(z)  # -ln(1 - w)
        move: Numbers = ((s - 1) * bend + z - target) / (1 + (s - 1) * np.exp(z - bend))
        return move

    z = np.where(target.real < 0, target.real, target.real / s.real)
    for _ in range(NEWTON):
        move = step(z, target.real, s.real)
        z = z - move
        small = np.abs(move) <= SETTLED * (1 + np.abs(z))
        if np.all(small | ~np.isfinite(move)):
            break
    return z - step(z, target, s)


def _broken(x: SimpleNamespace, p: SimpleNamespace) -> Numbers:
    bend = p.f * softplus(np.log(x.flops / p.d) / p.f)
    loss: Numbers = p.E + p.A / x.flops**p.a * np.exp(-p.c * bend)
    return loss


SATURATING = FunctionForm(
    name="saturating",
    formula="A (1 / C + 1 / d)^a",
    inputs=("flops",),
    function=_saturating,
    details=(
        Parameter("A", "coefficient", {"flops": "a"}),
        Parameter("a", "exponent"),
        Parameter("d", "position", {"flops": 1}),
    ),
)
SIGMOID = FunctionForm(
    name="sigmoid",
    formula="E + u, where u / (1 - u / H)^s = A / C^a",
    inputs=("flops",),
    function=_sigmoid,
    details=(
        Parameter("E", "floor"),
        Parameter("A", "coefficient", {"flops": "a"}),
        Parameter("a", "exponent"),
        Parameter("H", "height"),
        Parameter("s", "constant", low=0.1, high=6.0),
    ),
)
BROKEN = FunctionForm(
    name="broken",
    formula="E + A / C^a (1 + (C / d)^(1 / f))^(-c f)",
    inputs=("flops",),
    function=_broken,
    details=(
        Parameter("E", "floor"),
        Parameter("A", "coefficient", {"flops": "a"}),
        Parameter("a", "exponent"),
        Parameter("c", "exponent", low=-2.0),
        Parameter("d", "position", {"flops": 1}),
        Parameter("f", "constant", low=0.05, high=3.0),
    ),
)
