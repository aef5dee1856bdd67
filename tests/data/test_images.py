"""Opening splits: content hashes, the decoded cache, order and batches."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import noise_images, png, write
from PIL import Image

from tarflow import data
from tarflow.config import DataConfig
from tarflow.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def test_digits_are_split_by_index():
    config = data.hash_data(DataConfig(name="digits"))
    table = pq.read_table(Path(data.__file__).parent / "embedded" / "mnist5k.parquet")
    start = 0
    for split, count in (("train", 4000), ("validation", 500), ("test", 500)):
        images = data.open_split(config, split)
        assert images.pixels.shape == (count, 1, 28, 28)
        np.testing.assert_array_equal(images.labels, table["label"][start : start + count])
        last = Image.open(io.BytesIO(table["image"][start + count - 1].as_py()["bytes"]))
        np.testing.assert_array_equal(images.pixels[-1, 0], np.asarray(last))
        start += count
    assert data.describe(config).classes == 10


def test_hash_follows_content(tmp_path):
    blobs = [png(image) for image in noise_images(40)]
    first = data.hash_data(write(tmp_path / "a.parquet", blobs))
    moved = data.hash_data(write(tmp_path / "b.parquet", blobs))
    assert first.hash == moved.hash
    with pytest.raises(UserError, match="has changed"):
        data.open_split(
            DataConfig(name=write(tmp_path / "a.parquet", blobs[::-1]).name, hash=first.hash),
            "train",
        )
    names = ["digits", "leaves", "leaves-16", "leaves-32-7", "markov", "markov-8"]
    assert len({data.hash_data(DataConfig(name=name)).hash for name in names}) == len(names)


def test_cache_is_reused_and_read_only(cache):
    config = data.hash_data(DataConfig(name="markov-4-50"))
    first = data.open_split(config, "train")
    (stored,) = (cache / config.hash).glob("train*/pixels.npy")
    before = stored.stat().st_mtime_ns
    again = data.open_split(config, "train")
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert stored.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="read-only"):
        again.pixels[0] = 0
    assert not list(cache.rglob("*.tmp"))


def test_pixels_of_an_older_decoder_are_not_reused(cache, monkeypatch):
    config = data.hash_data(DataConfig(name="markov-4-50"))
    data.open_split(config, "train")
    monkeypatch.setattr("tarflow.data.images._DECODING", 3)
    data.open_split(config, "train")
    assert len(list((cache / config.hash).glob("train*/pixels.npy"))) == 2


def test_processes_do_not_race(cache):
    code = (
        "from tarflow.data.images import DataConfig, open_split;"
        "print(int(open_split(DataConfig(name='markov-8-3000'), 'train').pixels.sum()))"
    )
    with ThreadPoolExecutor(4) as pool:
        sums = pool.map(lambda _: subprocess.check_output([sys.executable, "-c", code]), range(4))
    assert len(set(sums)) == 1
    assert not list(cache.rglob("*.tmp"))


def test_failed_decoding_leaves_nothing(tmp_path, cache):
    config = write(tmp_path / "a.parquet", [png(noise_images(1)[0]), b"broken"] * 20)
    with pytest.raises(UserError):
        data.open_split(config, "train")
    assert not list(cache.rglob("*.npy"))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="TARFLOW_CACHE chooses another folder"):
        data.open_split(DataConfig(name="markov-4-50"), "train")


def test_data_needs_no_torch():
    code = "import sys, tarflow.data, tarflow.data.importing; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]).strip() == b"False"


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 50), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 60)))
def test_order_does_not_depend_on_chunks(n, seed, cuts):
    starts = np.cumsum([0, *cuts])
    chunks = [data.order(n, seed, int(s), c) for s, c in zip(starts, cuts, strict=False)]
    whole = data.order(n, seed, 0, sum(cuts))
    np.testing.assert_array_equal(np.concatenate([[], *chunks]), whole)
    for epoch in range(sum(cuts) // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_mixes_epochs_and_seeds():
    first, second = data.order(1000, 0, 0, 2000).reshape(2, 1000)
    other = data.order(1000, 1, 0, 1000)
    for pair in ((first, second), (first, other), (first, np.arange(1000))):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.15  # 4.7 standard errors
    assert first[:5].tolist() == [998, 162, 670, 664, 185]  # frozen: runs depend on it


def test_batch_is_a_contiguous_copy():
    images = data.open_split(DataConfig(name="markov-4-50"), "train")
    indices = np.array([7, 3, 3, 49])
    batch = data.batch(images, indices)
    np.testing.assert_array_equal(batch, [images.pixels[i] for i in indices])
    assert batch.flags.c_contiguous
    assert batch.flags.writeable
