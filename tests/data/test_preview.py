"""The picture that shows what an import wrote."""

import numpy as np
import pytest
from image_files import noise_images, png, write
from PIL import Image

from tarflow.__main__ import main
from tarflow.data.preview import COLUMNS, ROWS, preview
from tarflow.data.tables import find_table

pytestmark = pytest.mark.usefixtures("cache")


def test_a_row_shows_the_first_images_of_a_class(tmp_path):
    images = noise_images(40)
    labels = [2, 0] * 16 + [0] * 8  # no image of class 1
    split = ["test"] + ["train"] * 38 + ["validation"]
    path = tmp_path / "a.parquet"
    write(path, [png(image) for image in images], label=labels, split=split)
    shown = preview(find_table(str(path))).transpose(0, 2, 3, 1)
    assert len(shown) == 3 * COLUMNS
    np.testing.assert_array_equal(shown[:10], images[1:20:2])
    assert (shown[10:20] == 255).all()
    np.testing.assert_array_equal(shown[20:30], images[2:22:2])  # image 0 is of the test split


def test_an_import_writes_a_picture(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=noise_images(150), labels=np.arange(150) % 15)
    np.savez(tmp_path / "b.npz", images=noise_images(150))
    for name in ("a", "b"):
        picture = tmp_path / "pictures" / f"{name}.png"
        command = ["data", str(tmp_path / f"{name}.npz"), str(tmp_path / name)]
        assert main([*command, "--preview", str(picture)]) == 0
        assert str(picture) in capsys.readouterr().out
        with Image.open(picture) as sheet:
            assert sheet.reduce(5).size == (COLUMNS * 10 + 2, ROWS * 10 + 2)
