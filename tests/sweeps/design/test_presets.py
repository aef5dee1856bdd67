"""The data of the presets: what one downloads, imported as the presets say, fits their models."""

from pathlib import Path

import numpy as np
import pytest
from image_files import noise_images, write_cifar10, write_idx
from PIL import Image

from sweeps.design.presets import IMPORTS, PRESETS, load
from sweeps.design.study import resolve_study
from tarflow import data
from tarflow.__main__ import main
from tarflow.data import codec
from tarflow.data.shards import write_shards


def save_folders(root, classes, photographs=1, sides=(40, 30)):
    """Write photographs for every class and split, as ImageNet and AFHQ unpack."""
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for number in range(classes):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            for photograph in range(photographs):
                Image.fromarray(pixels).save(folder / f"{photograph}.jpg")


def save_autoencoder(folder):
    """Save one with Stable Diffusion's latents and random weights."""
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(2,) * 4,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        scaling_factor=0.18215,
    )
    network.save_pretrained(str(folder))


def write_source(name, here):
    if name == "data/cifar10":
        write_cifar10(here / "cifar-10-batches-py", noise_images(240, size=32))
    elif name == "data/fashion":
        for split in ("train", "t10k"):
            write_idx(here / "fashion-mnist", split, noise_images(60, 28, channels=1), [0, 9] * 30)
    elif name == "data/imagenet64":
        (here / "Imagenet64_npz").mkdir()
        rows = noise_images(48, size=64).transpose(0, 3, 1, 2).reshape(48, -1)
        for file in ("train_data_batch_1", "val_data"):
            np.savez(here / f"Imagenet64_npz/{file}.npz", data=rows, labels=np.arange(1, 49))
    elif name == "data/imagenet-256px-latents":
        save_autoencoder(here / "sd-vae-ft-ema")
        photographs = noise_images(15, size=256)
        pngs = [codec.encode_png(Image.fromarray(pixels)) for pixels in photographs]
        rows = [(data.SPLITS[row % 3], png, row) for row, png in enumerate(pngs)]
        names = [f"n{number:08d}" for number in range(1000)]
        write_shards(here / "data/imagenet-256px", rows, names)
    elif name == "data/afhq-256px":
        save_folders(here / "afhq", 3, photographs=2)
    else:
        save_folders(here / "ILSVRC2012", 1000)


@pytest.mark.parametrize("name", IMPORTS)
def test_imported_data_fit_every_preset_that_names_them(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    write_source(name, tmp_path)
    source, *arguments = IMPORTS[name].split()
    assert main(["data", Path(source).name, *arguments]) == 0, capsys.readouterr().err
    studies = [study for study in map(load, PRESETS) if study.base.data.name == name]
    assert studies
    for study in studies:
        found = resolve_study(study)
        assert found.base.data.hash
        assert found.validation_images > 0
