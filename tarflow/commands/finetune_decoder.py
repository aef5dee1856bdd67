"""`python -m tarflow finetune-decoder`: a decoder for the noisy latents that a model draws."""

from pathlib import Path
from typing import Annotated

import tyro

from tarflow.commands.progress import progress
from tarflow.config import DataConfig, ExecutionConfig
from tarflow.errors import UserError, check_counts, check_flags
from tarflow.storage import locate


def finetune_decoder(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    noise_std: float | None = None,
    autoencoder: str = "",
    steps: int = 500,
    batch: int = 16,
    lr: float = 1e-4,
    seed: int = 0,
) -> int:
    """Train the decoder of an autoencoder on noisy latents, in place of the denoising step.

    Use it with: python -m tarflow sample MODEL --autoencoder TARGET --denoise 0

    Args:
        source: File model.safetensors of a model of latents, or a table of latents.
        target: Folder of the new autoencoder, to create.
        noise_std: Standard deviation of the noise on latents; by default that of the model.
        autoencoder: Folder of the autoencoder to start from, if not the one that encoded the
            images.
        steps: Optimizer steps.
        batch: Images per step.
        lr: Peak learning rate.
        seed: Seed of the images and the noise.
    """
    from tarflow import data
    from tarflow.device import choose_device
    from tarflow.latent import finetuning
    from tarflow.latent.autoencoder import find_autoencoder
    from tarflow.model.weights import latents_of_model, load_model

    check_flags(noise_std=noise_std, lr=lr)
    check_counts(steps=steps, batch=batch)
    if source.endswith(".safetensors"):
        _, config = load_model(locate(source))
        space = latents_of_model(locate(source))
        noise_std = config.noise.std if noise_std is None else noise_std
    else:
        space = data.latent_space(DataConfig(name=source))
        if noise_std is None:
            raise UserError("a table does not tell the noise of a model: give --noise-std")
    if space is None:
        raise UserError(f"{source} has pixels, not latents: nothing decodes them")
    found = find_autoencoder(space, autoencoder, choose_device(ExecutionConfig()))
    images = data.source_of(space)
    errors = finetuning.finetune_decoder(
        found, images, noise_std, target, steps, batch, lr, seed, progress("steps")
    )
    print(
        f"{target}: root mean square error of {errors.images} validation images, of noisy latents "
        f"{errors.before:.4f} before and {errors.after:.4f} after; without noise "
        f"{errors.noiseless:.4f}"
    )
    return 0
