"""Each check of a design on a design that has the flaw, and on one that has not."""

import numpy as np
import pandas as pd
import pytest

from analysis.laws import design
from analysis.laws.isoflop import isoflop

SIZES = np.array([1e5, 3e5, 1e6, 3e6])
RECIPE = {"batch": "the batch size"}


def table(params, tokens, **more):
    runs = pd.DataFrame({"params": params, "tokens": tokens} | more)
    bpd = 1.2 + 60 / runs["params"] ** 0.4 + 90 / runs["tokens"] ** 0.4
    return runs.assign(flops=6 * runs["params"] * runs["tokens"], bpd=bpd)


def grid(**more):
    """Four sizes at three budgets."""
    params, budgets = np.tile(SIZES, 3), np.repeat([1e12, 4e12, 1.6e13], 4)
    return table(params, budgets / params / 6, **more)


def test_a_sound_grid_raises_no_doubt():
    runs = grid(lr=1e-2 * np.tile(SIZES, 3) ** -0.3, batch=64)
    assert design.doubts(runs, noise=0.002, recipe=RECIPE) == []


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (20 * SIZES, "D = 20 N"),
        (SIZES**0.5 * 1e4, "D proportional to N^0.5"),
        (1e12 / SIZES, "best size of one budget"),
        (np.full(4, 1e7), "about 10M tokens"),
    ],
)
def test_runs_on_one_line_do_not_tell_size_from_data(tokens, words):
    (line,) = design.one_line(table(SIZES, tokens))
    assert words in line


def test_three_configs_off_the_line_tell_size_from_data():
    def with_others(others):
        return table([*SIZES, *SIZES[:others]], [*20 * SIZES, *80 * SIZES[:others]])

    (line,) = design.one_line(with_others(2))
    assert line.startswith("Only 2 of 6")
    assert design.one_line(with_others(3)) == []
    # More seeds of the same config are no other config.
    assert len(design.one_line(pd.concat([with_others(2)] * 3))) == 1


def test_budgets_whose_best_size_is_not_bracketed_are_named():
    runs = grid().assign(run_id=range(12))
    budget = runs[runs.index < 4]
    assert design.sizes_at_the_edge([isoflop(budget, 0.0005)]) == []
    (line,) = design.sizes_at_the_edge([isoflop(budget.iloc[1:], 0.0005)])
    assert "1e12 FLOPs, the smallest size" in line
    assert "at most" in line


def test_a_last_gain_below_the_noise_of_seeds_is_named():
    runs = grid()
    best = runs.groupby(runs.index // 4)["bpd"].min()
    gain = float(best.iloc[-2] - best.iloc[-1])
    assert "seeds alone" in design.last_gain(runs, gain)[0]
    assert design.last_gain(runs, gain / 2) == []
    assert design.last_gain(runs, None) == []


@pytest.mark.parametrize(("best", "edge"), [(1e-3, "smallest"), (3e-3, ""), (9e-3, "largest")])
def test_the_best_rate_of_the_largest_size_may_be_at_the_edge(best, edge):
    runs = table(np.repeat(SIZES, 3), 1e7, lr=[1e-3, 3e-3, 9e-3] * 4)
    tuned = np.where(runs["params"] == SIZES[-1], best, 3e-3)  # smaller sizes are bracketed
    runs["bpd"] += 0.01 * np.log(runs["lr"] / tuned) ** 2
    lines = design.rate_at_the_edge(runs)
    assert [edge in line for line in lines] == [True] * bool(edge)


def test_a_rate_that_follows_no_power_of_the_size_is_named():
    lr = 1e-2 * SIZES**-0.3
    assert design.rates_without_a_rule(table(SIZES, 1e7, lr=lr)) == []
    assert design.rates_without_a_rule(table(SIZES, 1e7, lr=1e-3)) == []
    (line,) = design.rates_without_a_rule(table(SIZES, 1e7, lr=lr * [1, 1, 3, 1]))
    assert "at 1M" in line
    tuned = table(np.repeat(SIZES, 2), 1e7, lr=[1e-3, 2e-3, 4e-3, 1e-3] * 2)
    assert design.rates_without_a_rule(tuned) == []


def test_a_setting_that_changes_with_the_size_is_named():
    (line,) = design.recipe_by_size(grid(batch=np.tile([32, 32, 64, 64], 3)), RECIPE)
    assert line.startswith("The batch size changes")
    assert "64 at 3M" in line
    # Another batch at one budget of one size is an experiment, not a change of recipe.
    assert design.recipe_by_size(grid(batch=[32] * 11 + [64]), RECIPE) == []
