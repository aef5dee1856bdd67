"""Pictures of many images: where each image is, how large, and what the file says of it."""

import json

import numpy as np
import torch
from PIL import Image

from tarflow.config import SamplerConfig
from tarflow.sample.grid import captions, image_grid, save_grid


def test_images_are_in_rows_and_large_enough_to_see():
    images = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 3, 4, 4)
    grid = image_grid(images, columns=2)
    assert max(grid.size) >= 512
    scale = int(grid.info["scale"])
    small = np.asarray(grid)[::scale, ::scale]
    assert (np.asarray(grid) == small.repeat(scale, 0).repeat(scale, 1)).all()  # sharp
    assert small.shape == (14, 14, 3)
    cells = [small[3, 3], small[3, 9], small[9, 3], small[9, 9], small[0, 0]]
    assert [cell.tolist() for cell in cells] == [[v] * 3 for v in (0, 128, 255, 255, 255)]
    assert image_grid(images[:, :1], columns=2).mode == "L"
    pixels = torch.full((1, 1, 600, 600), 7, dtype=torch.uint8)
    assert image_grid(pixels).size == (604, 604)  # large already
    assert image_grid(pixels).getpixel((300, 300)) == 7


def test_every_class_has_a_row():
    labels = torch.tensor([7, 3, 7, 3, 7])
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 4, 4)
    small = np.asarray(image_grid(images, labels))
    scale = len(small) // 14
    small = small[::scale, ::scale]
    assert small[3::6, 3::6].tolist() == [[1, 3, 255], [0, 2, 4]]
    apart = image_grid(images, torch.arange(5))  # one image of each: rows would be a column
    assert apart.info["rows"] == "images"
    assert apart.width > apart.height


def test_the_file_says_what_it_shows(tmp_path):
    path = tmp_path / "new" / "samples.png"
    words = captions("model", 3, SamplerConfig(guidance=2.5), "0 1")
    save_grid(path, image_grid(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])), words)
    with Image.open(path) as picture:
        text = picture.text
    assert [text[word] for word in ("model", "seed", "guidance")] == ["model", "3", "2.5"]
    assert text["labels"] == "0 1"
    assert json.loads(text["sampler"])["guidance"] == 2.5
    assert text["rows"] == "classes"
    assert text["git"]
