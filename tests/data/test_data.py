"""Image tables, splits, order and computed sets."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import noise_images, png, write
from PIL import Image

from tarflow import data
from tarflow.config import DataConfig
from tarflow.data import procedural
from tarflow.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("channels", [1, 3])
def test_table_round_trip_is_bit_equal(tmp_path, channels):
    images = noise_images(30, channels=channels)
    config = write(
        tmp_path / "a.parquet",
        [png(image) for image in images],
        label=list(range(30)),
        split=["train", "val", "test"] * 10,
    )
    assert data.describe(config) == data.Description(
        image_size=8, channels=channels, classes=30, train=10, validation=10, test=10
    )
    expected = images[:, None] if channels == 1 else images.transpose(0, 3, 1, 2)
    for offset, split in enumerate(("train", "validation", "test")):
        found = data.open_split(config, split)
        np.testing.assert_array_equal(found.pixels, expected[offset::3])
        np.testing.assert_array_equal(found.labels, np.arange(30)[offset::3])
        assert (found.image_size, found.channels, found.classes) == (8, channels, 30)


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


def test_shards_named_after_splits(tmp_path):
    blobs = [png(image) for image in noise_images(12)]
    write(tmp_path / "set/test.parquet", blobs[9:], label=[2, 2, 2])
    write(tmp_path / "set/train-00000-of-00002.parquet", blobs[:4], label=[0] * 4)
    write(tmp_path / "set/train-00001-of-00002.parquet", blobs[4:6], label=[1] * 2)
    write(tmp_path / "set/val/0.parquet", blobs[6:9], label=[1] * 3)
    config = DataConfig(name=str(tmp_path / "set"))
    labels = [data.open_split(config, split).labels.tolist() for split in data.SPLITS]
    assert labels == [[0, 0, 0, 0, 1, 1], [1, 1, 1], [2, 2, 2]]
    assert data.describe(DataConfig(name=(tmp_path / "set").as_uri())).test == 3

    write(tmp_path / "set/extra.parquet", blobs[:1], label=[0])
    with pytest.raises(UserError, match=r"extra\.parquet: some shards are named"):
        data.describe(config)


def test_missing_splits_are_taken_out_of_train(tmp_path):
    blob = png(noise_images(1)[0])
    plain = write(tmp_path / "plain.parquet", [blob] * 1000, label=list(range(1000)))
    parts = [data.open_split(plain, split).labels for split in data.SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(1000))
    assert all(70 < len(part) < 130 for part in parts[1:])

    # More rows leave the split of the others as it is, and a given split is kept whole.
    split = ["train"] * 1000 + ["test"] * 50
    more = write(tmp_path / "more.parquet", [blob] * 1050, label=list(range(1050)), split=split)
    assert set(parts[1]) == set(data.open_split(more, "validation").labels)
    assert data.open_split(more, "test").labels.tolist() == list(range(1000, 1050))


def test_unlabelled_table_has_no_classes(tmp_path):
    config = write(tmp_path / "a.parquet", [png(noise_images(1)[0])] * 40)
    assert data.describe(config).classes == 0
    assert not data.open_split(config, "train").labels.any()


# Hash and cache


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


def test_large_files_are_hashed_once(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("tarflow.data.tables._REMEMBER", 1)
    config = write(tmp_path / "a.parquet", [png(noise_images(1)[0])])
    digest = data.hash_data(config).hash
    (memo,) = (cache / "digests").iterdir()
    memo.write_text("remembered")
    assert data.hash_data(config).hash != digest
    os.utime(config.name, ns=(1, 1))  # a touched file is read again
    assert data.hash_data(config).hash == digest


def test_cache_is_reused_and_read_only(cache):
    config = data.hash_data(DataConfig(name="markov-4-50"))
    first = data.open_split(config, "train")
    stored = cache / config.hash / "train" / "pixels.npy"
    before = stored.stat().st_mtime_ns
    again = data.open_split(config, "train")
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert stored.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="read-only"):
        again.pixels[0] = 0
    assert not list(cache.rglob("*.tmp"))


def test_processes_do_not_race(cache):
    code = (
        "from tarflow.data.images import DataConfig, open_split;"
        "print(int(open_split(DataConfig(name='markov-8-3000'), 'train').pixels.sum()))"
    )
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: subprocess.check_output([sys.executable, "-c", code]), range(4))
    assert len(set(found)) == 1
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


# Errors


def test_errors_name_the_row(tmp_path):
    good = png(noise_images(1)[0])
    grey = png(noise_images(1, channels=1)[0])
    cases = {
        "row 2 of .* cannot be decoded": [good, good, good[:-40], good],
        "row 1 of .* cannot be decoded": [good, b"GIF no image"],
        "row 1 of .* is 9x9 pixels, row 0 is 8x8": [good, png(noise_images(1, size=9)[0])],
        "row 0 of .* is 8x6 pixels, not square": [png(noise_images(1)[0][:6])],
        "row 1 of .* is in colour, row 0 is grey": [grey, good],
        "row 1 of .* has no image bytes": [good, None],
        "row 0 of .* is not an 8-bit image": [png(np.zeros((8, 8), np.uint16))],
    }
    for number, (message, blobs) in enumerate(cases.items()):
        config = write(tmp_path / f"{number}.parquet", blobs, split=["train"] * len(blobs))
        with pytest.raises(UserError, match=message):
            data.open_split(config, "train")


def test_errors_say_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"img": [b"x"]}), tmp_path / "other.parquet")
    blob = png(noise_images(1)[0])
    write(tmp_path / "split.parquet", [blob], split=["traim"])
    write(tmp_path / "negative.parquet", [blob], label=[-1])
    write(tmp_path / "words.parquet", [blob], label=["cat"])
    write(tmp_path / "rows.parquet", [])
    for name, message in {
        "digit": "no data set 'digit'",
        "leaves-2": "SIZE 4 to 1024",
        f"{tmp_path}/empty": "holds no Parquet file",
        f"{tmp_path}/text.parquet": "is not a Parquet file",
        f"{tmp_path}/other.parquet": "has the columns img",
        f"{tmp_path}/split.parquet": "split 'traim'",
        f"{tmp_path}/negative.parquet": "label -1 is negative",
        f"{tmp_path}/words.parquet": "labels are string",
        f"{tmp_path}/rows.parquet": "has no rows",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            data.describe(DataConfig(name=name))
        assert "\n" not in str(caught.value)
    one = write(tmp_path / "one.parquet", [blob], split=["train"])
    with pytest.raises(UserError, match="the test split is empty"):
        data.open_split(one, "test")


# Order


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
    found = data.batch(images, indices)
    np.testing.assert_array_equal(found, [images.pixels[i] for i in indices])
    assert found.flags.c_contiguous
    assert found.flags.writeable


# Computed sets


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
    # Far tails stay finite and fall by 1/SCALE nats per level.
    tail = procedural.markov_log_probability(levels, np.float64(0))
    np.testing.assert_allclose(np.diff(tail)[200:-1], -1 / procedural.SCALE, rtol=1e-9)


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
    padded = np.full((7, 7), 128.0)
    padded[1:, 1:] = image[0, 0]
    nats = 0.0
    for row in range(1, 7):
        for column in range(1, 7):
            mean = procedural._mean(padded[row - 1, column], padded[row, column - 1])
            nats -= procedural.markov_log_probability(padded[row, column], mean)
    assert procedural.markov_bits(image)[0] == pytest.approx(nats / np.log(2) / 36, rel=1e-12)


# Imports
