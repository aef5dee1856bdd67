"""Sample quality: KID with a real standard error, FID, Inception score, precision and recall.

FID means Inception features. In any other features the same number is called FD, with the
extractor's name beside it; `tarflow.evaluate.frechet` computes it.

Legend: `M` samples, `N` reference images, `F` features.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tarflow.config import FEWEST_IMAGES
from tarflow.errors import UserError
from tarflow.evaluate.features import Extractor
from tarflow.evaluate.frechet import (
    Features,
    enough,
    frechet_distance,
    frechet_distance_at_infinity,
    images_needed,
)

_ROWS = 1024  # rows of a kernel matrix in memory at once
_NEIGHBOURS = 3  # for precision and recall (Kynkaanniemi et al. 2019)
_SPLITS = 10  # of the samples, for the Inception score (Salimans et al. 2016)


def compare(
    a: NDArray[np.float32], b: NDArray[np.float32], extractor: Extractor, reference_name: str
) -> dict[str, Any]:
    """Measure the quality of samples by their features (M, F) and those of the reference (N, F).

    Returns:
        The columns of `record.EVALUATIONS` that describe quality. `fid` and `inception_score`
        are None outside Inception features; `fid`, `fd` and `fd_infinity` are None with too few
        images as well; see `refused`.

    Raises:
        UserError: If a side has fewer than four images.
    """
    distance, error = kid(a, b)
    frechet = limit = limit_error = score = score_error = None
    if enough(a, b):
        frechet = frechet_distance(a, b)
        limit, limit_error = frechet_distance_at_infinity(a, b)
    inception = extractor.is_inception
    if inception and len(a) >= _SPLITS:
        score, score_error = inception_score(a, extractor)
    precision, recall = precision_and_recall(a, b)
    return {
        "n": len(a),
        "n_reference": len(b),
        "reference": reference_name,
        "feature_extractor": extractor.name,
        "kid": distance,
        "kid_se": error,
        "fid": frechet if inception else None,
        "fd": None if inception else frechet,
        "fd_infinity": limit,
        "fd_infinity_se": limit_error,
        "inception_score": score,
        "inception_score_se": score_error,
        "precision": precision,
        "recall": recall,
    }


def refused(count: int, reference: int, extractor: Extractor) -> str:
    """Return one line on the measures that need more images than these, or an empty string."""
    needed = images_needed(extractor.width)
    if min(count, reference) >= needed:
        return ""
    distance = "FID" if extractor.is_inception else "FD"
    return (
        f"no {distance} and no FD-infinity from {count:,} samples and {reference:,} real images: "
        f"{extractor.width:,} features need {needed:,} of each, or the numbers are mostly bias. "
        "KID is unbiased at any count"
    )


def kid(a: Features, b: Features) -> tuple[float, float]:
    """Return the kernel distance of features (M, F) and (N, F), and its standard error.

    The unbiased squared MMD over all pairs, kernel `(x . y / F + 1)^3` (Binkowski et al. 2018);
    it can be negative. The variance is that of the two-sample U-statistic by its Hoeffding
    decomposition: with `C_a`, `C_b` the covariance operators in kernel space and `d` the
    difference of means,

        4 <d, C_a d> / M + 4 <d, C_b d> / N
        + 2 tr(C_a^2) / M(M-1) + 2 tr(C_b^2) / N(N-1) + 4 tr(C_a C_b) / MN,

    every term estimated without bias. Only the first line may come out negative by chance, and is
    then taken as zero, so the standard error is on the safe side when nothing differs.

    Raises:
        UserError: If a side has fewer than four images.
    """
    _check_count(a, b)
    m, n = len(a), len(b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    within_a, _, squares_a = _kernel_sums(a, a, skip_diagonal=True)
    within_b, _, squares_b = _kernel_sums(b, b, skip_diagonal=True)
    across_a, across_b, squares = _kernel_sums(a, b)
    total = across_a.sum()
    value = within_a.sum() / (m * (m - 1)) + within_b.sum() / (n * (n - 1)) - 2 * total / (m * n)

    trace_a, trace_b = _trace_of_square(within_a, squares_a), _trace_of_square(within_b, squares_b)
    centred = squares - across_a @ across_a / n - across_b @ across_b / m + total**2 / (m * n)
    trace_ab = centred / ((m - 1) * (n - 1))
    # Sample variances of each image's influence, less what estimating the means adds to them.
    first_a = np.var(within_a / (m - 2) - across_a / n, ddof=1) - trace_ab / n - trace_a / (m - 2)
    first_b = np.var(within_b / (n - 2) - across_b / m, ddof=1) - trace_ab / m - trace_b / (n - 2)
    second = 2 * trace_a / (m * (m - 1)) + 2 * trace_b / (n * (n - 1)) + 4 * trace_ab / (m * n)
    variance = max(4 * first_a / m + 4 * first_b / n, 0.0) + max(second, 0.0)
    return float(value), float(np.sqrt(variance))


def inception_score(a: NDArray[np.float32], extractor: Extractor) -> tuple[float, float]:
    """Return the Inception score of pooled Inception features (M, F), and its standard error.

    The mean of ten splits, as published, and the error of that mean. A score of few samples is
    too low: a split cannot show more classes than it has images.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric  # imports torchvision

    score = isc_features_to_metric(extractor.logits(a), _SPLITS)
    error = score["inception_score_std"] / (_SPLITS - 1) ** 0.5
    return score["inception_score_mean"], error


def precision_and_recall(a: Features, b: Features) -> tuple[float, float]:
    """Return improved precision and recall of samples (M, F) against reference (N, F).

    The share of samples in the neighbourhoods of the reference, and the share of the reference in
    those of the samples (Kynkaanniemi et al. 2019, three neighbours).

    Raises:
        UserError: If a side has fewer than four images.
    """
    _check_count(a, b)
    samples, reference = (torch.from_numpy(side).double() for side in (a, b))
    return _share_near(samples, reference), _share_near(reference, samples)


def _share_near(points: Tensor, others: Tensor) -> float:
    """Return the share of points that lie as near some other as its third neighbour does."""
    parts = others.split(_ROWS)
    radii = torch.cat([torch.cdist(p, others).kthvalue(_NEIGHBOURS + 1).values for p in parts])
    near = [(torch.cdist(part, others) <= radii).any(1) for part in points.split(_ROWS)]
    return float(torch.cat(near).double().mean())


def _check_count(a: Features, b: Features) -> None:
    if min(len(a), len(b)) < FEWEST_IMAGES:
        raise UserError(
            f"cannot compare {len(a)} samples with {len(b)} images: at least {FEWEST_IMAGES} are "
            "needed on each side"
        )


def _kernel_sums(
    x: NDArray[np.float64], y: NDArray[np.float64], skip_diagonal: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the row sums, column sums and sum of squares of the kernel matrix, in row blocks."""
    rows, columns, squares = np.empty(len(x)), np.zeros(len(y)), 0.0
    for start in range(0, len(x), _ROWS):
        kernel = (x[start : start + _ROWS] @ y.T / x.shape[1] + 1) ** 3
        if skip_diagonal:
            kernel[np.arange(len(kernel)), start + np.arange(len(kernel))] = 0
        rows[start : start + _ROWS] = kernel.sum(axis=1)
        columns += kernel.sum(axis=0)
        squares += float(np.vdot(kernel, kernel))
    return rows, columns, squares


def _trace_of_square(rows: NDArray[np.float64], squares: float) -> float:
    """Estimate tr(C^2) without bias from a kernel without diagonal (U-centring, Szekely-Rizzo)."""
    n = len(rows)
    centred = squares - 2 / (n - 2) * (rows @ rows) + rows.sum() ** 2 / ((n - 1) * (n - 2))
    return float(centred / (n * (n - 3)))
