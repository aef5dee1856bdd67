import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from tarflow.errors import UserError
from tarflow.evaluate.frechet import frechet_distance, frechet_distance_at_infinity


def test_frechet_distance_of_scaled_and_shifted_features():
    a = np.random.default_rng(4).normal(size=(60, 6)) * np.arange(1, 7)
    b = 1.5 * a + 2
    shift, variances = (b - a).mean(axis=0), a.var(axis=0, ddof=1)
    expected = shift @ shift + 0.25 * variances.sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("empty", [0, 3])
def test_frechet_distance_is_that_of_torch_fidelity(empty):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(90, 8)), 0.2 + rng.normal(size=(70, 8)) @ rng.normal(size=(8, 8))
    a[:, :empty] = b[:, :empty] = 0.5  # features that are always silent
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    reference = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("distance", [frechet_distance, frechet_distance_at_infinity])
def test_few_images_are_refused(distance):
    many, few = np.zeros((50, 10)), np.zeros((49, 10))
    for a, b in ((many, few), (few, many)):
        with pytest.raises(UserError, match=r"needs 50 images on each side.*mostly bias"):
            distance(a, b)


def test_distance_at_infinity_is_unbiased_with_a_true_error():
    """Repeated draws of a known Gaussian, against a reference with exactly known moments."""
    rng = np.random.default_rng(5)
    width, count, shift = 12, 120, 0.3
    scales = 1 + np.arange(width) / width
    reference, _ = np.linalg.qr(rng.normal(size=(4 * width * width, width)))
    reference -= reference.mean(axis=0)
    reference = np.linalg.solve(np.linalg.cholesky(np.cov(reference.T)), reference.T).T  # N(0, 1)
    truth = width * shift**2 + ((scales - 1) ** 2).sum()

    plain, limits, errors = [], [], []
    for _ in range(200):
        samples = rng.normal(size=(count, width)) * scales + shift
        plain.append(frechet_distance(samples, reference))
        limit, error = frechet_distance_at_infinity(samples, reference)
        limits.append(limit)
        errors.append(error)
    uncertainty = np.std(limits) / np.sqrt(len(limits))
    assert np.mean(plain) > truth + 10 * uncertainty  # what extrapolation is for
    assert abs(np.mean(limits) - truth) < 4 * uncertainty
    assert 0.9 < np.sqrt(np.mean(np.square(errors))) / np.std(limits) < 1.5


def test_distance_at_infinity_does_not_depend_on_class_order():
    """Sorted by class, a third left out would be a third of the classes."""
    rng = np.random.default_rng(6)
    samples = rng.normal(size=(300, 4)) + 20 * np.repeat(np.arange(3), 100)[:, None]
    reference = rng.normal(size=(300, 4)) + 20 * np.repeat(np.arange(3), 100)[:, None]
    sorted_limit, error = frechet_distance_at_infinity(samples, reference)
    shuffled_limit, _ = frechet_distance_at_infinity(rng.permutation(samples), reference)
    assert abs(sorted_limit - shuffled_limit) < 2 * error
