"""The forms: exact derivatives, parameters of the formula, closed-form optimum."""

import numpy as np
import pytest

from analysis.laws.forms import CHINCHILLA, FRONTIER_FORMS, GAMMA_FORM, SURFACE_FORMS

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("form", [*FRONTIER_FORMS, *SURFACE_FORMS], ids=lambda form: form.name)
def test_jacobian_is_the_derivative_of_predict(form):
    logs = RNG.normal(size=(len(form.inputs), 9))
    theta = form.starts(np.array([1.5, 2.0, 4.0]), 0.0, 8)
    exact = form.jacobian(theta, logs)
    for j in range(len(form.parameters)):
        step = np.zeros(len(form.parameters))
        step[j] = 1e-6
        slope = (form.predict(theta + step, logs) - form.predict(theta - step, logs)) / 2e-6
        np.testing.assert_allclose(exact[:, j], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", [*FRONTIER_FORMS, *SURFACE_FORMS], ids=lambda form: form.name)
def test_natural_parameters_are_those_of_the_formula(form):
    raw = RNG.normal(size=(len(form.inputs), 9)) + 12
    centre = raw.mean(axis=1)
    theta = form.starts(np.array([1.5, 2.0, 4.0]), 0.0, 3)
    value = form.predict(theta, raw - centre[:, None])
    for row, expected in zip(form.natural(theta, centre), value, strict=True):
        p = dict(zip(form.parameters, row, strict=True))
        total = p["A"] / np.exp(raw[0]) ** p["a"]
        if "B" in p:
            total = total + p["B"] / np.exp(raw[1]) ** p.get("b", p["a"])
        np.testing.assert_allclose(p.get("E", 0) + total ** p.get("g", 1), expected, rtol=1e-12)


@pytest.mark.parametrize("form", [CHINCHILLA, GAMMA_FORM], ids=lambda form: form.name)
def test_optimum_beats_its_neighbours(form):
    """The closed form (Hoffmann et al. 2022, eq. 4); an outer power does not move the optimum."""
    natural = {"E": 1.7, "A": 400.0, "a": 0.34, "B": 900.0, "b": 0.28, "g": 1.3}
    inner = natural | {"A": np.log(natural["A"]), "B": np.log(natural["B"])}
    theta = np.array([[inner[name] for name in form.parameters]])
    flops, a, b = 1e20, natural["a"], natural["b"]
    balance = (a * natural["A"] / (b * natural["B"])) ** (1 / (a + b))
    params = balance * (flops / 6) ** (b / (a + b))

    def loss(n):
        return form.predict(theta, np.log([[n], [flops / 6 / n]])).item()

    def by_hand(n):
        total = natural["A"] / n**a + natural["B"] / (flops / 6 / n) ** b
        return natural["E"] + total ** (natural["g"] if "g" in form.parameters else 1)

    assert loss(params) == pytest.approx(by_hand(params))
    assert loss(params) < min(loss(params * 1.01), loss(params / 1.01))
