"""Fine-tune the decoder of an autoencoder on noisy latents (Gu et al. 2025).

A flow trained on noisy latents draws noisy latents. The decoder learns to make clean images of
them, which takes the place of the denoising step.

Legend: `N` images, `c` colour channels, `H` pixels along one side.
"""

import copy
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tarflow import data
from tarflow.config import DataConfig
from tarflow.data.splits import Split
from tarflow.errors import UserError
from tarflow.human import Progress, silent
from tarflow.latent.autoencoder import Autoencoder
from tarflow.model.noise import generator, normal_per_image, unit

HELD_OUT = 256  # validation images that the decoders are compared on


@dataclass(frozen=True)
class Comparison:
    """Root mean square error of held-out images, in [-1, 1], decoded from noisy latents."""

    before: float
    after: float
    noiseless: float  # of the decoder as it was, from latents without noise
    images: int


def finetune_decoder(
    autoencoder: Autoencoder,
    images: DataConfig,
    noise_std: float,
    target: Path,
    steps: int = 500,
    batch: int = 16,
    lr: float = 1e-4,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Train the decoder to make images of noisy latents, and write a new autoencoder folder.

    The encoder stays as it is, so the new autoencoder is one for the same latents. The loss is the
    mean square error, which makes the images smoother the higher the noise.

    Args:
        autoencoder: Autoencoder to start from; it is not changed.
        images: The images that it encoded.
        noise_std: Standard deviation of the noise on scaled latents.
        target: Folder to create.
        steps: Optimizer steps.
        batch: Images per step.
        lr: Peak learning rate of Adam, which falls linearly to zero.
        seed: Seed of the choice of images and of the noise.
        progress: Called after each step.

    Returns:
        Errors of held-out images before and after.

    Raises:
        UserError: If the target exists, the images are missing, or the loss stops being finite.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    count = data.describe(images).train
    chosen = data.order(count, seed, 0, min(count, steps * batch))
    train = data.choose_images(images, "train", chosen)
    network = copy.deepcopy(autoencoder.network)
    tuned = replace(autoencoder, network=network)
    trained = [network.decoder, network.post_quant_conv]
    parameters = [p for part in trained if part is not None for p in part.parameters()]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    started = time.monotonic()
    for step in range(steps):
        picked = data.order(len(train), seed, step * batch, batch)
        clean = _colours(unit(torch.from_numpy(train[picked])), autoencoder)
        latents = autoencoder.encode(clean)
        noise = torch.randn(latents.shape, generator=generator(seed, "decoder", step))
        decoded = tuned.decode_batch(latents + noise_std * noise)
        loss = (decoded - clean.to(decoded.device)).square().mean()
        if not torch.isfinite(loss):
            raise UserError(f"the loss is not finite after {step} steps: write a smaller --lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps, time.monotonic() - started)
    network.requires_grad_(False)
    _save(tuned, target)
    return _compare(autoencoder, tuned, images, noise_std)


def _colours(images: Tensor, autoencoder: Autoencoder) -> Tensor:
    return images.expand(-1, autoencoder.image_channels, -1, -1)


def _save(autoencoder: Autoencoder, target: Path) -> None:
    """Write the folder of an autoencoder, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        autoencoder.network.save_pretrained(str(temporary))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compare(
    before: Autoencoder, after: Autoencoder, images: DataConfig, noise_std: float
) -> Comparison:
    """Decode the same noisy latents of held-out images with both."""
    split: Split = "validation"
    count = min(HELD_OUT, data.describe(images).validation)
    indices = torch.arange(count)
    pixels = torch.from_numpy(data.choose_images(images, split, indices.numpy()))
    clean = _colours(unit(pixels), before)
    latents = before.encode(clean)
    shape = tuple(latents.shape[1:])
    noised = latents + noise_std * normal_per_image(indices, shape, 0, "decoder", latents.dtype)

    def error(decoded: Tensor) -> float:
        return (decoded - clean).square().mean().sqrt().item()

    return Comparison(
        before=error(before.decode(noised)),
        after=error(after.decode(noised)),
        noiseless=error(before.decode(latents)),
        images=count,
    )
