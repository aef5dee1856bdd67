"""Bits per dimension of held-out images, and what training images tell about a trained flow.

Legend: `B` batch, `C` colour channels, `H` height and width, `N` images. Images are 8 bit; `x` in
[-1, 1].
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tarflow import data, distributed
from tarflow.config import RunConfig
from tarflow.human import Progress, silent
from tarflow.model import noise
from tarflow.model.decoder import Decoder
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import (
    HALF_LN_2PI,
    bound_bpd,
    denoised_mean,
    dequantised_bpd,
    latent_bpd,
    log_density,
)

EVALUATION_SEED = 0  # all runs see the same noise, so that they can be compared image by image

Densities = TypeVar("Densities", Tensor, NDArray[np.float64])


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of held-out images under a model; every array has one value per image."""

    kind: str  # dequantised, bound or latent
    bpd: np.ndarray  # bits per dimension of the clean 8-bit image, or of the noisy latent
    loss: np.ndarray  # nats per dimension of the noisy image, the training loss
    labels: np.ndarray
    train_loss: float  # mean loss of training images under fresh noise

    def columns(self) -> dict[str, float | str]:
        """Summarise as the columns of a run's row."""
        mean = self.bpd.mean()
        moved = np.abs(self.bpd - mean) / (len(self.bpd) - 1)  # how far leaving one out moves it
        return {
            "bpd": float(mean),
            "bpd_kind": self.kind,
            "bpd_se": float(self.bpd.std(ddof=1) / math.sqrt(len(self.bpd))),
            "bpd_median": float(np.median(self.bpd)),
            "bpd_p99": float(np.quantile(self.bpd, 0.99)),
            "bpd_max": float(self.bpd.max()),
            "bpd_leave_one_out": float(moved.max()),
            "loss": float(self.loss.mean()),
            "train_loss": self.train_loss,
        }


@dataclass(frozen=True)
class TrainingReference:
    """What training images tell about a trained flow."""

    decoder: Decoder | None  # for the BPD bound; None with uniform noise and for latents
    losses: Tensor  # (N,) nats per dimension under fresh noise, on the CPU


def training_reference(
    flow: TarFlow, config: RunConfig, batch: int = 250, report: Progress = silent
) -> TrainingReference:
    """Fit the decoder and measure the loss on `evaluation.decoder_images` training images.

    All workers must call this; each takes a share of the images through the flow.

    Args:
        flow: The trained flow on its device.
        config: Configuration of the run; says which data, which noise and how many images.
        batch: Images that go through the flow at a time.
        report: As for `noised_batches`.
    """
    train = data.open_split(config.data, "train")
    count = min(config.evaluation.decoder_images, len(train.labels))
    order = data.order(len(train.labels), EVALUATION_SEED, 0, count)
    share = order[distributed.local_slice(count)]
    size = flow.config.image_size
    empty = (0, flow.config.image_channels, size, size)  # so that workers without images can join
    clean = [torch.empty(empty, dtype=torch.uint8)]
    xhats, losses = [torch.empty(empty, dtype=flow.var.dtype)], [flow.var.new_empty(0)]
    batches = noised_batches(train, share, config, flow, ["decoder"], batch, report)
    for _, pixels, condition, noised in batches:
        if config.noise.type == "gaussian" and not train.are_latents:
            xhat, density = denoised_mean(flow, noised, condition, config.noise.std)
            xhats.append(xhat.cpu())
            clean.append(pixels.cpu())
        else:
            with torch.no_grad():
                density = log_density(flow, noised, condition)
        losses.append(training_loss(density, flow.config.dims))
    all_xhats, all_clean, all_losses = (
        distributed.gather_rows(torch.cat(parts), flow.var.device)
        for parts in (xhats, clean, losses)
    )
    decoder = Decoder.fit(all_xhats, all_clean) if len(all_xhats) else None
    return TrainingReference(decoder, all_losses)


def held_out_likelihood(
    flow: TarFlow, config: RunConfig, batch: int = 250, report: Progress = silent
) -> Likelihood:
    """Score the held-out images of a run with its trained flow.

    All workers must call this. Each scores a share of the images, and all get every value.

    With Gaussian noise BPD is the bound
    `E[-log p(y) - log P(x | xhat(y)) + log N(y; x, std^2)] / (N_dim ln 2)`, a code length of the
    clean image at every noise level; with uniform noise it is the dequantised BPD, a bound by
    Jensen's inequality. The BPD of latents is `-log2 p(y) / N_dim` of the noisy latent alone, and
    comparable between runs on the same latents with the same noise only. Conditional models are
    scored with the condition given.

    Args:
        flow: The trained flow on its device.
        config: Configuration of the run; says which data, split, noise and how many noise draws.
        batch: Images that go through the flow at a time.
        report: As for `noised_batches`; first of training images, then of held-out ones.

    Returns:
        Values per held-out image, averaged over the noise draws.
    """
    flow = flow.eval().requires_grad_(False)
    held_out = data.open_split(config.data, config.evaluation.split)
    reference = training_reference(flow, config, batch, report)
    decoder, draws = reference.decoder, noise_names(config.evaluation.draws)
    all_labels = np.asarray(held_out.labels)
    share = np.arange(len(all_labels))[distributed.local_slice(len(all_labels))]
    values = flow.var.new_zeros(len(share), 2, dtype=torch.float64)  # bits per dimension and loss
    batches = noised_batches(held_out, share, config, flow, draws, batch, report)
    for rows, pixels, condition, noised in batches:
        if decoder is None:
            with torch.no_grad():
                loss = training_loss(log_density(flow, noised, condition), flow.config.dims)
            bits = latent_bpd(loss) if held_out.are_latents else dequantised_bpd(loss)
        else:
            bits, density = bound_bpd(flow, decoder, pixels, noised, condition, config.noise)
            loss = training_loss(density, flow.config.dims)
        values[rows] += torch.stack([bits, loss], 1) / len(draws)
    bpd, losses = distributed.gather_rows(values, flow.var.device).T.numpy()
    kind = bpd_kind(config, held_out)
    return Likelihood(kind, bpd, losses, all_labels, float(reference.losses.mean()))


def bpd_kind(config: RunConfig, images: data.Images) -> str:
    """Name what the bits of images or latents are: dequantised, bound or latent."""
    if images.are_latents:
        return "latent"
    return "bound" if config.noise.type == "gaussian" else "dequantised"


def training_loss(density: Densities, dims: int) -> Densities:
    """Return the training loss in nats per dimension for log densities of images in nats, (B,)."""
    return -density / dims - HALF_LN_2PI


def noise_names(draws: int) -> list[str]:
    """Name the draws of the noise that held-out images are scored with, for `noised_batches`."""
    return [f"held-out {draw}" for draw in range(draws)]


def noised_batches(
    images: data.Images,
    indices: np.ndarray,
    config: RunConfig,
    flow: TarFlow,
    draws: list[str],
    batch: int,
    report: Progress = silent,
) -> Iterator[tuple[slice, Tensor, Tensor | None, Tensor]]:
    """Yield images in batches with training noise that depends on image and draw only.

    Args:
        images: Images to choose from.
        indices: Numbers of the images to yield, (N,).
        config: Configuration of the run; says which noise, and what the model is conditioned on.
        flow: The model whose device and type the batches get.
        draws: Names of independent draws of the noise; each goes through all images.
        batch: Images in a batch.
        report: Called when the caller is done with a batch, with the images so far, all images
            (once for each draw), and the seconds so far.

    Yields:
        The positions of a batch in `indices`, its 8-bit pixels or latents (B, C, H, H), condition
        or None, and noisy images (B, C, H, H).
    """
    device, dtype = flow.var.device, flow.var.dtype
    done, started = 0, time.perf_counter()
    for draw, start in itertools.product(draws, range(0, len(indices), batch)):
        rows = slice(start, start + batch)
        part = indices[rows]
        pixels = torch.from_numpy(data.batch(images, part))
        normal = noise.normal_per_image(
            torch.from_numpy(part), tuple(pixels.shape[1:]), EVALUATION_SEED, draw, dtype
        )
        if config.noise.type == "gaussian":
            noised = noise.unit(pixels, dtype) + config.noise.std * normal
        else:
            noised = (pixels.to(dtype) + torch.special.ndtr(normal)) / 128 - 1
        condition = images.condition(part, config.model)
        condition = None if condition is None else condition.to(device)
        yield rows, pixels.to(device), condition, noised.to(device)
        done += len(part)
        report(done, len(indices) * len(draws), time.perf_counter() - started)
