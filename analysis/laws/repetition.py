"""Repeated data: how many different tokens the tokens seen are worth.

Source: Muennighoff et al. 2023, *Scaling data-constrained language models*, arXiv 2305.16264,
section 3. Their constant is used, because grids of one data set rarely determine another
(docs/decisions/024-repeated-data.md).
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.laws.forms import REPEATED, REPEATED_EXCESS, Array, Form
from analysis.laws.forms.tokens import worth

WORTH = 15.4  # R*: any number of repeats of a data set is worth at most this many fresh ones
HARMLESS = 4.0  # epochs up to which repeated images are worth nearly as much as fresh ones


def unique_tokens(rows: pd.DataFrame) -> float:
    """Return the tokens of the training set that the rows share; inf if the table does not say.

    Args:
        rows: Runs on one data set, with tokens and epochs.
    """
    if "epochs" not in rows:
        return float("inf")
    sizes = (rows["tokens"] / rows["epochs"]).to_numpy(float)
    known = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(known.max(initial=0.0)) or float("inf")


def effective_tokens(tokens: ArrayLike, unique: ArrayLike) -> Array:
    """Return U + U R* (1 - exp(-R / R*)), with R = D / U - 1 repeats after the first epoch.

    Args:
        tokens: Tokens seen, D, of any shape; returned as they are up to the first epoch.
        unique: Tokens of the training set, U, one number or one for each of `tokens`; inf if no
            image is ever seen twice.

    >>> [round(float(effective_tokens(epochs, 1.0)), 2) for epochs in (0.5, 1, 4, 44)]
    [0.5, 1.0, 3.73, 15.46]
    """
    seen = np.asarray(tokens, dtype=float)
    repeats = np.maximum(seen / unique - 1, 0.0)
    tokens_worth: Array = np.minimum(seen, unique) * worth(repeats, WORTH)
    return tokens_worth


def repeated_forms(tokens: ArrayLike, unique: ArrayLike) -> tuple[Form, ...]:
    """Return forms that fit what repeats are worth, if rows may determine it.

    They may where training sets differ in size, or are repeated more often than is harmless.
    Whether they do, roll-outs tell.

    Args:
        tokens: Tokens seen, (n,).
        unique: Tokens of the training set, one number or (n,).
    """
    seen, size = np.broadcast_arrays(np.asarray(tokens, float), np.asarray(unique, float))
    repeated = seen > size
    if np.any(seen > HARMLESS * size) or (repeated.any() and len(np.unique(size)) > 1):
        return REPEATED, REPEATED_EXCESS
    return ()
