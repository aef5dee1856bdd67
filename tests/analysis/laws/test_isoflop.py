"""IsoFLOP minima of planted laws: the best size known exactly, noise as in a study."""

import numpy as np
import pandas as pd
import pytest

from analysis.laws.isoflop import isoflop

A, B = 0.5, 0.28  # exponents of the planted law
BEST = np.log(A / B) / (A + B)  # ln(params) of its least loss


def minima(noise, shift, studies, spacing=0.76):
    """Return the minimum of every study: six sizes around `shift` from the best one."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(studies):
        x = BEST + shift + spacing * (np.arange(6) - 2.5 + rng.uniform(-0.5, 0.5))
        bpd = 1.2 + 0.3 * np.exp(-A * x) + 0.3 * np.exp(B * x)
        bpd *= np.exp(noise * rng.standard_normal(6))
        columns = {"params": np.exp(x), "tokens": np.exp(-x), "bpd": bpd, "flops": 6.0}
        found.append(isoflop(pd.DataFrame(columns).assign(run_id=np.arange(6)), 1.84 * noise))
    return found


def holds(minimum):
    return minimum.params_interval[0] <= np.exp(BEST) <= minimum.params_interval[1]


@pytest.mark.parametrize("shift", [np.log(3), 0.0, -np.log(3)])
def test_intervals_hold_the_best_size_of_a_skewed_law(shift):
    inside = [item for item in minima(0.002, shift, 300) if not item.edge]
    assert len(inside) > 270
    assert 0.82 < np.mean([holds(item) for item in inside]) < 0.97
    assert abs(np.median([np.log(item.params) - BEST for item in inside])) < 0.03


def test_a_rise_that_noise_may_have_made_brackets_nothing():
    # The best size is one of the last two, which differ by less than the noise.
    flagged = [item for item in minima(0.01, -1.9, 150) if "largest" in item.edge]
    assert len(flagged) > 110
    assert all(item.params_interval[1] == np.inf for item in flagged)
    assert np.mean([holds(item) for item in flagged]) > 0.9
    bounded = [item for item in flagged if item.edge == "largest"]
    assert all(item.params_interval[0] > 0 for item in bounded)


def test_sizes_far_from_the_best_one_are_left_out():
    near = minima(0.0, 0.0, 1)[0]
    far = minima(0.0, 0.0, 1, spacing=2.0)[0]
    assert near.fitted[1] / near.fitted[0] == pytest.approx(np.exp(5 * 0.76))
    assert far.fitted[1] / far.fitted[0] == pytest.approx(np.exp(4 * 2.0))


def test_noise_from_few_seeds_widens_the_interval():
    runs = pd.DataFrame({"params": [1e3, 3e3, 9e3], "bpd": [1.2, 1.0, 1.2], "run_id": list("abc")})
    runs = runs.assign(tokens=1e9 / runs["params"], flops=6e9)
    exact, estimated = isoflop(runs, 0.01), isoflop(runs, 0.01, freedom=2)
    widths = [float(np.ptp(np.log(item.params_interval))) for item in (exact, estimated)]
    assert widths[1] > 1.6 * widths[0]  # Student's t with two degrees of freedom: 1.78
