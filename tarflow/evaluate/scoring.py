"""Scores of single images under a trained flow: likelihood in parts, typicality, class.

A score is the density that the flow was trained on, that of the image plus its training noise. The
number of the image determines the noise, and scores are averaged over draws. With uniform noise
the mean log density bounds the log probability of the 8-bit image. With Gaussian noise it is the
exact log density of the noisy image, and the bits of the clean image are a separate bound (see
`tarflow.model.likelihood`).

Legend: `N` images, `B` batch, `K` flow blocks.
"""

import math
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
from tarflow.evaluate import held_out
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import (
    bound_bpd,
    dequantised_bpd,
    images_at_a_time,
    latent_bpd,
    log_density,
)
from tarflow.record import SCHEMA_VERSION

SCORES = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),  # 0 is the worst image
        pa.field("image", pa.string(), nullable=False),  # its file, or table#row
        pa.field("index", pa.int64(), nullable=False),  # among the images; determines its noise
        ("label", pa.int64()),  # null if unknown; the image is then scored with its label dropped
        ("log_likelihood", pa.float64()),  # nats of the noisy image, prior + sum of logdets
        ("prior", pa.float64()),  # nats
        ("logdets", pa.list_(pa.float64())),  # nats, of each block from the image on
        ("bpd", pa.float64()),  # bits per dimension of the clean 8-bit image, or of the latent
        ("bpd_kind", pa.string()),  # dequantised, bound or latent
        ("typicality", pa.float64()),  # |loss - mean loss of training images|, nats per dimension
        ("predicted", pa.int64()),  # most probable class, or row of the candidate conditions
        ("probability", pa.float64()),  # of that one given the image
        ("log_marginal", pa.float64()),  # nats of the noisy image over all of them
    ],
    metadata={"schema_version": SCHEMA_VERSION},
)


@dataclass(frozen=True)
class Posterior:
    """Probability of each class, or candidate condition, given the image, by Bayes' rule."""

    log_probability: NDArray[np.float64]  # (N, candidates) nats, of each given the image
    log_marginal: NDArray[np.float64]  # (N,) nats, of the image over all candidates

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable candidate of each image, (N,)."""
        best: NDArray[np.int64] = self.log_probability.argmax(1)
        return best

    def accuracy(self, labels: NDArray[np.int64]) -> float | None:
        """Return the share of right predictions among images whose label (N,) is known, not -1."""
        known = labels >= 0
        return float((self.predicted == labels)[known].mean()) if known.any() else None


@dataclass(frozen=True)
class Scores:
    """Scores of images; every array has one row per image, averaged over the noise draws."""

    prior: NDArray[np.float64]  # (N,) nats
    logdets: NDArray[np.float64]  # (N, K) nats
    labels: NDArray[np.int64]  # (N,), -1 where unknown
    bpd: NDArray[np.float64] | None  # (N,) bits per dimension; None if it needs training images
    bpd_kind: str  # dequantised, bound or latent
    typicality: NDArray[np.float64] | None  # (N,) nats per dimension; None without training images
    posterior: Posterior | None

    @property
    def log_likelihood(self) -> NDArray[np.float64]:
        """Log density of the noisy image given its label, (N,) nats."""
        total: NDArray[np.float64] = self.prior + self.logdets.sum(1)
        return total

    def worst_first(self, by: str = "likelihood") -> NDArray[np.int64]:
        """Return the numbers of the images by anomaly; values that are not finite come first.

        Args:
            by: Either likelihood (smallest first) or typicality (largest first).

        Raises:
            UserError: If the images have no typicality.
        """
        if by == "likelihood":
            anomaly = -self.log_likelihood
        elif self.typicality is not None:
            anomaly = self.typicality
        else:
            raise UserError("typicality needs the training images of the run, which are missing")
        return np.argsort(-np.where(np.isfinite(anomaly), anomaly, np.inf), kind="stable")


@torch.no_grad()
def score(
    flow: TarFlow,
    config: RunConfig,
    images: data.Images,
    reference: held_out.TrainingReference | None = None,
    draws: int = 1,
    log_prior: Tensor | None = None,
    candidates: Tensor | None = None,
    batch: int = 250,
) -> Scores:
    """Score each image.

    Typicality is the distance of an image's loss from the mean loss of training images, the test
    of Nalisnick et al. 2019 (arXiv 1906.02994) for one image: in high dimension the likeliest
    images are no more typical than the unlikely ones. The posterior of a condition is
    `log p(x | y) + log p(y)`, normalised after averaging over the draws.

    Args:
        flow: The trained flow on its device.
        config: Configuration of its run; says which noise.
        images: 8-bit images or latents; with label -1, or without vectors, they are scored with
            the condition dropped.
        reference: What training images tell; without it there is no typicality and, with Gaussian
            noise, no BPD.
        draws: Number of noise draws; the first is the one that the run's held-out images had.
        log_prior: Nats, (K,), of each candidate; asks for the posterior, one more pass for each.
        candidates: Conditions (K, ...) that the posterior compares; by default the classes.
        batch: Images that go through the flow at a time, fewer if the model is large.

    Raises:
        UserError: If a label is unknown to the flow.
    """
    flow = flow.eval().requires_grad_(False)
    model, count = config.model, len(images)
    if model.classes:
        flow.check_condition(torch.from_numpy(images.labels))
    batch = min(batch, images_at_a_time(model, 1, flow.var.element_size()))
    decoder = reference.decoder if reference else None
    kind = held_out.bpd_kind(config, images)
    prior, logdets, bits = np.zeros(count), np.zeros((count, model.blocks)), np.zeros(count)
    if candidates is None:
        candidates = torch.arange(model.classes)
    flow.check_condition(candidates)
    joint = np.zeros((count, len(candidates)))
    batches = held_out.noised_batches(
        images, np.arange(count), config, flow, held_out.noise_names(draws), batch
    )
    for rows, pixels, condition, noised in batches:
        steps = flow.trace(noised, condition)
        logdet = torch.stack([block for _, block in steps], 1) * model.dims
        gaussian = flow.log_prior(steps[-1][0]) * model.dims
        prior[rows] += _numpy(gaussian) / draws
        logdets[rows] += _numpy(logdet) / draws
        if kind != "bound":
            loss = held_out.training_loss(gaussian + logdet.sum(1), model.dims)
            to_bits = latent_bpd if kind == "latent" else dequantised_bpd
            bits[rows] += _numpy(to_bits(loss)) / draws
        elif decoder:
            bpd, _ = bound_bpd(flow, decoder, pixels, noised, condition, config.noise)
            bits[rows] += _numpy(bpd) / draws
        if log_prior is not None:
            joint[rows] += _numpy(_densities(flow, noised, candidates)) / draws
    typicality = None
    if reference:
        losses = held_out.training_loss(prior + logdets.sum(1), model.dims)
        typicality = np.abs(losses - float(reference.losses.double().mean()))
    return Scores(
        prior=prior,
        logdets=logdets,
        labels=np.asarray(images.labels),
        bpd=bits if kind != "bound" or decoder else None,
        bpd_kind=kind,
        typicality=typicality,
        posterior=None if log_prior is None else _bayes(joint, log_prior),
    )


def class_log_prior(config: RunConfig, from_data: bool) -> Tensor:
    """Return log p(class) in nats, (classes,), of the training labels, or else uniform.

    Every class counts as one image more than it has, so that none is impossible.

    Raises:
        UserError: If the model has no classes.
    """
    classes = config.model.classes
    if not classes:
        vectors = "; give candidates with --conditions" if config.model.condition_tokens else ""
        raise UserError(f"the model has no classes, so it has no class posterior{vectors}")
    if not from_data:
        return torch.full((classes,), -math.log(classes), dtype=torch.float64)
    labels = torch.from_numpy(np.asarray(data.open_split(config.data, "train").labels))
    counts = torch.bincount(labels, minlength=classes).double() + 1
    return (counts / counts.sum()).log()


def rows(scores: Scores, names: list[str], by: str = "likelihood") -> list[dict[str, Any]]:
    """Return the rows of a table of `SCORES`, worst first as in `Scores.worst_first`."""
    order, posterior = scores.worst_first(by), scores.posterior
    columns: dict[str, Any] = {
        "rank": range(len(order)),
        "image": [names[index] for index in order],
        "index": order.tolist(),
        "label": [label if label >= 0 else None for label in scores.labels[order].tolist()],
        "log_likelihood": scores.log_likelihood[order].tolist(),
        "prior": scores.prior[order].tolist(),
        "logdets": scores.logdets[order].tolist(),
    }
    if scores.bpd is not None:
        columns |= {"bpd": scores.bpd[order].tolist(), "bpd_kind": [scores.bpd_kind] * len(order)}
    if scores.typicality is not None:
        columns["typicality"] = scores.typicality[order].tolist()
    if posterior:
        columns |= {
            "predicted": posterior.predicted[order].tolist(),
            "probability": list(map(math.exp, posterior.log_probability.max(1)[order])),
            "log_marginal": posterior.log_marginal[order].tolist(),
        }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _densities(flow: TarFlow, noised: Tensor, candidates: Tensor) -> Tensor:
    """Return the log density of images (B, ...) given each of K conditions, (B, K) nats."""
    given = candidates.to(noised.device)
    return torch.stack(
        [log_density(flow, noised, one.expand(len(noised), *one.shape)) for one in given], 1
    )


def _bayes(densities: NDArray[np.float64], log_prior: Tensor) -> Posterior:
    """Normalise log densities given each candidate, (N, K) nats."""
    joint = torch.from_numpy(densities) + log_prior.double()
    marginal = joint.logsumexp(1)
    return Posterior((joint - marginal[:, None]).numpy(), marginal.numpy())


def _numpy(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
