"""Allocation: optima on counted FLOPs, IsoFLOP minima, the recommended run."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.laws.allocation import Sizes, allocate, optimal_params
from analysis.laws.average import fit_law
from analysis.laws.extrapolation import Discrepancy
from analysis.laws.forms import CHINCHILLA, TIED
from analysis.laws.isoflop import isoflop
from analysis.laws.noise import NOTHING_KNOWN, Known
from analysis.laws.observations import Observations
from analysis.study.advice import learning_rate
from tarflow import cost
from tarflow.config import RunConfig
from tarflow.model_config import ModelConfig

MODEL = ModelConfig(channels=32, head_dim=16)
TEMPLATE = RunConfig(model=MODEL)


def study(budgets=(1e11, 3e11, 1e12), noise=0.0, optimum=None):
    """Runs of six widths at each budget, on a planted law or a planted parabola."""
    rng, rows = np.random.default_rng(0), []
    for number, budget in enumerate(budgets):
        for channels in (16, 32, 48, 64, 80, 96):
            model = replace(MODEL, channels=channels)
            images = budget / cost.training_flops(model)
            params, tokens = cost.params(model), images * model.tokens
            bpd = 1.4 + 30 / params**0.4 + 60 / tokens**0.4
            if optimum:
                bpd = 1.5 + 0.1 * np.log(params / optimum) ** 2
            rows.append(
                {
                    "run_id": f"{number}-{channels}",
                    "params": params,
                    "tokens": tokens,
                    "flops": budget,
                    "bpd": bpd + noise * rng.normal(),
                    "budget": number,
                    "lr": 0.01 / channels,
                }
            )
    return pd.DataFrame(rows)


def observed(runs, noise=NOTHING_KNOWN):
    inputs = {name: runs[name].to_numpy(float) for name in ("params", "tokens")}
    return Observations(inputs, runs["bpd"].to_numpy(float), noise=noise)


def axes(runs):
    return {name: runs[name].to_numpy(float) for name in ("flops", "params", "tokens")}


def law(runs, form=CHINCHILLA, noise=0.001):
    return fit_law(observed(runs, Known(noise, np.inf)), (form,), {}, draws=50)


def test_flops_per_token_of_buildable_models_are_counted():
    sizes = Sizes(MODEL)
    models = [sizes.build(width) for width in (16, 48, 96, 208)]
    params = np.array([cost.params(model) for model in models], dtype=float)
    counted = [cost.training_flops(model) / model.tokens for model in models]
    np.testing.assert_allclose(sizes.flops_per_token(params), counted, rtol=2e-3)
    assert [sizes.nearest(p * 1.05).channels for p in params] == [16, 48, 96, 208]


def test_optimal_size_is_the_least_loss_on_counted_flops():
    runs = study()
    size = optimal_params(law(runs), 1e12, Sizes(MODEL).flops_per_token)[0]
    # Every width, also those between multiples of the head width, tried one by one.
    models = [replace(MODEL, channels=width, head_dim=1) for width in range(16, 160)]
    params = np.array([cost.params(model) for model in models], dtype=float)
    tokens = np.array([1e12 / cost.training_flops(m) * m.tokens for m in models])
    best = params[np.argmin(1.4 + 30 / params**0.4 + 60 / tokens**0.4)]
    assert size == pytest.approx(best, rel=0.03)


def test_forms_with_one_exponent_do_not_say_how_sizes_grow():
    """The tied form always takes the square root of compute, so it is not asked."""
    runs = study(noise=0.001)
    both = fit_law(observed(runs), (TIED, CHINCHILLA), axes(runs), draws=400)
    alone = fit_law(observed(runs), (CHINCHILLA,), axes(runs), draws=400)
    assert min(both.weights) > 0
    widths = [
        np.log(np.divide(*allocate(4e12, runs, TEMPLATE, one, ()).params_interval[::-1]))
        for one in (both, alone, fit_law(observed(runs), (TIED,), axes(runs), draws=400))
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)
    assert widths[2] < widths[1] / 2


def test_allocation_is_buildable_and_costs_the_budget():
    runs = study(noise=0.001)
    surface = law(runs)
    allocation = allocate(4e12, runs, TEMPLATE, surface, ())
    model = replace(MODEL, channels=allocation.channels)
    assert allocation.source == "surface law"
    assert allocation.channels % MODEL.head_dim == 0
    assert allocation.images % TEMPLATE.batch == 0
    assert allocation.images * cost.training_flops(model) == pytest.approx(4e12, rel=0.01)
    assert allocation.params_interval[0] < allocation.params < allocation.params_interval[1]
    assert allocation.bpd_interval[0] < allocation.bpd < allocation.bpd_interval[1]
    assert allocation.extrapolated
    assert not allocate(5e11, runs, TEMPLATE, surface, ()).extrapolated


def test_no_model_smaller_than_those_trained_is_chosen():
    runs = study()
    runs["bpd"] = 1.4 + 0.3 / runs["params"] ** 0.4 + 60 / runs["tokens"] ** 0.4
    allocation = allocate(4e12, runs, TEMPLATE, law(runs, TIED, 1e-4), ())
    assert allocation.source == "surface law"
    assert allocation.params == allocation.model_params == runs["params"].min()
    assert "the smallest model trained" in allocation.edge
    assert not allocate(4e12, study(), TEMPLATE, law(study()), ()).edge


def test_isoflop_finds_the_planted_minimum():
    exact = isoflop(study((1e12,), optimum=2e5), noise=0.002)
    assert exact.params == pytest.approx(2e5, rel=1e-6)
    assert exact.bpd == pytest.approx(1.5, abs=1e-9)
    assert exact.edge == ""
    assert exact.params_interval[0] < 2e5 < exact.params_interval[1]
    assert exact.predict([2e5 * np.e])[0] == pytest.approx(1.6)


@pytest.mark.parametrize(("optimum", "edge"), [(1e3, "smallest"), (1e7, "largest")])
def test_a_minimum_outside_the_range_is_at_the_edge(optimum, edge):
    runs = study((1e12,), optimum=optimum)
    minimum = isoflop(runs)
    assert minimum.edge == edge
    sizes = sorted(runs["params"])
    assert minimum.params == pytest.approx(sizes[0] if edge == "smallest" else sizes[-1])


def test_two_sizes_make_no_parabola():
    assert isoflop(study((1e12,)).head(2)) is None


def test_roll_outs_that_fail_widen_sizes_but_not_beyond_all_numbers():
    runs = study(noise=0.0005)
    surface = law(runs, noise=0.0005)
    trusted = allocate(1e13, runs, TEMPLATE, surface, [])
    doubted = replace(surface, discrepancy=Discrepancy(factor=1e3, tested=0.0))
    allocation = allocate(1e13, runs, TEMPLATE, doubted, [])
    assert (allocation.source, allocation.params) == ("surface law", trusted.params)
    low, high = allocation.params_interval
    assert runs["params"].min() <= low < trusted.params_interval[0]
    assert trusted.params_interval[1] < high <= 1e4 * trusted.params * 1.001


def test_without_a_trusted_surface_the_minima_lead():
    runs = study(noise=0.0005)
    minima = [isoflop(part, 0.0005) for _, part in runs.groupby("budget")]
    allocation = allocate(4e12, runs, TEMPLATE, None, minima)
    surface = optimal_params(law(runs), 4e12, Sizes(MODEL).flops_per_token)[0]
    assert allocation.source == "IsoFLOP minima"
    assert allocation.bpd is None
    assert allocation.params == pytest.approx(surface, rel=0.35)


def test_without_minima_the_best_run_leads_and_says_it_is_at_the_edge():
    runs = study((1e12,), optimum=1e7)
    allocation = allocate(4e12, runs, TEMPLATE, None, [isoflop(runs)])
    assert allocation.source == "best run"
    assert allocation.channels == 96
    assert "largest" in allocation.edge


def test_learning_rate_follows_the_size_and_stays_inside():
    runs = study((1e12,))
    rate = learning_rate(runs)
    rates = [rate(params) for params in (1e3, *runs["params"], 1e9)]
    assert rates[1:-1] == pytest.approx(runs["lr"].tolist())
    assert (rates[0], rates[-1]) == (rates[1], rates[-2])
    between = rate(np.sqrt(runs["params"][0] * runs["params"][1]))
    assert between == pytest.approx(np.sqrt(runs["lr"][0] * runs["lr"][1]))
