"""Randomness as a function of (seed, purpose, position), and the noise added to images.

Legend: `B` batch, `C` colour channels, `H` height and width. Images are 8 bit; `x` in [-1, 1].
Nothing here touches a global generator, so a run sees the same noise after it was resumed, batched
differently or spread over other workers.
"""

import hashlib

import torch
from torch import Tensor

from tarflow.config import NoiseConfig


def generator(seed: int, purpose: str, position: int = 0, device: str = "cpu") -> torch.Generator:
    """Return a random generator that depends on the arguments only."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{position}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal_per_image(
    indices: Tensor, shape: tuple[int, ...], seed: int, purpose: str, dtype: torch.dtype
) -> Tensor:
    """Draw standard normal noise that is a function of (seed, purpose, index) for each image.

    Drawn on the CPU, so that every device and batch size sees the same noise.

    Args:
        indices: (B,) position of each image in its data set.
        shape: Shape of the noise of one image.
        seed: Seed of all images.
        purpose: What the noise is for; each purpose gives independent noise.
        dtype: Type of the result; the values are drawn in float32.

    Returns:
        (B, *shape) noise.
    """
    noise = torch.empty(len(indices), *shape)
    for row, index in enumerate(indices.tolist()):
        noise[row].normal_(generator=generator(seed, purpose, index))
    return noise.to(dtype)


def unit(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map 8-bit pixels to [-1, 1]; floats, which are latents, keep their values."""
    return pixels.to(dtype) if pixels.is_floating_point() else pixels.to(dtype) / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Map [-1, 1] images to the nearest 8-bit pixels."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def noisy(pixels: Tensor, noise: NoiseConfig, rng: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Add training noise to (B, C, H, H) 8-bit pixels, giving values in about [-1, 1].

    Latents are floats of any range, and take Gaussian noise only.

    Gaussian noise has standard deviation `noise.std`; uniform noise fills the 256 bins, so that
    the density of the result bounds the probability of the pixels (dequantisation).
    """
    if noise.type == "uniform":
        filled = torch.rand(pixels.shape, generator=rng, device=pixels.device, dtype=dtype)
        return (pixels.to(dtype) + filled) / 128 - 1
    drawn = torch.randn(pixels.shape, generator=rng, device=pixels.device, dtype=dtype)
    return unit(pixels, dtype) + noise.std * drawn
