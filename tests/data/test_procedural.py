"""Procedural images: each follows from its split and index, with known statistics."""

import numpy as np
import pytest
from scipy.stats import norm

from tarflow import data
from tarflow.config import DataConfig
from tarflow.data import procedural

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("kind", ["leaves", "markov"])
def test_images_depend_on_split_and_index_only(kind):
    generate = getattr(procedural, kind)
    whole = generate("train", 0, 20, 8)
    np.testing.assert_array_equal(generate("train", 13, 5, 8), whole[13:18])
    assert (generate("test", 0, 20, 8) != whole).mean() > 0.5
    stored = data.open_split(DataConfig(name=f"{kind}-8-600"), "train")
    np.testing.assert_array_equal(stored.pixels[:20], whole)
    np.testing.assert_array_equal(stored.pixels[590:], generate("train", 590, 10, 8))


def test_leaves_have_the_radii_of_the_model():
    # Of the disks that meet the window, those of radius r are seen with density r^-3 (S + 2r)^2;
    # weighing by (S + 2r)^-2 gives back the power law, of which a share 1 - (a/r)^2 lies under r.
    radii = procedural._visible_radii(np.linspace(0, 1, 200001)[1:-1], 64).astype(float)
    weight = (64 + 2 * radii) ** -2.0
    for r in (5.0, 8.0, 16.0):
        share = weight[radii < r].sum() / weight.sum()
        assert share == pytest.approx((1 - (4 / r) ** 2) / (1 - (4 / 32) ** 2), rel=1e-3)


def test_leaves_look_like_natural_images():
    images = data.open_split(DataConfig(name="leaves-32-400"), "train")
    grey = images.pixels.mean(axis=1)
    # Power falls with frequency as 1/f^2 or faster, 1/f^3 for isolated edges.
    window = np.hanning(32)[:, None] * np.hanning(32)
    power = (np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    band = (frequency > 2.5 / 32) & (frequency < 0.5)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -3.2 < slope < -1.8
    # Occlusion: neighbours are mostly of the same leaf, so exactly equal.
    assert 0.5 < (grey[:, :, 1:] == grey[:, :, :-1]).mean() < 0.95
    # The palette tells the class: nearest mean colour is right far more often than 1 in 10.
    colours = images.pixels.mean(axis=(2, 3))
    means = np.stack(
        [colours[:200][images.labels[:200] == label].mean(axis=0) for label in range(10)]
    )
    nearest = ((colours[200:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == images.labels[200:]).mean() > 0.5


def test_markov_probabilities_sum_to_one():
    levels = np.arange(256.0)
    for mean in (-60.0, 0.0, 3.3, 128.0, 254.9, 400.0):
        total = np.exp(procedural.markov_log_probability(levels, mean)).sum()
        assert total == pytest.approx(1, abs=1e-12)
    # Far tails stay finite, and fall as those of a normal distribution.
    tail = procedural.markov_log_probability(levels, np.float64(0))
    exact = norm.logsf((levels - 0.5) / procedural.SPREAD)  # of a level and all above it
    np.testing.assert_allclose(np.logaddexp.accumulate(tail[:0:-1])[::-1], exact[1:], rtol=1e-9)


def test_markov_images_sum_to_one(monkeypatch):
    # All 3^4 images of 2x2 pixels and three grey levels.
    monkeypatch.setattr(procedural, "LEVELS", 3)
    monkeypatch.setattr(procedural, "_OUTSIDE", 1.0)
    grey = np.stack(np.meshgrid(*[np.arange(3)] * 4), axis=-1).reshape(-1, 1, 2, 2)
    bits = procedural.markov_bits(grey.astype(np.uint8))
    assert len({*np.round(bits, 9)}) > 20
    assert (2.0 ** (-4 * bits)).sum() == pytest.approx(1, abs=1e-12)


def test_markov_draws_follow_the_probabilities(monkeypatch):
    monkeypatch.setattr(procedural, "LEVELS", 3)
    monkeypatch.setattr(procedural, "_OUTSIDE", 1.0)
    count = 40_000
    drawn = procedural.markov("train", 0, count, 2).reshape(count, 4)
    grey = np.stack(np.meshgrid(*[np.arange(3)] * 4), axis=-1).reshape(-1, 4)
    bits = procedural.markov_bits(grey.reshape(-1, 1, 2, 2).astype(np.uint8))
    expected = count * 2.0 ** (-4 * bits)
    code = 3 ** np.arange(4)
    observed = np.bincount(drawn @ code, minlength=81)[grey @ code]
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert 40 < chi2 < 140  # 80 degrees of freedom: 4.7 standard deviations


def test_markov_bits_are_the_conditionals_of_a_loop():
    image = procedural.markov("train", 5, 1, 6)
    before = [128.0] * procedural.ORDER
    nats = 0.0
    for value in image.ravel().astype(float):
        mean = procedural._mean(np.array(before[-procedural.ORDER :]))
        nats -= procedural.markov_log_probability(np.array(value), mean)
        before.append(value)
    assert procedural.markov_bits(image)[0] == pytest.approx(nats / np.log(2) / 36, rel=1e-12)


@pytest.mark.parametrize("lag", [1, 2, 7, procedural.ORDER, procedural.ORDER + 1])
def test_markov_pixels_have_the_stated_partial_correlations(lag):
    grey = procedural.markov("train", 0, 200, 32).reshape(200, -1) - 128.0
    windows = np.lib.stride_tricks.sliding_window_view(grey, lag + 1, axis=1)[:, 100:]
    before, value = windows[..., :-1].reshape(-1, lag), windows[..., -1].ravel()
    partial = np.linalg.lstsq(before, value)[0][0]  # of the farthest
    stated = (-1) ** (lag // 2) * procedural.PARTIAL / lag**procedural.DECAY
    assert partial == pytest.approx(stated if lag <= procedural.ORDER else 0, abs=0.01)
