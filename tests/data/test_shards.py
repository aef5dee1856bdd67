"""Shards that imports write."""

import pyarrow.parquet as pq
from image_files import noise_images, png

from tarflow.data import shards


def test_rows_fill_shards_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_SHARD_ROWS", 4)
    rows = [("train", png(image), label) for label, image in enumerate(noise_images(8))]
    rows += [("test", png(image), label) for label, image in enumerate(noise_images(5))]
    assert shards.write_shards(tmp_path / "set", rows, []) == {"train": 8, "test": 5}
    labels = {
        path.name: pq.read_table(path)["label"].to_pylist()
        for path in (tmp_path / "set").iterdir()
    }
    assert labels == {
        "train-00000.parquet": [0, 1, 2, 3],
        "train-00001.parquet": [4, 5, 6, 7],
        "test-00000.parquet": [0, 1, 2, 3],
        "test-00001.parquet": [4],
    }
