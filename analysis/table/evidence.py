"""Whether losses follow a law at all, and whether one row of a few spoils it, by F-tests."""

import numpy as np
from scipy.stats import f as fisher

from analysis.laws.average import Law
from analysis.laws.fit import fit
from analysis.laws.forms import POWER, TIED, Form
from analysis.laws.observations import Observations
from analysis.laws.uncertainty import ROBUST_FROM
from tarflow.human import percent

SMALL = 0.5  # residuals over the spread of the losses, below which there is a law
CHANCE = 0.01  # probability that losses without a law pass for one
SPOILED = 0.05  # probability that a row of a small table is left out by chance
EXACT = 1e-9  # relative residuals below which a law is exact
OUTLIER = 5.0  # residual scales from which a row is named
FEW_STARTS = 24  # of fits without one row


def spoilers(data: Observations) -> dict[int, str]:
    """Return the position of a row without which the others of a small table agree, and why.

    Huber's loss needs five spare rows. With fewer, each row is left out in turn: an F-test says
    whether the best such table fits better by more than chance (Bonferroni over the rows).
    """
    form = POWER if "flops" in data.inputs else TIED
    rows, free = len(data.values), len(data.values) - len(form.parameters) - 1
    if not 1 <= free < ROBUST_FROM or data.clusters is not None:
        return {}
    whole = _square(form, data)
    squares = [_square(form, data.take(np.arange(rows) != row)) for row in range(rows)]
    row, least = int(np.argmin(squares)), max(min(squares), EXACT**2)
    if rows * fisher.sf((whole - least) / (least / free), 1, free) > SPOILED:
        return {}
    scales = np.sqrt(whole / (free + 1)), np.sqrt(least / free)
    why = f"without it, residuals fall from {percent(scales[0])} to {percent(scales[1])}"
    return {row: why}


def no_law(law: Law, scale: float) -> str:
    """Say that a constant explains the losses as well as the law; empty if it does not.

    An F-test over the rows that are no outliers. Five rows never pass it, so residuals that are
    small beside the losses' spread count as a law without it.
    """
    kept = np.abs(law.residuals) <= OUTLIER * max(scale, EXACT)
    rows, parameters = int(kept.sum()), len(law.values)
    logs = np.log(law.data.values)[kept]
    left, whole = float(np.sum(law.residuals[kept] ** 2)), float(np.sum((logs - logs.mean()) ** 2))
    free = rows - parameters
    if whole <= rows * EXACT**2:
        return "no law: the losses are equal"
    if free < 1 or left <= rows * EXACT**2:
        return ""
    ratio = max(whole - left, 0.0) / (parameters - 1) / (left / free)
    small = np.sqrt(left / free) < SMALL * np.sqrt(whole / (rows - 1))
    if small or fisher.sf(ratio, parameters - 1, free) < CHANCE:
        return ""
    return f"no law: residuals {percent(scale)}, as large as the spread of the losses"


def _square(form: Form, data: Observations) -> float:
    """Return the least sum of squared residuals of a form."""
    with np.errstate(over="ignore", under="ignore"):
        return float(
            np.sum(fit(form, data, delta=np.inf, starts=FEW_STARTS, draws=0).residuals ** 2)
        )
