"""What a design cannot tell, whatever law is fitted to it: plain sentences, before any fit.

Each check reads a table with one row per run and returns the sentences that apply, often none.
Columns: `params`, `tokens`, `flops` and `bpd`, or any other loss under that name; checks of the
recipe also read `lr`, `channels` and the columns they are given, as far as they are there.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import theilslopes

from analysis.laws.isoflop import IsoFlop
from analysis.laws.validation import levels
from tarflow.human import count, names, number, power

ON_THE_LINE = 1.25  # ratio to the tokens of a line up to which a run lies on it
SAME = 1.5  # ratio up to which all sizes, or all tokens, count as one
FEWEST = 3  # configs off the line that tell size from data
PAIRS = 1000  # configs from which the slope of the line is found
RULE = 1.25  # ratio by which a learning rate may miss a power law of the size


def doubts(
    runs: pd.DataFrame, noise: float | None = None, recipe: Mapping[str, str] | None = None
) -> list[str]:
    """Return what these runs cannot tell, most fundamental first.

    Args:
        runs: Table of finished runs.
        noise: Standard deviation between equal runs, in units of `bpd`; None if unknown.
        recipe: Columns that should not depend on the size, with their names in words.
    """
    return [
        *one_line(runs),
        *last_gain(runs, noise),
        *rate_at_the_edge(runs),
        *rates_without_a_rule(runs),
        *recipe_by_size(runs, recipe or {}),
    ]


def one_line(runs: pd.DataFrame) -> list[str]:
    """Say that size and data change together, so that nothing tells one from the other."""
    configs = runs.drop_duplicates(["params", "tokens"]).sort_values(["tokens", "params"])
    for column, words, effect in (("params", "parameters", "size"), ("tokens", "tokens", "data")):
        values = configs[column].to_numpy(float)
        if values.max() <= SAME * values.min():
            middle = count(float(np.median(values)))
            return [f"All runs have about {middle} {words}: they tell nothing about {effect}."]
    x, y = (np.log(configs[name].to_numpy(float)) for name in ("params", "tokens"))
    every = -(-len(x) // PAIRS)
    slope = float(theilslopes(y[::every], x[::every])[0])
    above = y - slope * x
    off = int(np.sum(np.abs(above - np.median(above)) > np.log(ON_THE_LINE)))
    if off >= FEWEST:
        return []
    ray = abs(slope - 1) < 0.1
    line = f"D = {np.exp(np.median(y - x)):.3g} N" if ray else f"D proportional to N^{slope:.2g}"
    if off:
        return [f"Only {off} of {len(x)} configs lie off {line}: A against B rests on them alone."]
    told = (
        "E and how the loss falls along it, but not what size and data do alone (A against B). "
        "Fit the loss against FLOPs (--flops)"
    )
    if slope < 0:
        told = "the best size of one budget, but not how the loss falls with compute. Add budgets"
    spread = np.linalg.svd(np.stack([x - x.mean(), y - y.mean()]), compute_uv=False)
    condition = spread[0] / max(spread[1], 1e-6 * spread[0])
    return [
        f"All runs lie on one line, {line} (condition number {condition:,.0f}): they tell {told}, "
        f"or train {FEWEST} or more configs off the line."
    ]


def sizes_at_the_edge(minima: Sequence[IsoFlop]) -> list[str]:
    """Say at which budgets the sizes tried do not bracket the best one."""
    lines = []
    for item in minima:
        low, high = item.params_interval
        bound = f"at least {count(low)}" if low > 0 else f"at most {count(high)}"
        known = f" It has {bound} parameters (95%)." if low > 0 or high < np.inf else ""
        if item.edge:
            lines.append(
                f"At {power(item.flops)} FLOPs, the {item.edge} size tried may be the best: the "
                f"runs of this budget do not bracket the best size beyond their noise.{known}"
            )
    return lines


def last_gain(runs: pd.DataFrame, noise: float | None) -> list[str]:
    """Say that the largest budget gained less than the noise between seeds."""
    budgets = levels(runs["flops"].to_numpy(float))
    if noise is None or len(budgets) < 2:
        return []
    before, last = (
        float(runs.iloc[rows].groupby("params")["bpd"].mean().min()) for rows in budgets[-2:]
    )
    if not 0 <= before - last < np.sqrt(2) * noise:
        return []
    return [
        f"The largest budget is better than the one before by {number(before - last)}, and seeds "
        f"alone make {number(float(np.sqrt(2)) * noise)}: the last runs say little about how the "
        "loss continues. Train more seeds at the largest budget, or a still larger budget."
    ]


def rate_at_the_edge(runs: pd.DataFrame) -> list[str]:
    """Say that the largest size is best at the smallest or largest learning rate it was given."""
    if "lr" not in runs:
        return []
    largest = runs[runs["params"] == runs["params"].max()]
    for rows in reversed(levels(largest["flops"].to_numpy(float))):
        mean = largest.iloc[rows].groupby("lr")["bpd"].mean()
        if len(mean) < 2:
            continue
        best = float(mean.index[int(np.argmin(mean))])
        edge = {mean.index[0]: "smallest", mean.index[-1]: "largest"}.get(best)
        if edge is None:
            return []
        beyond = "smaller" if edge == "smallest" else "larger"
        return [
            f"At the largest size, the {edge} learning rate tried ({best:.3g}) is the best: try "
            f"{beyond} ones, or the law takes a bad rate for an effect of size."
        ]
    return []


def rates_without_a_rule(runs: pd.DataFrame) -> list[str]:
    """Say that each size has one learning rate, and that no power of the size explains them."""
    if "lr" not in runs:
        return []
    width = "channels" if "channels" in runs else "params"
    rates = runs.groupby(width)["lr"]
    if rates.nunique().max() > 1 or len(rates) < 3:
        return []  # tuned, or too few sizes to contradict a rule
    lr = rates.first()
    x, y = np.log(lr.index.to_numpy(float)), np.log(lr.to_numpy(float))
    miss = np.abs(y - np.polyval(np.polyfit(x, y, 1), x))
    if miss.max() <= np.log(RULE):
        return []
    odd = int(miss.argmax())
    return [
        f"Learning rates follow no power of {width}: {np.exp(y[odd]):.3g} at "
        f"{count(float(np.exp(x[odd])))} is {np.exp(miss[odd]):.2g} times off. The law takes this "
        "for an effect of size."
    ]


def recipe_by_size(runs: pd.DataFrame, recipe: Mapping[str, str]) -> list[str]:
    """Say which settings have no value that all sizes were trained with."""
    lines = []
    for column, words in recipe.items():
        if column not in runs:
            continue
        values = {
            size: set(runs.loc[runs["params"] == size, column].astype(str))
            for size in np.unique(runs["params"].to_numpy(float))
        }
        if len(values) < 2 or set.intersection(*values.values()):
            continue
        used = names([f"{'/'.join(sorted(v))} at {count(size)}" for size, v in values.items()])
        lines.append(
            f"{words.capitalize()} changes with the size ({used} parameters): the law takes its "
            "effect for one of size."
        )
    return lines
