"""What a trained flow says of single images: likelihood in parts, typicality, class.

What is scored is the density that the flow was trained on: of the image plus its training noise.
That noise is fixed by the number of the image and averaged over a number of draws. With uniform
noise the mean log density bounds the log probability of the 8-bit image; with Gaussian noise it is
the exact log density of the noisy image, and the bits of the clean one are a bound of their own
(see `tarflow.model.likelihood`).

Legend: `N` images, `B` batch, `K` flow blocks, `N_dim` values per image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from tarflow import data
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.evaluate.held_out import Reference, noised_batches
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import (
    HALF_LN_2PI,
    bound_bpd,
    dequantised_bpd,
    images_at_a_time,
    log_density,
)
from tarflow.record import SCHEMA_VERSION

SCORES = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),  # 0 is the worst image
        pa.field("image", pa.string(), nullable=False),  # its file, or table#row
        pa.field("index", pa.int64(), nullable=False),  # in the order given; names its noise
        ("label", pa.int64()),  # null where unknown; then the label is dropped
        ("log_likelihood", pa.float64()),  # nats of the noisy image, prior + sum of logdets
        ("prior", pa.float64()),  # nats
        ("logdets", pa.list_(pa.float64())),  # nats, of each block from the image on
        ("bpd", pa.float64()),  # bits per dimension of the clean 8-bit image
        ("bpd_kind", pa.string()),  # dequantised or bound
        ("typicality", pa.float64()),  # |loss - mean loss of training images|, nats per dimension
        ("predicted", pa.int64()),  # most probable class
        ("probability", pa.float64()),  # of that class given the image
        ("log_marginal", pa.float64()),  # nats of the noisy image over all classes
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)


@dataclass(frozen=True)
class Posterior:
    """Bayes' rule over the labels of a conditional flow, for each image."""

    log_probability: NDArray[np.float64]  # (N, classes) nats, of each class given the image
    log_marginal: NDArray[np.float64]  # (N,) nats, of the image over all classes

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image, (N,)."""
        best: NDArray[np.int64] = self.log_probability.argmax(1)
        return best

    def accuracy(self, labels: NDArray[np.int64]) -> float | None:
        """Return the share of right predictions where labels (N,) are known, not -1."""
        known = labels >= 0
        return float((self.predicted == labels)[known].mean()) if known.any() else None


@dataclass(frozen=True)
class Scores:
    """What images score; every array has one row per image, means over the draws."""

    prior: NDArray[np.float64]  # (N,) nats
    logdets: NDArray[np.float64]  # (N, K) nats
    labels: NDArray[np.int64]  # (N,), -1 where unknown
    bpd: NDArray[np.float64] | None  # (N,) bits per dimension; None if it needs training images
    bpd_kind: str  # dequantised or bound
    typicality: NDArray[np.float64] | None  # (N,) nats per dimension; None without training images
    posterior: Posterior | None

    @property
    def log_likelihood(self) -> NDArray[np.float64]:
        """Log density of the noisy image given its label, (N,) nats."""
        total: NDArray[np.float64] = self.prior + self.logdets.sum(1)
        return total

    def worst_first(self, by: str = "likelihood") -> NDArray[np.int64]:
        """Return the images in order of anomaly; what is not finite comes first.

        Args:
            by: likelihood (smallest first) or typicality (largest first).

        Raises:
            UserError: if the images have no typicality.
        """
        if by == "likelihood":
            anomaly = -self.log_likelihood
        elif self.typicality is not None:
            anomaly = self.typicality
        else:
            raise UserError("typicality compares with training images, which are not here")
        return np.argsort(-np.where(np.isfinite(anomaly), anomaly, np.inf), kind="stable")


@torch.no_grad()
def score(
    flow: TarFlow,
    config: RunConfig,
    images: data.Images,
    reference: Reference | None = None,
    draws: int = 1,
    class_log_prior: Tensor | None = None,
    batch: int = 250,
) -> Scores:
    """Score images one by one.

    Typicality is the distance of an image's loss from the mean loss of training images, the test
    of Nalisnick et al. 2019 (arXiv 1906.02994) for one image: in high dimension the likeliest
    images are no more typical than the unlikely ones. The class posterior is
    `log p(x | y) + log p(y)`, normalised; draws are averaged before.

    Args:
        flow: the trained flow, on its device.
        config: of its run; says the noise.
        images: uint8, with label -1 where unknown: that image is scored with its label dropped.
        reference: of the training images; without it there is no typicality and, with Gaussian
            noise, no BPD.
        draws: of the noise; the first is that of a run's held-out images.
        class_log_prior: (classes,) nats; asks for the posterior, one more pass per class.
        batch: images at a time, fewer where the model is large.

    Raises:
        UserError: if a label is unknown to the flow.
    """
    flow = flow.eval().requires_grad_(False)
    model, count = config.model, len(images)
    if model.classes:
        flow.check_labels(torch.from_numpy(images.labels))
    batch = min(batch, images_at_a_time(model, 1, flow.var.element_size()))
    decoder = reference.decoder if reference else None
    kind = "bound" if config.noise.type == "gaussian" else "dequantised"
    prior, logdets, bits = np.zeros(count), np.zeros((count, model.blocks)), np.zeros(count)
    by_class = np.zeros((count, model.classes))
    for draw in range(draws):
        done = 0
        for pixels, labels, noised in _noised(images, config, flow, draw, batch):
            rows = slice(done, done + len(pixels))
            done += len(pixels)
            steps = flow.trace(noised, labels)
            parts = torch.stack([logdet for _, logdet in steps], 1) * model.dims
            gaussian = flow.log_prior(steps[-1][0]) * model.dims
            prior[rows] += _numpy(gaussian) / draws
            logdets[rows] += _numpy(parts) / draws
            if kind == "dequantised":
                loss = -(gaussian + parts.sum(1)) / model.dims - HALF_LN_2PI
                bits[rows] += _numpy(dequantised_bpd(loss)) / draws
            elif decoder:
                bpd, _ = bound_bpd(flow, decoder, pixels, noised, labels, config.noise)
                bits[rows] += _numpy(bpd) / draws
            if class_log_prior is not None:
                for label in range(model.classes):
                    same = torch.full((len(noised),), label, device=noised.device)
                    by_class[rows, label] += _numpy(log_density(flow, noised, same)) / draws
    typicality = None
    if reference:
        loss_of = -(prior + logdets.sum(1)) / model.dims - HALF_LN_2PI
        typicality = np.abs(loss_of - float(reference.losses.double().mean()))
    posterior = None
    if class_log_prior is not None:
        joint = torch.from_numpy(by_class) + class_log_prior.double()
        marginal = joint.logsumexp(1)
        posterior = Posterior((joint - marginal[:, None]).numpy(), marginal.numpy())
    known = kind == "dequantised" or decoder is not None
    labels_seen = np.asarray(images.labels)
    return Scores(
        prior, logdets, labels_seen, bits if known else None, kind, typicality, posterior
    )


def class_log_prior(config: RunConfig, from_data: bool) -> Tensor:
    """Return log p(class), (classes,) nats: shares among training labels, else uniform.

    Every class counts one image more than it has, so that none is impossible.

    Raises:
        UserError: if the flow has no classes.
    """
    classes = config.model.classes
    if not classes:
        raise UserError("the model has no classes, so there is no class posterior")
    if not from_data:
        return torch.full((classes,), -math.log(classes), dtype=torch.float64)
    labels = torch.from_numpy(np.asarray(data.open_split(config.data, "train").labels))
    counts = torch.bincount(labels, minlength=classes).double() + 1
    return (counts / counts.sum()).log()


def rows(scores: Scores, names: list[str], by: str = "likelihood") -> list[dict[str, Any]]:
    """Return the rows of a table of `SCORES`, worst first."""
    posterior, found = scores.posterior, []
    for rank, index in enumerate(scores.worst_first(by).tolist()):
        label = int(scores.labels[index])
        row = {
            "rank": rank,
            "image": names[index],
            "index": index,
            "label": label if label >= 0 else None,
            "log_likelihood": float(scores.log_likelihood[index]),
            "prior": float(scores.prior[index]),
            "logdets": scores.logdets[index].tolist(),
            "bpd": None if scores.bpd is None else float(scores.bpd[index]),
            "bpd_kind": None if scores.bpd is None else scores.bpd_kind,
            "typicality": None if scores.typicality is None else float(scores.typicality[index]),
        }
        if posterior:
            best = int(posterior.predicted[index])
            row |= {
                "predicted": best,
                "probability": math.exp(posterior.log_probability[index, best]),
                "log_marginal": float(posterior.log_marginal[index]),
            }
        found.append(row)
    return found


def _noised(
    images: data.Images, config: RunConfig, flow: TarFlow, draw: int, batch: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    indices = np.arange(len(images))
    return noised_batches(images, indices, config, flow, f"held-out {draw}", batch)


def _numpy(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
