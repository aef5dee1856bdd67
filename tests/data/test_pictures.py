"""Pictures that `score` reads: found and decoded as imports do."""

import numpy as np
import pytest
from image_files import noise_images, png, write
from PIL import ExifTags, Image

from tarflow.data.pictures import read_pictures
from tarflow.errors import UserError
from tarflow.model_config import ModelConfig

MODEL = ModelConfig(image_size=8, image_channels=3, patch=4)


def test_folders_are_read_upright_without_hidden_files(tmp_path):
    stored = noise_images(1)[0]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "cat").mkdir()
    Image.fromarray(stored).save(tmp_path / "cat/0.png", exif=exif)
    (tmp_path / "cat/._0.png").write_bytes(b"resource fork")
    images, names, _ = read_pictures([tmp_path], MODEL)
    assert names == [str(tmp_path / "cat/0.png")]
    np.testing.assert_array_equal(images.pixels[0], np.rot90(stored, -1).transpose(2, 0, 1))


def test_archives_of_several_splits_are_read_in_full(tmp_path):
    stored = noise_images(3)
    arrays = {"x_train": stored[:2], "y_train": [0, 4], "x_test": stored[2:], "y_test": [2]}
    np.savez(tmp_path / "a.npz", **arrays)
    images, names, _ = read_pictures([tmp_path / "a.npz"], MODEL)
    np.testing.assert_array_equal(images.pixels, stored.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == [0, 4, 2]
    assert [name.rpartition(":")[2] for name in names] == ["x_train#0", "x_train#1", "x_test#0"]


def test_deep_pictures_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png is not an 8-bit image"):
        read_pictures([tmp_path / "deep.png"], MODEL)


def test_broken_pictures_are_named_at_once_or_left_out(tmp_path):
    stored = noise_images(4)
    for name, image in zip("abc", stored, strict=False):
        (tmp_path / f"{name}.png").write_bytes(png(image))
    for name in ("d.png", "e.jpg"):
        (tmp_path / name).write_bytes(png(stored[3])[:-40])
    blobs = [b"no image", png(stored[3]), None]
    write(tmp_path / "table/t.parquet", blobs, label=[4, 5, 6])
    paths = [tmp_path / name for name in ("a.png", "b.png", "d.png", "e.jpg", "c.png", "table")]
    with pytest.raises(UserError, match="cannot use 4 of 8 images: ") as caught:
        read_pictures(paths, MODEL)
    for words in ("d.png: ", "e.jpg: ", "decode row 0 of ", "row 2 of "):
        assert words in str(caught.value)
    images, names, notes = read_pictures(paths, MODEL, skip_broken=True)
    np.testing.assert_array_equal(images.pixels, stored.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == [-1, -1, -1, 5]
    assert names[-2:] == [str(tmp_path / "c.png"), f"{tmp_path}/table#1"]
    assert [note.partition(":")[0] for note in notes] == ["left out (4)"]
    with pytest.raises(UserError, match="cannot use 2 of 2 images"):
        read_pictures(paths[2:4], MODEL, skip_broken=True)
