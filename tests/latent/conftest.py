"""A small autoencoder of dead leaves, trained in seconds, and a table of its latents."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tarflow.data.procedural import leaves
from tarflow.data.shards import write_shards

SIDE = 16  # pixels
COUNTS = {"train": 384, "validation": 48, "test": 48}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A table of leaves with their ten classes."""
    rows = [
        (split, png(image), index % 10)
        for split, count in COUNTS.items()
        for index, image in enumerate(leaves(split, 0, count, SIDE))
    ]
    folder = tmp_path_factory.mktemp("data") / "leaves"
    write_shards(folder, rows, [])
    return folder


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory):
    """The folder of an autoencoder: latents of 4 x 8 x 8 values of standard deviation 1."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    images = torch.from_numpy(leaves("train", 0, 384, SIDE)) / 127.5 - 1
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(80):
        part = images[np.arange(step * 16, step * 16 + 16) % len(images)]
        posterior = network.encode(part).latent_dist
        error = (network.decode(posterior.mean).sample - part).square().mean()
        optimizer.zero_grad()
        (error + 1e-3 * posterior.mean.square().mean()).backward()
        optimizer.step()
    assert error < 0.2  # an image of zeros has 0.4
    with torch.no_grad():
        latents = network.encode(images).latent_dist.mean
    network.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
    )
    folder = tmp_path_factory.mktemp("models") / "leaves-vae"
    network.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def latents(tmp_path_factory, pictures, autoencoder):
    """The table of latents that the command line makes."""
    from tarflow.__main__ import main

    folder = tmp_path_factory.mktemp("data") / "latents"
    arguments = ["data", "encode", str(pictures), str(folder), "--autoencoder", str(autoencoder)]
    assert main(arguments) == 0
    return folder
