import numpy as np
import pytest

from analysis.laws.belief import believe
from analysis.laws.forms import CHINCHILLA, SURFACE_FORMS, TIED
from analysis.laws.next_runs import next_runs, observe
from analysis.laws.noise import Known
from analysis.laws.observations import Observations

SIZES, TOKENS = np.geomspace(1e7, 1e9, 6), np.geomspace(2e8, 2e10, 6)
GRID = {"params": np.repeat(SIZES, 6), "tokens": np.tile(TOKENS, 6)}
COSTS = 6 * GRID["params"] * GRID["tokens"]
TARGET = {"params": np.array([1e10]), "tokens": np.array([2e11])}
NOISE = 0.003


def planted(rng):
    """Return a law of random parameters, whose terms are equal in the middle of the grid."""
    floor, share = rng.uniform(1, 2), rng.uniform(0.5, 1.5)
    a, b = rng.uniform(0.25, 0.45, 2)

    def loss(params, tokens):
        terms = (params / 1e8) ** -a + share * (tokens / 2e9) ** -b
        return (floor + terms) * np.exp(NOISE * rng.standard_normal(np.shape(params)))

    return loss


def taken(runs, losses):
    return Observations(
        {name: x[runs] for name, x in GRID.items()}, losses[runs], noise=Known(NOISE, np.inf)
    )


def miss(runs, losses, truth):
    """Return the error at the target of what these runs say."""
    return abs(float(believe(SURFACE_FORMS, taken(runs, losses), TARGET).mean[0] - np.log(truth)))


def spend(order, budget):
    """Return the first runs of an order, as many as the budget pays for."""
    return list(order[: int(np.searchsorted(np.cumsum(COSTS[order]), budget))])


def test_chosen_runs_predict_better_than_random_runs_of_the_same_cost():
    ours, random = [], []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        loss = planted(rng)
        losses, truth = loss(**GRID), float(loss(TARGET["params"], TARGET["tokens"])[0])
        first = list(rng.permutation(np.argsort(COSTS)[:11])[:3])
        budget = 0.02 * COSTS.sum()
        rest = np.setdiff1d(np.arange(len(COSTS)), first)
        offered = {name: x[rest] for name, x in GRID.items()}
        # The budget pays for at most 8.
        runs = next_runs(taken(first, losses), offered, COSTS[rest], TARGET, count=12)
        chosen = spend(rest[[run.candidate for run in runs]], budget)
        ours.append(miss(first + chosen, losses, truth))
        random.append(miss(first + spend(rng.permutation(rest), budget), losses, truth))
    assert np.mean(ours) < 0.7 * np.mean(random)


def test_the_variance_foretold_is_that_of_a_fit_with_the_run():
    rng = np.random.default_rng(1)
    losses = planted(rng)(**GRID)
    first = list(rng.permutation(len(COSTS))[:8])
    for run in next_runs(taken(first, losses), GRID, COSTS, TARGET, count=1):
        belief = believe(SURFACE_FORMS, taken([*first, run.candidate], losses), TARGET)
        achieved = belief.deviation(np.array([0]))
        assert run.after < run.before
        assert 0.67 < achieved / run.after < 1.5


def test_a_run_is_counted_exactly_when_the_law_is_linear():
    """One form, and a fit that does not move: conditioning equals fitting again."""
    truth = CHINCHILLA.starts(np.ones(1), 0.0, 256).mean(axis=0)[None]
    points = np.log(np.stack([GRID["params"], GRID["tokens"]]))
    losses = CHINCHILLA.predict(truth, points - points.mean(axis=1, keepdims=True))[0]
    every = list(range(len(COSTS)))
    before = believe([CHINCHILLA], taken(every, losses), GRID)
    after = observe(before, 35)
    twice = {name: np.append(x, x[35]) for name, x in GRID.items()}
    again = Observations(twice, np.append(losses, losses[35]), noise=Known(NOISE, np.inf))
    refit = believe([CHINCHILLA], again, GRID)
    assert np.sqrt(after.covariance[35, 35]) < 0.99 * np.sqrt(before.covariance[35, 35])
    np.testing.assert_allclose(
        np.diag(after.covariance), np.diag(refit.covariance), rtol=0.1, atol=1e-9
    )


def test_copies_of_runs_say_nothing_new_about_a_far_one():
    """No form is exactly right, so the same runs eight times do not make the law certain."""
    losses = planted(np.random.default_rng(2))(**GRID)
    once, often = (
        believe([TIED], taken(np.tile(np.arange(36), copies), losses), TARGET) for copies in (1, 8)
    )
    far = np.array([0])
    assert often.deviation(far) > 0.8 * once.deviation(far)


def test_cheap_neighbours_are_not_worth_their_cost():
    loss = planted(np.random.default_rng(2))
    corner = {"params": np.full(300, 1e7), "tokens": np.geomspace(2e8, 2.2e8, 300)}
    seen = Observations(corner, loss(**corner), noise=Known(NOISE, np.inf))
    offered = {name: np.append(x[:1], GRID[name][-1:]) for name, x in corner.items()}
    chosen = next_runs(seen, offered, np.array([1.0, 1000.0]), TARGET, count=1)
    assert chosen[0].candidate == 1


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_fewer_runs_than_parameters_are_enough_to_start(rows):
    losses = planted(np.random.default_rng(3))(**GRID)
    runs = next_runs(taken(list(range(rows)), losses), GRID, COSTS, TARGET, count=5)
    after = [run.after for run in runs]
    assert len({run.candidate for run in runs}) == 5
    assert np.all(np.diff([runs[0].before, *after]) < 0)


def test_form_with_evidence_outweighs_others():
    rng = np.random.default_rng(4)
    size, data = (GRID["params"] / 1e8) ** -0.2, (GRID["tokens"] / 2e9) ** -0.6
    losses = (1 + size + data) * np.exp(1e-3 * rng.standard_normal(len(COSTS)))
    forms = believe([TIED, CHINCHILLA], taken(list(range(36)), losses), TARGET).forms
    assert forms["chinchilla"] > 0.95
