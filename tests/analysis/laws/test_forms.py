"""The forms: exact derivatives, parameters of the formula, planted laws, forms by name."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from analysis.laws.fit import fit
from analysis.laws.forms import (
    CHINCHILLA,
    FORMS,
    FRONTIER_FORMS,
    GAMMA_FORM,
    POWER,
    SURFACE_FORMS,
    FunctionForm,
    Parameter,
    additive,
    check_form,
    find_form,
    grouped,
    shape_forms,
)
from analysis.laws.observations import Observations
from tarflow.errors import UserError

RNG = np.random.default_rng(0)
EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_law.py"
TRUTH = {
    **{"E": 1.42, "A": 30.0, "a": 0.4, "B": 46.0, "b": 0.37, "g": 1.2},
    **{"C": 4.0, "c": 0.3, "F": 90.0, "f": 0.41, "R": 8.0, "P": 4.0},
}
# What formulas of many letters mean by those that others use differently.
OWN = {
    "saturating": {"d": 1e6},
    "sigmoid": {"A": 20.0, "a": 0.3, "H": 3.0, "s": 0.6},
    "broken": {"a": 0.1, "d": 3e5, "f": 0.4},
    "batch": {"K": 300.0},
}
RANGES = {
    **{"params": (2e4, 1e6), "tokens": (1e5, 2e7), "flops": (1e3, 1e9), "width": (64, 1024)},
    **{"depth": (2, 32), "blocks": (2, 16), "batch": (8, 4096), "epochs": (0.1, 30)},
}
EVERY = [
    *FORMS.values(),
    grouped(POWER, 3),
    grouped(CHINCHILLA, 2, ("E", "A", "B")),
    grouped(FORMS["batch"], 2),
]


def named(form):
    return form.name


def table(form, rows=100):
    """Return inputs of a form, at random within RANGES."""
    rng = np.random.default_rng(5)
    inputs = {name: np.exp(rng.uniform(*np.log(RANGES[name]), rows)) for name in form.inputs[:-1]}
    last = form.inputs[-1]
    if last == "group":
        return inputs | {last: np.arange(rows) % 2.0}
    return inputs | {last: np.exp(rng.uniform(*np.log(RANGES[last]), rows))}


def by_hand(form, x, p):
    """Return the loss of a printed formula, written here again."""
    N, D, C = (x.get(name) for name in ("params", "tokens", "flops"))
    if form.name == "saturating":
        return p["A"] * (1 / C + 1 / p["d"]) ** p["a"]
    if form.name == "broken":
        bend = (1 + (C / p["d"]) ** (1 / p["f"])) ** (-p["c"] * p["f"])
        return p["E"] + p["A"] / C ** p["a"] * bend
    if form.name == "sigmoid":  # by bisection
        low, high = np.zeros_like(C), np.full_like(C, p["H"])
        for _ in range(100):
            u = (low + high) / 2
            above = u / (1 - u / p["H"]) ** p["s"] > p["A"] / C ** p["a"]
            low, high = np.where(above, low, u), np.where(above, u, high)
        return p["E"] + u
    size, data = N, D
    if form.name == "batch":
        data = D / (1 + x["batch"] / p["K"])
    if "epochs" in x:
        unique, repeats = D / np.maximum(x["epochs"], 1), np.maximum(x["epochs"] - 1, 0)
        data = unique * (1 + p["R"] * (1 - np.exp(-repeats / p["R"])))
        if "P" in p:
            balance = p["a"] * p["A"] / (p["b"] * p["B"])
            base = np.minimum((balance * unique ** p["b"]) ** (1 / p["a"]), N)
            assert 0.1 < np.mean(base < N) < 0.9
            size = base * (1 + p["P"] * (1 - np.exp(-(N / base - 1) / p["P"])))
        return p["E"] + p["A"] / size ** p["a"] + p["B"] / data ** p["b"]
    columns = {**x, "params": size, "tokens": data}
    columns = [columns[name] for name in form.inputs if name != "batch"]
    letters = [name for name in "ABCF" if name in p]
    total = sum(
        p[letter] / column ** p.get(letter.lower(), p["a"])
        for letter, column in zip(letters, columns, strict=True)
    )
    return p.get("E", 0) + total ** p.get("g", 1)


@pytest.mark.parametrize("form", EVERY, ids=named)
def test_jacobian_is_the_derivative_of_predict(form):
    logs = RNG.normal(size=(len(form.inputs), 9))
    for row, name in zip(logs, form.inputs, strict=True):
        row[:] = {"epochs": np.linspace(0.3, 9, 9), "group": np.arange(9) % 2}.get(name, row)
    theta = form.starts(np.linspace(1.5, 4, 9), 0.0, 8, logs)
    exact = form.jacobian(theta, logs)
    for j in range(len(form.parameters)):
        step = np.zeros(len(form.parameters))
        step[j] = 1e-6
        slope = (form.predict(theta + step, logs) - form.predict(theta - step, logs)) / 2e-6
        np.testing.assert_allclose(exact[:, j], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", EVERY, ids=named)
def test_units_change_parameters_but_not_the_law(form):
    check_form(form)


@pytest.mark.parametrize("form", FORMS.values(), ids=named)
def test_exact_rows_give_the_planted_law(form):
    inputs = table(form)
    truth = {name: (TRUTH | OWN.get(form.name, {}))[name] for name in form.parameters}
    law = fit(form, Observations(inputs, by_hand(form, inputs, truth)), draws=0, starts=40)
    for name, value in law.values.items():
        assert value == pytest.approx(truth[name], rel=1e-6), name


def test_groups_share_exponents_and_keep_their_floors():
    """Intervals of the shared exponents hold the truth; one floor for all misses it."""
    form, rng = grouped(CHINCHILLA, 3), np.random.default_rng(2)
    inputs = {name: 10 ** rng.uniform(4, 7, 90) for name in ("params", "tokens")}
    inputs["group"] = np.arange(90) % 3.0
    floors = np.array([1.2, 1.42, 1.9])[inputs["group"].astype(int)]
    exact = floors + 30 / inputs["params"] ** 0.4 + 46 / inputs["tokens"] ** 0.37
    inside = 0
    for seed in range(20):
        values = exact * np.exp(0.004 * np.random.default_rng(seed).normal(size=90))
        law = fit(form, Observations(inputs, values), starts=8, draws=100, seed=seed)
        ends = {name: law.intervals[name] for name in ("a", "b")}
        inside += sum(low <= TRUTH[name] <= high for name, (low, high) in ends.items())
    assert 28 <= inside <= 40  # 36 expected
    assert law.values["E[2]"] - law.values["E[0]"] == pytest.approx(0.7, abs=0.02)
    at = {"params": 1e6, "tokens": 1e7}
    gap = law.predict(**at, group=2) - law.predict(**at, group=0)
    assert gap == pytest.approx(0.7, abs=0.02)
    with pytest.raises(UserError, match="from 0 to 2"):
        law.predict(**at, group=3)
    with pytest.raises(UserError, match="cannot share A: add it to own"):
        grouped(CHINCHILLA, 2, ("E", "a"))


def test_batches_above_the_critical_one_need_more_tokens():
    rng, rows = np.random.default_rng(4), 80
    inputs = {name: 10 ** rng.uniform(4, 7, rows) for name in ("params", "tokens")}
    inputs["batch"] = 2.0 ** rng.integers(3, 13, rows)
    data = inputs["tokens"] / (1 + inputs["batch"] / 300)
    exact = 1.42 + 30 / inputs["params"] ** 0.4 + 46 / data**0.37
    inside = 0
    for seed in range(20):
        values = exact * np.exp(0.004 * np.random.default_rng(seed).normal(size=rows))
        law = fit(FORMS["batch"], Observations(inputs, values), starts=8, draws=100, seed=seed)
        inside += law.intervals["K"][0] <= 300 <= law.intervals["K"][1]
    assert inside >= 14  # 18 expected
    truth = 1.42 + 30 / 1e6**0.4 + 46 / (1e7 / 101) ** 0.37
    assert law.predict(params=1e6, tokens=1e7, batch=30_000) == pytest.approx(truth, rel=0.02)


def test_shape_forms_are_nested_and_tell_width_from_depth():
    """Rows whose loss depends on the shape: a law of N and D alone is off by far more."""
    rng, rows = np.random.default_rng(3), 120
    width, depth = 2.0 ** rng.uniform(6, 10, rows), 2.0 ** rng.uniform(1, 6, rows)
    inputs = {"width": width, "depth": depth, "params": 12 * depth * width**2}
    inputs["tokens"] = 10 ** rng.uniform(7, 10, rows)
    values = 1.5 + 8 / width**0.6 + 2 / depth**0.7 + 60 / inputs["tokens"] ** 0.3
    data = Observations(inputs, values * np.exp(0.003 * rng.normal(size=rows)))
    small, _, large = shape_forms(list(inputs))
    assert [*small.inputs] == ["params", "tokens"]
    assert [*large.inputs] == ["width", "depth", "params", "tokens"]
    shape = additive("shape", "width", "depth", "tokens")
    errors = [np.std(fit(form, data, draws=0).residuals) for form in (small, shape)]
    assert errors[1] < 0.004 < 5 * errors[1] < errors[0]


def test_a_form_in_a_file_is_found_and_fits_its_planted_law(capsys):
    form = find_form(f"{EXAMPLE}:INTERACTION")
    inputs = table(form)
    values = 1.5 + 30 / inputs["params"] ** 0.4
    values += 46 * inputs["params"] ** 0.1 / inputs["tokens"] ** 0.5
    law = fit(form, Observations(inputs, values), draws=0)
    truth = {"E": 1.5, "A": 30, "a": 0.4, "B": 46, "k": -0.1, "b": 0.5}
    assert law.values == pytest.approx(truth, rel=1e-6)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert re.search(r"^k = -0\.1.* \(90% interval -0\.", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chincilla", "no form 'chincilla': did you mean 'chinchilla'? The forms are 'power"),
        ("none.py:FORM", "no file none.py"),
        (f"{EXAMPLE}:OTHER", "has no form OTHER: it has INTERACTION"),
        (f"{__file__[:-3]}_broken.py:FORM", "no file"),
    ],
)
def test_a_form_that_is_not_there_says_which_are(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        find_form(name)


def test_a_file_that_cannot_be_run_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"mine.py cannot be run: ModuleNotFoundError"):
        find_form(f"{tmp_path / 'mine.py'}:FORM")


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        (Parameter("A", "coefficient"), "changes with the unit of flops"),
        (Parameter("A", "coefficient", {"flops": "b"}), "units of A name 'b'"),
        (Parameter("A", "coefficient", {"tokens": "a"}), "units of A name 'tokens'"),
        (Parameter("A", "constant", {"flops": "a"}), "give A a low and a high"),
    ],
)
def test_a_form_whose_parameters_cannot_be_right_is_refused(detail, message):
    details = (Parameter("E", "floor"), detail, Parameter("a", "exponent"))
    form = FunctionForm(
        "mine", "E + A / C^a", ("flops",), details, function=lambda x, p: p.E + p.A / x.flops**p.a
    )
    with pytest.raises(UserError, match=message):
        check_form(form)


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
