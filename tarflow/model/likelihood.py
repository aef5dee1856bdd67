"""Loss, bits per dimension (BPD) and the bound that makes noise levels comparable.

Legend: `B` batch, `C` colour channels, `H` height and width, `T` tokens per image, `D` values per
token, `N_dim = T * D`. Images are 8 bit; `x` in [-1, 1].
"""

import math

import torch
from torch import Tensor
from torch.func import functional_call

from tarflow.config import NoiseConfig
from tarflow.cost import ACTIVATIONS_PER_LAYER
from tarflow.model import noise
from tarflow.model.decoder import LEVELS, Decoder
from tarflow.model.flow import TarFlow
from tarflow.model_config import ModelConfig

HALF_LN_2PI = 0.5 * math.log(2 * math.pi)
BPD_OFFSET = (HALF_LN_2PI + math.log(LEVELS / 2)) / math.log(2)  # 8.325748: bins are 1/128 wide
ACTIVATION_BYTES = 2**30  # most that the activations of one pass may take


def negative_log_likelihood(latents: Tensor, logdet: Tensor) -> Tensor:
    """Return the training loss per image, nats per dimension without the Gaussian constant.

    Zhai et al. 2025, equation 6; reduced in float32 or wider.

    Args:
        latents: (B, T, D) noise that images were mapped to.
        logdet: (B,) log-determinants in nats per dimension.

    Returns:
        (B,) losses.
    """
    wide = latents if latents.dtype == torch.float64 else latents.float()
    loss: Tensor = 0.5 * wide.square().mean(dim=(1, 2)) - logdet
    return loss


def log_density(flow: TarFlow, images: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return the log density of continuous images in nats, (B,) for (B, C, H, H)."""
    latents, logdet = flow(images, condition)
    density: Tensor = (flow.log_prior(latents) + logdet) * flow.config.dims
    return density


def dequantised_bpd(loss: Tensor) -> Tensor:
    """Return bits per dimension from the loss of uniformly dequantised images."""
    return loss / math.log(2) + BPD_OFFSET


def latent_bpd(loss: Tensor) -> Tensor:
    """Return bits per latent dimension, `-log2 p(y)` per value, from the loss of noisy latents.

    It is the density of a continuous variable: it may be negative, depends on the noise level and
    the scaling of the latents, and cannot be compared with the bits of pixels.
    """
    return (loss + HALF_LN_2PI) / math.log(2)


def score_function(
    flow: TarFlow, images: Tensor, condition: Tensor | None = None, *, standard_prior: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the log density with respect to the images, and the log density.

    Images pass in parts that keep memory bounded; the parts do not change the result.

    Args:
        flow: Model in eval mode; its parameters get no gradient.
        images: (B, C, H, H) continuous images; they are not changed.
        condition: As for `TarFlow.forward`.
        standard_prior: Whether to take a standard normal prior instead of `flow.log_prior`; they
            differ for volume-preserving flows only.

    Returns:
        (B, C, H, H) scores and (B,) log densities in nats, both detached.

    Raises:
        UserError: If the condition does not fit the flow.
    """
    flow.check_condition(condition)
    config = flow.config
    constants = {name: weight.detach() for name, weight in flow.named_parameters()}
    most = images_at_a_time(config, config.total_layers, images.element_size())
    scores: list[Tensor] = []
    densities = []
    for start in range(0, len(images), most):
        part = slice(start, start + most)
        with torch.enable_grad():
            point = images[part].detach().clone().requires_grad_()
            part_condition = None if condition is None else condition[part]
            latents, logdet = functional_call(flow, constants, (point, part_condition))
            if standard_prior:
                prior = -0.5 * latents.square().mean((1, 2)) - HALF_LN_2PI
            else:
                prior = flow.log_prior(latents)
            density = (prior + logdet) * config.dims
            scores += torch.autograd.grad(density.sum(), point)
        densities.append(density.detach())
    return torch.cat(scores), torch.cat(densities)


def images_at_a_time(model: ModelConfig, layers: int, value_bytes: int) -> int:
    """Return the most images of one pass that keeps the activations of `layers` layers."""
    width = layers * ACTIVATIONS_PER_LAYER * model.channels
    return max(1, ACTIVATION_BYTES // (model.tokens * width * value_bytes))


def denoised_mean(
    flow: TarFlow, noised: Tensor, condition: Tensor | None, std: float
) -> tuple[Tensor, Tensor]:
    """Return the flow's own denoised mean and its log density.

    `xhat = y + std^2 * grad log p(y)` (Tweedie; Zhai et al. 2025, section 3.4).

    Args:
        flow: Model in eval mode; its parameters get no gradient.
        noised: (B, C, H, H) noisy images, y.
        condition: As for `TarFlow.forward`.
        std: Standard deviation of the Gaussian noise in y.

    Returns:
        xhat (B, C, H, H) and log p(y) (B,) in nats, both detached.
    """
    score, density = score_function(flow, noised, condition)
    return noised.detach() + std**2 * score, density


def bound_bpd(
    flow: TarFlow,
    decoder: Decoder,
    pixels: Tensor,
    noised: Tensor,
    condition: Tensor | None,
    noise_config: NoiseConfig,
) -> tuple[Tensor, Tensor]:
    """Return the BPD bound of clean images for one draw of noise.

    Args:
        flow: Model in eval mode, the prior of the noisy images.
        decoder: P(pixel | denoised value), fitted on training images.
        pixels: (B, C, H, H) uint8, the clean images.
        noised: (B, C, H, H) `unit(pixels)` plus Gaussian noise.
        condition: As for `TarFlow.forward`.
        noise_config: Says the standard deviation of that noise.

    Returns:
        (B,) bits per dimension, and (B,) log p(y) in nats.
    """
    xhat, density = denoised_mean(flow, noised, condition, noise_config.std)
    clean = noise.unit(pixels, noised.dtype)
    drawn = (noised - clean) / noise_config.std
    posterior = -(0.5 * drawn.square() + HALF_LN_2PI + math.log(noise_config.std))
    nats = posterior.flatten(1).sum(1) - density - decoder.log_prob(xhat, pixels)
    return nats / (pixels[0].numel() * math.log(2)), density
