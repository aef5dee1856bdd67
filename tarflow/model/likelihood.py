"""Loss, bits per dimension (BPD) and the bound that makes noise levels comparable.

Legend: `B` batch, `C` colour channels, `H` height and width, `T` tokens per image, `D` values per
token, `N_dim = T * D`. Images are 8 bit; `x` in [-1, 1].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tarflow import data, distributed
from tarflow.config import ModelConfig, NoiseConfig, RunConfig
from tarflow.cost import ACTIVATIONS_PER_LAYER
from tarflow.model import noise
from tarflow.model.decoder import LEVELS, Decoder
from tarflow.model.flow import TarFlow

HALF_LN_2PI = 0.5 * math.log(2 * math.pi)
BPD_OFFSET = (HALF_LN_2PI + math.log(LEVELS / 2)) / math.log(2)  # 8.325748: bins are 1/128 wide
ACTIVATION_BYTES = 2**30  # that images on their way through a flow may keep at a time
EVALUATION_SEED = 0  # all runs see the same noise, so that they can be compared image by image


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


@dataclass(frozen=True)
class Likelihood:
    """What held-out images cost a model; every array has one value per image."""

    kind: str  # dequantised or bound
    bpd: np.ndarray  # bits per dimension of the clean 8-bit image
    loss: np.ndarray  # nats per dimension of the noisy image, the training loss
    labels: np.ndarray
    train_loss: float  # mean loss of training images under fresh noise

    def columns(self) -> dict[str, float | str]:
        """Summarise as the columns of a run's row."""
        return {
            "bpd": float(self.bpd.mean()),
            "bpd_kind": self.kind,
            "bpd_se": float(self.bpd.std(ddof=1) / math.sqrt(len(self.bpd))),
            "bpd_median": float(np.median(self.bpd)),
            "bpd_p99": float(np.quantile(self.bpd, 0.99)),
            "bpd_max": float(self.bpd.max()),
            "loss": float(self.loss.mean()),
            "train_loss": self.train_loss,
        }


@dataclass(frozen=True)
class Reference:
    """What training images show of a trained flow."""

    decoder: Decoder | None  # of the BPD bound; None with uniform noise
    losses: Tensor  # (n,) of the images under fresh noise, on the CPU


def training_reference(flow: TarFlow, config: RunConfig, batch: int = 250) -> Reference:
    """Fit the decoder and measure the loss on `evaluation.decoder_images` training images.

    All workers must ask; each takes a part of the images through the flow.

    Args:
        flow: the trained flow, on its device.
        config: of the run.
        batch: images at a time.
    """
    train = data.open_split(config.data, "train")
    count = min(config.evaluation.decoder_images, len(train.labels))
    mine = data.order(len(train.labels), EVALUATION_SEED, 0, count)[distributed.portion(count)]
    shape = 0, flow.config.image_channels, flow.config.image_size, flow.config.image_size
    seen = [torch.empty(shape, dtype=torch.uint8)]  # so that those who have no image can join
    xhats, losses = [torch.empty(shape, dtype=flow.var.dtype)], [flow.var.new_empty(0)]
    for pixels, labels, noised in noised_batches(train, mine, config, flow, "decoder", batch):
        if config.noise.type == "gaussian":
            xhat, density = denoised_mean(flow, noised, labels, config.noise.std)
            xhats.append(xhat.cpu())
            seen.append(pixels.cpu())
        else:
            with torch.no_grad():
                density = log_density(flow, noised, labels)
        losses.append(_loss(density, noised))
    every_xhat, every_image, every_loss = (
        distributed.concatenated(torch.cat(parts), flow.var.device)
        for parts in (xhats, seen, losses)
    )
    decoder = Decoder.fit(every_xhat, every_image) if len(every_xhat) else None
    return Reference(decoder, every_loss)


def evaluate(flow: TarFlow, config: RunConfig, batch: int = 250) -> Likelihood:
    """Score the held-out images of a run with its trained flow; all workers must ask.

    Each of them scores a part of the images, and all get the values of all.

    With Gaussian noise BPD is the bound
    `E[-log p(y) - log P(x | xhat(y)) + log N(y; x, std^2)] / (N_dim ln 2)`, a code length of the
    clean image at every noise level; with uniform noise it is the dequantised BPD, a bound by
    Jensen's inequality. Conditional models are scored with the label given.

    Args:
        flow: the weights to score, on its device.
        config: of the run; says which data, split, noise and how many draws.
        batch: images at a time.

    Returns:
        Values per held-out image, averaged over the noise draws.
    """
    flow = flow.eval().requires_grad_(False)
    held_out = data.open_split(config.data, config.evaluation.split)
    reference = training_reference(flow, config, batch)
    decoder = reference.decoder
    labels_seen = np.asarray(held_out.labels)
    mine = np.arange(len(labels_seen))[distributed.portion(len(labels_seen))]
    values = torch.zeros(len(mine), 2, dtype=torch.float64)  # bits per dimension and loss
    for draw in range(config.evaluation.draws):
        rows = [flow.var.new_empty(0, 2)]
        parts = noised_batches(held_out, mine, config, flow, f"held-out {draw}", batch)
        for pixels, labels, noised in parts:
            if decoder is None:
                with torch.no_grad():
                    losses = _loss(log_density(flow, noised, labels), noised)
                bits = dequantised_bpd(losses)
            else:
                bits, density = bound_bpd(flow, decoder, pixels, noised, labels, config.noise)
                losses = _loss(density, noised)
            rows.append(torch.stack([bits, losses], 1))
        values += torch.cat(rows).cpu() / config.evaluation.draws
    bpd, loss = distributed.concatenated(values, flow.var.device).T.numpy()
    kind = "dequantised" if decoder is None else "bound"
    return Likelihood(kind, bpd, loss, labels_seen, float(reference.losses.mean()))


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


def _loss(density: Tensor, images: Tensor) -> Tensor:
    return -density / images[0].numel() - HALF_LN_2PI


def noised_batches(
    images: data.Images,
    indices: np.ndarray,
    config: RunConfig,
    flow: TarFlow,
    use: str,
    batch: int,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Yield pixels, labels and noisy images in batches, with noise fixed by image and use.

    Args:
        images: to draw from.
        indices: (N,) of the images wanted; they name the noise, whatever the batches.
        config: of the run; says which noise, and whether labels are given.
        flow: says the device and type of what is yielded.
        use: of the noise; other uses give independent noise.
        batch: images at a time.
    """
    device, dtype = flow.var.device, flow.var.dtype
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        pixels = torch.from_numpy(data.batch(images, part))
        drawn = noise.normal_per_image(
            torch.from_numpy(part), tuple(pixels.shape[1:]), EVALUATION_SEED, use, dtype
        )
        if config.noise.type == "gaussian":
            noised = noise.unit(pixels, dtype) + config.noise.std * drawn
        else:
            noised = (pixels.to(dtype) + torch.special.ndtr(drawn)) / 128 - 1
        labels = None
        if config.model.classes:
            labels = torch.from_numpy(np.asarray(images.labels)[part]).to(device)
        yield pixels.to(device), labels, noised.to(device)
