"""Loss, bits per dimension (BPD) and the bound that makes noise levels comparable.

Legend: `B` batch, `C` colour channels, `H` height and width, `T` tokens per image, `D` values per
token, `N_dim = T * D`. Images are 8 bit; `x` in [-1, 1].
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call

from tarflow.config import ModelConfig, NoiseConfig
from tarflow.cost import ACTIVATIONS_PER_LAYER
from tarflow.model import noise
from tarflow.model.decoder import LEVELS, Decoder
from tarflow.model.flow import TarFlow

HALF_LN_2PI = 0.5 * math.log(2 * math.pi)
BPD_OFFSET = (HALF_LN_2PI + math.log(LEVELS / 2)) / math.log(2)  # 8.325748: bins are 1/128 wide
ACTIVATION_BYTES = 2**30  # that images on their way through a flow may keep at a time


def negative_log_likelihood(latents: Tensor, logdet: Tensor) -> Tensor:
    """Return the training loss per image, nats per dimension without the Gaussian constant.

    Zhai et al. 2025, equation 6; reduced in float32 or wider.

    Args:
        latents: (B, T, D).
        logdet: (B,), per dimension.

    Returns:
        (B,) losses.
    """
    wide = latents if latents.dtype == torch.float64 else latents.float()
    loss: Tensor = 0.5 * wide.square().mean(dim=(1, 2)) - logdet
    return loss


def log_density(flow: TarFlow, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the log density of continuous images in nats, (B,) for (B, C, H, H).

    Volume-preserving models have a prior of variance `flow.var` instead of one.
    """
    latents, logdet = flow(images, labels)
    density: Tensor = (flow.log_prior(latents) + logdet) * flow.config.dims
    return density


def dequantised_bpd(loss: Tensor) -> Tensor:
    """Turn the loss of uniformly dequantised images into bits per dimension."""
    return loss / math.log(2) + BPD_OFFSET


def score_function(
    flow: TarFlow, images: Tensor, labels: Tensor | None = None, *, standard_prior: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the log density with respect to the images, and the log density.

    Images go through in as many parts as keep memory bounded; the parts do not change the result.

    Args:
        flow: the model in eval mode; its parameters get no gradient.
        images: (B, C, H, H), not changed.
        labels: (B,) int64, -1 where dropped; `None` drops all.
        standard_prior: take a standard normal prior instead of `flow.log_prior`; they differ for
            volume-preserving flows only.

    Returns:
        (B, C, H, H) scores and (B,) log densities in nats, both detached.

    Raises:
        UserError: if a label is unknown.
    """
    flow.check_labels(labels)
    config = flow.config
    constants = {name: weight.detach() for name, weight in flow.named_parameters()}
    at_a_time = images_at_a_time(config, config.blocks * config.layers, images.element_size())
    scores: list[Tensor] = []
    densities = []
    for start in range(0, len(images), at_a_time):
        part = slice(start, start + at_a_time)
        with torch.enable_grad():
            point = images[part].detach().clone().requires_grad_()
            part_labels = None if labels is None else labels[part]
            latents, logdet = functional_call(flow, constants, (point, part_labels))
            if standard_prior:
                prior = -0.5 * latents.square().mean((1, 2)) - HALF_LN_2PI
            else:
                prior = flow.log_prior(latents)
            density = (prior + logdet) * config.dims
            scores += torch.autograd.grad(density.sum(), point)
        densities.append(density.detach())
    return torch.cat(scores), torch.cat(densities)


def images_at_a_time(model: ModelConfig, layers: int, value_bytes: int) -> int:
    """Return how many images may go through a flow that keeps the activations of some layers."""
    width = layers * ACTIVATIONS_PER_LAYER * model.channels
    return max(1, ACTIVATION_BYTES // (model.tokens * width * value_bytes))


def denoised_mean(
    flow: TarFlow, noised: Tensor, labels: Tensor | None, std: float
) -> tuple[Tensor, Tensor]:
    """Return the flow's own denoised mean and its log density.

    `xhat = y + std^2 * grad log p(y)` (Tweedie; Zhai et al. 2025, section 3.4).

    Args:
        flow: its parameters get no gradient.
        noised: (B, C, H, H), y.
        labels: (B,) or None.
        std: of the Gaussian noise in y.

    Returns:
        xhat (B, C, H, H) and log p(y) (B,) in nats, both detached.
    """
    score, density = score_function(flow, noised, labels)
    return noised.detach() + std**2 * score, density


def bound_bpd(
    flow: TarFlow,
    decoder: Decoder,
    pixels: Tensor,
    noised: Tensor,
    labels: Tensor | None,
    noise_config: NoiseConfig,
) -> tuple[Tensor, Tensor]:
    """Return one draw of the BPD bound of clean images.

    Args:
        flow: prior of the noisy image.
        decoder: fitted on training images.
        pixels: (B, C, H, H) uint8.
        noised: (B, C, H, H), `unit(pixels)` plus Gaussian noise.
        labels: (B,) or None.
        noise_config: of that noise.

    Returns:
        (B,) bits per dimension, and (B,) log p(y) in nats.
    """
    xhat, density = denoised_mean(flow, noised, labels, noise_config.std)
    clean = noise.unit(pixels, noised.dtype)
    drawn = (noised - clean) / noise_config.std
    posterior = -(0.5 * drawn.square() + HALF_LN_2PI + math.log(noise_config.std))
    nats = posterior.flatten(1).sum(1) - density - decoder.log_prob(xhat, pixels)
    return nats / (pixels[0].numel() * math.log(2)), density
