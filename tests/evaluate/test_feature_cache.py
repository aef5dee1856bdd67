import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from tarflow.errors import UserError
from tarflow.evaluate.feature_cache import cached_features, key
from tarflow.evaluate.features import Extractor


class Mean(torch.nn.Module):
    def forward(self, images):
        return (images.float().mean((2, 3)),)


@pytest.fixture
def extractor():
    return Extractor("efficientnet-lite0@32", Mean(), "digest", torch.device("cpu"))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 1, 28, 28), np.uint8)


def test_features_are_computed_once(tmp_path, monkeypatch, pixels, extractor):
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    first = cached_features(pixels, extractor)
    (file,) = (tmp_path / "features").iterdir()  # and no temporary file
    assert file.name.startswith("efficientnet-lite0@32-6-")
    broken = replace(extractor, module=None)
    np.testing.assert_array_equal(cached_features(pixels, broken), first)
    file.write_bytes(file.read_bytes()[:-9])
    np.testing.assert_array_equal(cached_features(pixels, extractor), first)
    np.testing.assert_array_equal(cached_features(pixels, broken), first)


def test_whatever_shapes_features_is_in_the_key(pixels, extractor):
    other_pixel = pixels.copy()
    other_pixel[0, 0, 0, 0] += 1
    keys = [
        key(images, replace(extractor, name=name, digest=digest))
        for images, name, digest in (
            (pixels, "efficientnet-lite0@32", "digest"),
            (pixels[:5], "efficientnet-lite0@32", "digest"),
            (other_pixel, "efficientnet-lite0@32", "digest"),
            (pixels.reshape(6, 1, 14, 56), "efficientnet-lite0@32", "digest"),
            (pixels, "efficientnet-lite0@64", "digest"),
            (pixels, "efficientnet-lite0@32/112", "digest"),
            (pixels, "efficientnet-lite0@32", "other"),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert key(torch.tensor(pixels), extractor) == keys[0]


def test_many_may_write_at_once(tmp_path, monkeypatch, pixels, extractor):
    """Threads share more than processes do, the process id in particular."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    together = threading.Barrier(8)

    def ask(_):
        together.wait()
        return [cached_features(pixels + i, extractor).sum() for i in range(20)]

    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(ask, range(8)))
    assert sums.count(sums[0]) == 8
    assert len(list((tmp_path / "features").iterdir())) == 20


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, pixels, extractor):
    (tmp_path / "features").touch()
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}.*TARFLOW_CACHE"):
        cached_features(pixels, extractor)
