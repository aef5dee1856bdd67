"""Which runs KID tells apart."""

import numpy as np
import pandas as pd

from analysis.comparing.differences import as_low, told_apart


def runs(kid, error=0.1):
    return pd.DataFrame({"run_id": [f"r{i}" for i in range(len(kid))], "kid": kid}).assign(
        kid_se=error
    )


def test_equal_runs_are_told_apart_no_more_often_than_promised():
    rng = np.random.default_rng(0)
    wrong = sum(told_apart(runs(5 + 0.1 * rng.standard_normal(12))) for _ in range(400))
    assert 20 < wrong < 60  # 10%
    assert told_apart(runs([5.0, 5.0, 5.0, 6.0]))
    assert not told_apart(runs([5.0]))


def test_runs_within_the_error_of_a_difference_may_be_as_low():
    scored = runs([1.0, 0.5, 1.2, 1.3])  # 0.23 is the half width of the interval
    assert as_low(scored, scored.iloc[0])["run_id"].tolist() == ["r1", "r2"]
