"""Bits per dimension of held-out images, and what training images say of a trained flow.

Legend: `B` batch, `C` colour channels, `H` height and width. Images are 8 bit; `x` in [-1, 1].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tarflow import data, distributed
from tarflow.config import RunConfig
from tarflow.model import noise
from tarflow.model.decoder import Decoder
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import (
    HALF_LN_2PI,
    bound_bpd,
    denoised_mean,
    dequantised_bpd,
    log_density,
)

EVALUATION_SEED = 0  # all runs see the same noise, so that they can be compared image by image


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
    mine = data.order(len(train.labels), EVALUATION_SEED, 0, count)[distributed.local_slice(count)]
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
        distributed.gather_rows(torch.cat(parts), flow.var.device)
        for parts in (xhats, seen, losses)
    )
    decoder = Decoder.fit(every_xhat, every_image) if len(every_xhat) else None
    return Reference(decoder, every_loss)


def held_out_likelihood(flow: TarFlow, config: RunConfig, batch: int = 250) -> Likelihood:
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
    mine = np.arange(len(labels_seen))[distributed.local_slice(len(labels_seen))]
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
    bpd, loss = distributed.gather_rows(values, flow.var.device).T.numpy()
    kind = "dequantised" if decoder is None else "bound"
    return Likelihood(kind, bpd, loss, labels_seen, float(reference.losses.mean()))


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
