"""Which samples are compared with which held-out images."""

import numpy as np

from tarflow.evaluate.metrics import kid
from tarflow.evaluate.sample_quality import pair_parts


def test_a_setting_chosen_among_equals_is_scored_without_bias():
    """Eight settings are off by the same distance in eight directions: none is better."""
    rng, shifts = np.random.default_rng(0), 0.6 * np.eye(8)
    reported, fair = [], []
    for _ in range(600):
        real = rng.normal(size=(32, 8))
        distances = []
        for shift in shifts:
            parts = pair_parts(rng.normal(size=(32, 8)) + shift, real)
            distances.append([kid(*parts[half])[0] for half in ("chosen", "scored")])
        choosing, scoring = np.array(distances).T
        reported.append(scoring[choosing.argmin()])
        fair.append(scoring.mean())
    bias = np.subtract(reported, fair)
    assert abs(bias.mean()) < 3.5 * bias.std() / len(bias) ** 0.5


def test_too_few_held_out_images_are_shared():
    samples, held_out = np.zeros((10, 2)), np.arange(18.0).reshape(9, 2)
    assert [len(real) for _, real in pair_parts(samples, held_out).values()] == [9, 9, 9]
    halves = pair_parts(samples[:8], held_out)
    assert [(len(made), len(real)) for made, real in halves.values()] == [(8, 9), (4, 5), (4, 4)]
    assert not set(halves["chosen"][1].flat) & set(halves["scored"][1].flat)
