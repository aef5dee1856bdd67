"""Laws of sample quality: KID against likelihood, and against compute.

KID is unbiased and can be negative, so it is fitted as it is, never in logarithms, and weighted by
its standard errors. Where runs scatter more than these explain, intervals widen by as much.
Legend: `n` runs, `R` draws, `p` parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.forms import Array
from analysis.laws.intervals import LEVEL, Interval, interval_ends, interval_of
from analysis.study.names import bits_unit_of
from analysis.study.rows import best_of_budgets, configs_but_seed
from analysis.study.settings import best_setting, one_setting
from tarflow.human import bits, interval, number, power

FEWEST = 8  # runs that a law of KID against likelihood needs
FEWEST_BUDGETS = 4  # that a law of KID against compute needs
SIDE = 3  # fewest runs on either side of a break
BREAKS = 30  # most places where a break is sought
DRAWS = 600
POINTS = 60  # at which a law is drawn
STEP = 0.1  # bits per dimension for which changes of KID are written
EXPONENTS = np.linspace(0.05, 2.0, 40)  # of compute
MORE = 4.0  # times the largest budget, to predict KID for


@dataclass(frozen=True, eq=False)
class LikelihoodLaw:
    """KID against likelihood: a line, or a broken one if the runs show a break."""

    rows: pd.DataFrame  # one row per run: bpd, kid, kid_se
    slope: float  # KID per bit, of one line
    slope_interval: Interval  # 90%
    breaks: bool  # whether a line is rejected in favour of a break (10%)
    place: float  # bits per dimension of the break
    place_interval: Interval
    below: float  # KID per bit at fewer bits than the break
    below_interval: Interval
    above: float
    above_interval: Interval
    grid: Array  # bits per dimension
    drawn: Array  # (1 + R, n) KID there by the law; row 0 is the fit

    @property
    def parts(self) -> bool:
        """Whether samples follow likelihood down to the break, and not below it."""
        return self.breaks and self.above_interval[0] > 0 >= self.below_interval[0]


@dataclass(frozen=True, eq=False)
class ComputeLaw:
    """KID of the best size of every budget: E + A / C^a with neither term negative."""

    rows: pd.DataFrame  # one row per run: flops, kid, kid_se
    floor: float
    floor_interval: Interval  # 90%
    fall: float  # of KID from the smallest to the largest budget
    fall_interval: Interval
    grid: Array  # training FLOPs; the last is beyond the runs
    drawn: Array  # (1 + R, n) KID there by the law; row 0 is the fit


@dataclass(frozen=True, eq=False)
class QualityLaws:
    """The laws of KID at one way to choose the sampler setting."""

    setting: str  # in words
    likelihood: LikelihoodLaw | None
    compute: ComputeLaw | None


def quality_laws(
    runs: pd.DataFrame, scored: pd.DataFrame, seed: int = 0
) -> tuple[QualityLaws, ...]:
    """Fit KID at the setting that most runs share, and at the best setting of each run.

    The KID of a best setting is that on draws that did not choose it; runs whose settings were not
    searched do not count there.

    Args:
        runs: Rows the laws of the study read, with `budget`.
        scored: The same runs joined to their sample scores, one row per sampler setting.
        seed: Seed of the draws.
    """
    scored = scored[scored["run_id"].isin(runs["run_id"])]
    best = best_setting(scored)
    ways = {
        "at one sampler setting for all": one_setting(scored),
        "at the best setting of each run": best[best["kid_chosen"].notna()],
    }
    laws = [
        QualityLaws(name, likelihood_law(rows, seed), compute_law(runs, rows, seed))
        for name, rows in ways.items()
    ]
    return tuple(law for law in laws if law.likelihood or law.compute)


def likelihood_law(rows: pd.DataFrame, seed: int = 0) -> LikelihoodLaw | None:
    """Fit KID against likelihood; None with too few runs.

    A break is believed if the improvement of the fit is larger than in 90% of draws from the line,
    each with its own best break.

    Args:
        rows: One row per run: `bpd`, `kid`, `kid_se`.
        seed: Seed of the draws.
    """
    rows = _known(rows)
    x, y, error = (rows[name].to_numpy(float) for name in ("bpd", "kid", "kid_se"))
    places = _places(x)
    if len(x) < FEWEST or not len(places):
        return None
    rng = np.random.default_rng(seed)
    straight = [np.ones_like(x), x]
    designs = [[*straight, np.maximum(x - place, 0.0)] for place in places]
    line = _drawn(_linear(straight, error), _line, x, y, error, 2, rng)
    breaks = _improves(straight, designs, line[0], y, error, rng)
    fits = _drawn(_broken(designs, places, error), _broken_line, x, y, error, 4, rng)
    place, _, below, bend = fits.T
    above = below + bend
    grid = np.linspace(x.min(), x.max(), POINTS)
    return LikelihoodLaw(
        rows=rows,
        slope=float(line[0, 1]),
        slope_interval=interval_of(line[1:, 1]),
        breaks=breaks,
        place=float(place[0]),
        place_interval=interval_of(place[1:]),
        below=float(below[0]),
        below_interval=interval_of(below[1:]),
        above=float(above[0]),
        above_interval=interval_of(above[1:]),
        grid=grid,
        drawn=_broken_line(fits, grid) if breaks else _line(line, grid),
    )


def compute_law(runs: pd.DataFrame, rows: pd.DataFrame, seed: int = 0) -> ComputeLaw | None:
    """Fit KID against compute at the size of lowest BPD of every budget; None with few budgets.

    Args:
        runs: Rows the laws of the study read, with `budget`.
        rows: One row per run: `run_id`, `kid`, `kid_se`.
        seed: Seed of the draws.
    """
    chosen = configs_but_seed(runs)
    best = chosen[runs["run_id"].isin(best_of_budgets(runs)["run_id"])]
    columns = runs.loc[chosen.isin(best), ["run_id", "flops", "budget"]]
    rows = _known(rows.drop(columns=["flops", "budget"], errors="ignore").merge(columns))
    if rows["budget"].nunique() < FEWEST_BUDGETS:
        return None
    x, y, error = (rows[name].to_numpy(float) for name in ("flops", "kid", "kid_se"))
    x = x / x.max()
    terms = [x**-a for a in EXPONENTS]

    def solve(values: Array) -> Array:
        """Return floor, coefficient and exponent (m, 3) of values (m, n)."""
        fits = [_nonnegative(term, values, error) for term in terms]
        least = np.argmin([miss for _, miss in fits], axis=0)
        every = np.stack([theta for theta, _ in fits])[least, np.arange(len(values))]
        return np.column_stack([every, EXPONENTS[least]])

    fits = _drawn(solve, _power, x, y, error, 3, np.random.default_rng(seed))
    grid = np.geomspace(x.min(), MORE, POINTS)
    ends = _power(fits, np.array([x.min(), 1.0]))
    fall = ends[:, 0] - ends[:, 1]
    return ComputeLaw(
        rows=rows,
        floor=float(fits[0, 0]),
        floor_interval=interval_of(fits[1:, 0]),
        fall=float(fall[0]),
        fall_interval=interval_of(fall[1:]),
        grid=grid * rows["flops"].max(),
        drawn=_power(fits, grid),
    )


def band(drawn: Array) -> tuple[Array, Array]:
    """Return the ends (n,) of the 90% interval of a law from its draws (1 + R, n)."""
    return interval_ends(drawn[1:])


def in_words(laws: QualityLaws) -> list[str]:
    """Say where quality and likelihood part, and what compute buys, as far as intervals tell."""
    lines = []
    if laws.likelihood is not None:
        lines.append(_likelihood_in_words(laws.likelihood, laws.setting))
    if laws.compute is not None:
        lines.append(_compute_in_words(laws.compute, laws.setting))
    return lines


def _likelihood_in_words(law: LikelihoodLaw, setting: str) -> str:
    whole = _change(law.slope, law.slope_interval)
    if law.parts:
        worse = law.below_interval[1] < 0
        return (
            f"Quality and likelihood part at {bits(law.place)} {bits_unit_of(law.rows)} "
            f"({interval(law.place_interval, bits)}), {setting}: above, KID falls with the bits, "
            f"by {_change(law.above, law.above_interval)}; below, "
            + (
                f"samples get worse as bits fall: KID changes by "
                f"{_change(law.below, law.below_interval)}."
                if worse
                else f"no fall of KID can be told: it is {_change(law.below, law.below_interval)}."
            )
        )
    if law.breaks and law.below_interval[0] > 0:
        return (
            f"Quality follows likelihood over all runs, {setting}: KID falls with the bits, by "
            f"{_change(law.above, law.above_interval)} above {bits(law.place)} "
            f"{bits_unit_of(law.rows)}, and by {_change(law.below, law.below_interval)} below."
        )
    if law.slope_interval[0] > 0:
        return (
            f"Nothing shows that quality and likelihood part, {setting}: over all runs KID falls "
            f"with the bits, by {whole}."
        )
    if law.slope_interval[1] < 0:
        return (
            f"Quality and likelihood part over all runs, {setting}: KID rises as bits fall, by "
            f"{_change(-law.slope, (-law.slope_interval[1], -law.slope_interval[0]))}."
        )
    return (
        f"These runs do not tell whether quality follows likelihood, {setting}: KID falls by "
        f"{whole}."
    )


def _change(slope: float, ends: Interval) -> str:
    scaled = STEP * ends[0], STEP * ends[1]
    return f"{number(STEP * slope)} for every {STEP:g} bits ({interval(scaled)})"


def _compute_in_words(law: ComputeLaw, setting: str) -> str:
    flops = law.rows["flops"]
    low, high = band(law.drawn[:, [-1]])
    falls = f"{number(law.fall)} ({interval(law.fall_interval)})"
    start = f"From {power(flops.min())} to {power(flops.max())} training FLOPs, {setting}, KID of "
    clear = law.fall_interval[0] > 0
    start += f"the best size falls by {'' if clear else 'no clear amount: '}{falls}"
    return (
        f"{start}; with {MORE:g} times more compute its law gives {number(law.drawn[0, -1])} "
        f"({interval((float(low[0]), float(high[0])))})."
    )


def _known(rows: pd.DataFrame) -> pd.DataFrame:
    known = rows.dropna(subset=["bpd", "kid", "kid_se"])
    return known[known["kid_se"] > 0].reset_index(drop=True)


def _places(x: Array) -> Array:
    """Return where a break may be: between runs, with enough of them on either side."""
    ordered = np.sort(x)
    middle = (ordered[SIDE - 1 : -SIDE] + ordered[SIDE : len(x) - SIDE + 1]) / 2
    distinct = np.unique(middle)
    return distinct[:: max(1, -(-len(distinct) // BREAKS))]


def _line(theta: Array, x: Array) -> Array:
    values: Array = theta[:, [0]] + theta[:, [1]] * x
    return values


def _broken_line(theta: Array, x: Array) -> Array:
    values: Array = _line(theta[:, 1:], x) + theta[:, [3]] * np.maximum(x - theta[:, [0]], 0.0)
    return values


def _power(theta: Array, x: Array) -> Array:
    values: Array = theta[:, [0]] + theta[:, [1]] * x ** -theta[:, [2]]
    return values


def _nonnegative(term: Array, values: Array, error: Array) -> tuple[Array, Array]:
    """Return E and A (m, 2) of E + A term, neither negative, and the weighted squares left."""
    ones = np.ones_like(term)
    both = _linear([ones, term], error)(values)
    floor = np.maximum(_linear([ones], error)(values), 0.0)
    slope = np.maximum(_linear([term], error)(values), 0.0)
    every = np.stack([both, floor * [1.0, 0.0], slope * [0.0, 1.0]])  # (3, m, 2)
    misses = np.sum(((every @ np.stack([ones, term]) - values) / error) ** 2, axis=2)
    misses[0, both.min(axis=1) < 0] = np.inf
    best, rows = np.argmin(misses, axis=0), np.arange(len(values))
    return every[best, rows], misses[best, rows]


def _linear(columns: list[Array], error: Array) -> Callable[[Array], Array]:
    """Return a function from values (m, n) to weighted least-squares parameters (m, p)."""
    inverse = np.linalg.pinv(np.stack(columns, axis=1) / error[:, None])
    return lambda values: (values / error) @ inverse.T


def _misses(columns: list[Array], error: Array) -> Callable[[Array], Array]:
    """Return a function from values (m, n) to the weighted squares (m,) that a fit leaves."""
    basis, _ = np.linalg.qr(np.stack(columns, axis=1) / error[:, None])

    def squares(values: Array) -> Array:
        scaled = values / error
        left: Array = np.sum(scaled**2, axis=1) - np.sum((scaled @ basis) ** 2, axis=1)
        return left

    return squares


def _broken(designs: list[list[Array]], places: Array, error: Array) -> Callable[[Array], Array]:
    """Return a function from values (m, n) to a broken line (m, 4).

    Its parameters are the best place, the level, the slope below, and the change of slope there.
    """
    solvers = [_linear(design, error) for design in designs]
    misses = [_misses(design, error) for design in designs]

    def solve(values: Array) -> Array:
        best = np.argmin([miss(values) for miss in misses], axis=0)
        every = np.stack([solver(values) for solver in solvers])  # (places, m, 3)
        return np.column_stack([places[best], every[best, np.arange(len(values))]])

    return solve


def _improves(
    straight: list[Array],
    designs: list[list[Array]],
    line: Array,
    y: Array,
    error: Array,
    rng: np.random.Generator,
) -> bool:
    """Tell whether a break improves the fit more than it does in 90% of draws from the line."""
    fit = _line(line[None], straight[1])
    noise = error * rng.standard_normal((DRAWS, len(y)))
    values = np.concatenate([y[None], fit + noise])
    before = _misses(straight, error)(values)
    after = np.min([_misses(design, error)(values) for design in designs], axis=0)
    gains = before / np.maximum(after, 1e-300)
    return bool(gains[0] > np.quantile(gains[1:], LEVEL))


def _drawn(
    solve: Callable[[Array], Array],
    predict: Callable[[Array, Array], Array],
    x: Array,
    y: Array,
    error: Array,
    parameters: int,
    rng: np.random.Generator,
) -> Array:
    """Return the parameters (1 + R, p) of a fit and of draws around it; row 0 is the fit.

    Draws scatter as the standard errors say, or as the residuals do if that is more.

    Args:
        solve: Function from values (m, n) to parameters (m, p).
        predict: Function from parameters (m, p) and inputs (n,) to values (m, n).
        x: Inputs of the runs (n,).
        y: KID of the runs.
        error: Their standard errors.
        parameters: Number of free parameters.
        rng: Source of the draws.
    """
    best = solve(y[None])
    fit = predict(best, x)[0]
    free = len(y) - parameters
    squares = float(np.sum(((y - fit) / error) ** 2))
    noise = error * rng.standard_normal((DRAWS, len(y)))
    if squares > free > 0:  # the scale is an estimate: draws are Student's
        noise *= np.sqrt(squares / rng.chisquare(free, (DRAWS, 1)))
    return np.concatenate([best, solve(fit + noise)])
