"""An autoencoder of images in the layout of the library diffusers: images to latents and back.

Legend: `N` images, `B` batch, `c` colour channels, `H` pixels along one side, `C` channels and `S`
values along one side of a latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow import data
from tarflow.config import DataConfig, RunConfig
from tarflow.errors import UserError
from tarflow.latent.files import check_autoencoder, check_folder, digest_of
from tarflow.latent_space import LatentSpace
from tarflow.model.flow import TarFlow
from tarflow.model.weights import latents_of_model
from tarflow.storage import expand

BATCH = 16  # images that pass at a time


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A variational autoencoder, on its device in eval mode, with its identity."""

    network: Any  # diffusers.AutoencoderKL
    folder: Path
    digest: str  # hash of the weights and the config
    scaling: float
    shift: float

    @property
    def name(self) -> str:
        """Name in tables, such as `sd-vae@1f3a90c2`."""
        return f"{self.folder.name}@{self.digest[:8]}"

    @property
    def image_channels(self) -> int:
        """Colour channels of its images, c."""
        return int(self.network.config.in_channels)

    @property
    def latent_channels(self) -> int:
        """Channels of its latents, C."""
        return int(self.network.config.latent_channels)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the scaled latents (N, C, S, S), on the CPU, of (N, c, H, H) images in [-1, 1].

        Grey images are taken as colour images if the autoencoder has colours.
        """
        images = images.expand(-1, self.image_channels, -1, -1)
        parts = [
            self.network.encode(part.to(self.network.device)).latent_dist.mean
            for part in images.split(BATCH)
        ]
        return (torch.cat(parts).cpu() - self.shift) * self.scaling

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, c, H, H) in [-1, 1], on the CPU, of scaled (N, C, S, S) latents."""
        parts = [self.decode_batch(part).clamp(-1, 1).cpu() for part in latents.split(BATCH)]
        return torch.cat(parts)

    def decode_batch(self, latents: Tensor) -> Tensor:
        """Return images (B, c, H, H) that gradients pass through, not clamped."""
        unscaled = latents.to(self.network.device, torch.float32) / self.scaling + self.shift
        images: Tensor = self.network.decode(unscaled).sample
        return images


def load_autoencoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Read an autoencoder that diffusers' `save_pretrained` wrote.

    Raises:
        UserError: If diffusers is not installed, or the folder is missing or holds another model.
    """
    folder = expand(folder)
    check_folder(folder)
    return _load(folder, digest_of(folder), device)


def _load(folder: Path, digest: str, device: torch.device | str) -> Autoencoder:
    from diffusers import AutoencoderKL

    try:
        network = AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, low_cpu_mem_usage=False, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read {folder}: {str(error).strip().splitlines()[0]}") from None
    network = network.eval().requires_grad_(False).to(device)
    return Autoencoder(
        network=network,
        folder=folder,
        digest=digest,
        scaling=float(network.config.scaling_factor),
        shift=float(network.config.shift_factor or 0.0),
    )


def find_autoencoder(
    space: LatentSpace, folder: str = "", device: torch.device | str = "cpu"
) -> Autoencoder:
    """Read the autoencoder of a latent space, or another one for the same latents.

    Args:
        space: Latent space of a table or model.
        folder: Folder of another autoencoder, such as one with a fine-tuned decoder; empty for
            the one that encoded the latents.
        device: Device that it runs on.

    Raises:
        UserError: If it is missing, has changed, or has other latents.
    """
    path, digest = check_autoencoder(space, folder)
    found = _load(path, digest, device)
    theirs = found.latent_channels, found.scaling, found.shift
    if theirs != (space.shape[0], space.scaling, space.shift):
        raise UserError(
            f"the latents of {found.folder} have {theirs[0]} channels, scaling {theirs[1]:g} and "
            f"shift {theirs[2]:g}, these {space.shape[0]}, {space.scaling:g} and {space.shift:g}: "
            "name an autoencoder for the same latents"
        )
    return found


def decoder_of(
    checkpoint: Path, flow: TarFlow, config: RunConfig, folder: Path | None = None
) -> Autoencoder | None:
    """Return what decodes the latents that a model draws; None for a model of pixels.

    Args:
        checkpoint: The model, which says what its latents come from.
        flow: The model, on its device.
        config: Configuration of its run.
        folder: Folder of another autoencoder; None for that of the config or of the model.

    Raises:
        UserError: If it is missing, or decodes other latents.
    """
    space, device = latents_of_model(checkpoint), flow.var.device
    if space:
        chosen = str(folder or config.evaluation.autoencoder)
        return find_autoencoder(space, chosen, device)
    if folder is None:
        return None
    autoencoder, channels = load_autoencoder(folder, device), flow.config.image_channels
    if autoencoder.latent_channels != channels:
        raise UserError(
            f"{folder} has latents of {autoencoder.latent_channels} channels, the model makes "
            f"{channels}: name another autoencoder, or none if the model makes pixels"
        )
    return autoencoder


def autoencoder_of(
    config: DataConfig, folder: str = "", device: torch.device | str = "cpu"
) -> Autoencoder | None:
    """Return the autoencoder that decodes the latents of a data set; None if it holds images.

    Args:
        config: The data.
        folder: As for `find_autoencoder`.
        device: Device that it runs on.

    Raises:
        UserError: As `find_autoencoder`; if there is no such data set.
    """
    space = data.latent_space(config)
    return find_autoencoder(space, folder, device) if space else None
