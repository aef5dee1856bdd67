"""Imports of IDX files, the format of MNIST."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_files import idx, labels_of, noise_images, write_idx

from tarflow import data
from tarflow.__main__ import main
from tarflow.config import DataConfig
from tarflow.data.idx import class_names, read_idx
from tarflow.data.importing import import_idx
from tarflow.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")
pytestmark = pytest.mark.usefixtures("cache")


def test_files_are_found_by_their_names(tmp_path, capsys):
    images = noise_images(50, channels=1)
    write_idx(tmp_path / "source", "train", images[:40], [3, 0] * 20)
    write_idx(tmp_path / "source", "t10k", images[40:], [2] * 10, ending="")
    (tmp_path / "source/README.md").write_text("not an image")
    assert main(["data", str(tmp_path / "source"), str(tmp_path / "set")]) == 0
    printed = capsys.readouterr().out
    assert "/set: 40 train, 10 test\n" in printed
    assert "stored as 8x8 pixels, grey; labels 0 to 3\n" in printed
    assert "no validation images found; runs will take some out of train" in printed
    assert labels_of(tmp_path / "set") == {"train": [3, 0] * 20, "test": [2] * 10}
    test = data.open_split(DataConfig(name=str(tmp_path / "set")), "test")
    np.testing.assert_array_equal(test.pixels[:, 0], images[40:])


def test_a_file_and_its_compressed_copy_are_one(tmp_path):
    images = noise_images(3, channels=1)
    for ending in (".gz", ""):
        write_idx(tmp_path / "source", "train", images, [0, 1, 2], ending)
    assert import_idx(tmp_path / "source", tmp_path / "set").counts == {"train": 3}


@pytest.mark.parametrize("ending", [".gz", ""])
def test_damaged_files_are_refused_in_a_line(tmp_path, ending):
    source = tmp_path / "source"
    write_idx(source, "train", noise_images(3, channels=1), [0, 1, 2], ending)
    images, labels = (
        source / f"train-{kind}-ubyte{ending}" for kind in ("images-idx3", "labels-idx1")
    )
    whole = images.read_bytes(), labels.read_bytes()
    pack = gzip.compress if ending else bytes
    for path, content in [
        (images, whole[0][:-30]),
        (images, whole[0][:9]),
        (images, b""),
        (images, b"<html>404 Not Found</html>"),
        (images, pack(idx(noise_images(3, channels=1)) + b"x")),
        (images, pack(idx(noise_images(3, channels=1)[:, :5]))),
        (images, whole[1]),
        (labels, pack(idx(np.zeros(2, np.uint8)))),
        (labels, pack(struct.pack(">II", 0xD01, 3) + bytes(12))),
    ]:
        images.write_bytes(whole[0])
        labels.write_bytes(whole[1])
        path.write_bytes(content)
        with pytest.raises(UserError, match=str(source)) as caught:
            import_idx(source, tmp_path / "set")
        assert "\n" not in str(caught.value)
    labels.unlink()
    images.write_bytes(whole[0])
    import_idx(source, tmp_path / "unlabelled")
    assert data.describe(DataConfig(name=str(tmp_path / "unlabelled"))).classes == 0
    write_idx(source, "t10k", noise_images(3, channels=1), [0, 1, 2])
    with pytest.raises(UserError, match="the train images have no file of labels"):
        import_idx(source, tmp_path / "set")
    images.unlink()
    (source / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match="the test labels have no file of images"):
        import_idx(source, tmp_path / "set")


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_the_classes_of_fashion_mnist_have_names():
    part = next(read_idx(FASHION))
    assert (part.split, part.images.shape) == ("train", (60_000, 28, 28))
    assert class_names(part)[9] == "Ankle boot"
    assert class_names(replace(part, labels=part.labels[1:])) == []
