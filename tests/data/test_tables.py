"""Image tables: their rows, splits and errors."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import noise_images, png, write
from PIL import ExifTags, Image

from tarflow import data
from tarflow.config import DataConfig, RunConfig
from tarflow.errors import ConfigError, UserError
from tarflow.model_config import ModelConfig

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
        stored = data.open_split(config, split)
        np.testing.assert_array_equal(stored.pixels, expected[offset::3])
        np.testing.assert_array_equal(stored.labels, np.arange(30)[offset::3])
        assert (stored.image_size, stored.channels, stored.classes) == (
            8,
            channels,
            30,
        )


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


def test_large_files_are_hashed_once(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("tarflow.data.tables._REMEMBER", 1)
    config = write(tmp_path / "a.parquet", [png(noise_images(1)[0])])
    digest = data.hash_data(config).hash
    (memo,) = (cache / "digests").iterdir()
    memo.write_text("remembered")
    assert data.hash_data(config).hash != digest
    os.utime(config.name, ns=(1, 1))  # a touched file is read again
    assert data.hash_data(config).hash == digest


def test_errors_name_the_row(tmp_path):
    good = png(noise_images(1)[0])
    grey = png(noise_images(1, channels=1)[0])
    cases = {
        "cannot decode row 2 of ": [good, good, good[:-40], good],
        "cannot decode row 1 of ": [good, b"GIF no image"],
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


def test_shards_may_store_labels_in_different_integers(tmp_path):
    blobs = [png(image) for image in noise_images(4)]
    write(tmp_path / "set/train-0.parquet", blobs[:2], label=pa.array([1, 2], pa.int32()))
    write(tmp_path / "set/train-1.parquet", blobs[2:], label=pa.array([3, 4], pa.int64()))
    config = DataConfig(name=str(tmp_path / "set"))
    assert data.open_split(config, "train").labels.tolist() == [1, 2, 3, 4]
    write(tmp_path / "set/train-2.parquet", blobs[2:], label=["cat", "dog"])
    with pytest.raises(UserError, match="the shards differ in their column 'label'"):
        data.open_split(config, "train")


@pytest.mark.parametrize("column", ["label", "split"])
def test_a_shard_without_a_column_that_others_have_is_named(tmp_path, column):
    blobs = [png(image) for image in noise_images(4)]
    values = {"label": [1, 2], "split": ["train", "test"]}[column]
    write(tmp_path / "first/0.parquet", blobs[:2])
    write(tmp_path / "first/1.parquet", blobs[2:], **{column: values})
    write(tmp_path / "last/0.parquet", blobs[2:], **{column: values})
    write(tmp_path / "last/1.parquet", blobs[:2])
    for table, shard in (("first", "0"), ("last", "1")):
        message = rf"{table}/{shard}\.parquet has no column '{column}', which other shards"
        with pytest.raises(UserError, match=message):
            data.describe(DataConfig(name=str(tmp_path / table)))


def test_an_empty_first_shard_does_not_decide_the_columns(tmp_path):
    blobs = [png(image) for image in noise_images(4)]
    write(tmp_path / "bare/train-0.parquet", [])
    write(tmp_path / "nulls/train-0.parquet", [], label=pa.nulls(0))
    for name in ("bare", "nulls"):
        write(tmp_path / name / "train-1.parquet", blobs, label=[3, 1, 0, 2])
        config = DataConfig(name=str(tmp_path / name))
        assert data.describe(config).classes == 4
        assert data.open_split(config, "train").labels.tolist() == [3, 1, 0, 2]


def test_a_table_of_paths_says_so(tmp_path):
    images = pa.array([{"bytes": None, "path": "cat/0.png"}])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": images.cast(kind)}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"only paths are stored \(cat/0\.png\); make all images"):
        data.describe(DataConfig(name=str(tmp_path / "a.parquet")))


def test_labels_in_another_column_are_pointed_out(tmp_path):
    blobs = [png(image) for image in noise_images(40)]
    table = write(tmp_path / "a.parquet", blobs, fine_label=[0, 1] * 20)
    model = ModelConfig(image_size=8, image_channels=3, classes=2, patch=4)
    with pytest.raises(
        ConfigError, match=r"rename the column of labels to 'label' \(fine_label\)"
    ):
        data.match_data(RunConfig(model=model, data=table))


def test_tables_decode_as_imports_do(tmp_path):
    stored = np.zeros((8, 8, 4), np.uint8)
    stored[:4] = 9, 8, 7, 255  # the upper half; the lower is transparent
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    file = io.BytesIO()
    Image.fromarray(stored).save(file, format="PNG", exif=exif)
    config = write(tmp_path / "a.parquet", [file.getvalue()], split=["train"])
    pixels = data.open_split(config, "train").pixels[0]
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, -1, 0].tolist() == [9, 8, 7]
