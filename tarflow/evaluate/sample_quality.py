"""How good the samples of a trained flow are: draw them and compare them with held-out images."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tarflow import data, distributed
from tarflow.config import FEWEST_IMAGES, RunConfig
from tarflow.config_files import from_dict, to_dict
from tarflow.device import choose_device
from tarflow.errors import UserError
from tarflow.evaluate.drawn_features import BATCH, draw_features
from tarflow.evaluate.feature_cache import cached_features
from tarflow.evaluate.features import Extractor, features, find_extractor
from tarflow.evaluate.metrics import compare
from tarflow.human import Progress, silent
from tarflow.identity import HALVES, WHOLE, run_id
from tarflow.latent.autoencoder import Autoencoder
from tarflow.model.flow import TarFlow
from tarflow.model.noise import to_pixels
from tarflow.sample.calibration import choose_plan
from tarflow.sample.drawing import Drawing
from tarflow.sample.grid import captions, image_grid, save_grid, usual_count
from tarflow.sample.plan import Plan

Features = NDArray[np.float32]


def evaluate_samples(
    flow: TarFlow,
    config: RunConfig,
    extractor: Extractor,
    autoencoder: Autoencoder | None,
    picture: Path | None,
    seed: int = 0,
    parts: Sequence[str] = WHOLE,
    plans: Path | None = None,
    kept: Path | None = None,
    report: Progress = silent,
) -> list[dict[str, Any]]:
    """Draw samples, save a picture of some, and compare them with the held-out images.

    All workers must call this. Each draws a share of the samples; the first compares them.

    Args:
        flow: The model to sample from, on its device.
        config: Configuration of the run; `sampler` and `evaluation` say how to sample, how many
            images to draw and which split to compare them with.
        extractor: Network whose features are compared.
        autoencoder: What decodes the latents that the model draws; None for a model of pixels.
        picture: File for a grid of the first samples, or None.
        seed: Seed of the noise.
        parts: `WHOLE`, or `HALVES` to score the halves of the draws only.
        plans: File of measured solver plans, beside the checkpoint.
        kept: Folder for the features of samples while others are drawn, so that an interrupted
            evaluation can be resumed; `None` for an evaluation with a picture.
        report: Called with the images drawn, their number in the end, and the seconds so far.

    Returns:
        Rows of `evaluations.parquet`, one for each of `parts`; empty on all workers but the
        first. Halves too small to compare have none.
    """
    evaluation, device = config.evaluation, flow.var.device
    plan = choose_plan(config.execution.solver, flow, config, evaluation.samples, BATCH, plans)
    plan = from_dict(Plan, distributed.broadcast(to_dict(plan), device))
    share = distributed.local_slice(evaluation.samples)
    drawn = draw_features(flow, config, extractor, autoencoder, seed, plan, share, kept, report)
    redraws = torch.tensor([[drawn.redrawn, drawn.lost]])
    redrawn, lost = distributed.gather_rows(redraws, device).sum(0).tolist()
    sample_features = distributed.gather_rows(torch.from_numpy(drawn.features), device).numpy()
    if picture:
        _save_picture(picture, drawn.first, config, seed, device)
    if distributed.rank():
        return []
    scores = _compare_with_held_out(sample_features, parts, config, extractor, autoencoder)
    return [
        {
            "run_id": run_id(config),
            **asdict(config.sampler),
            "solver": str(plan),
            "seed": seed,
            "half": part,
            "seconds_per_image": drawn.seconds / (share.stop - share.start),
            "redrawn": redrawn,
            "lost": lost,
            "autoencoder": autoencoder.name if autoencoder else None,
            **columns,
        }
        for part, columns in scores.items()
    ]


def _save_picture(
    path: Path, first: Drawing | None, config: RunConfig, seed: int, device: torch.device
) -> None:
    """Save a grid of the first samples of all workers; the first worker writes it."""
    assert first  # no features are kept in an evaluation with a picture
    shown = usual_count(config.model.classes)
    images = distributed.gather_rows(first.images[:shown], device)[:shown]
    labels = first.condition if config.model.classes else None
    if labels is not None:
        labels = distributed.gather_rows(labels[:shown], device)[:shown]
    if distributed.rank():
        return
    turns = "every class in turn" if labels is not None else ""
    words = captions(run_id(config), seed, config.sampler, turns)
    save_grid(path, image_grid(first.decode(images), labels), words)


def reference_quality(config: RunConfig) -> dict[str, Any]:
    """Return the quality columns of `evaluations.parquet` for training images as samples.

    They are the scores that perfect samples would get.
    """
    images = data.images_behind(config.data)
    total = data.describe(images).train
    count = min(config.evaluation.samples, total)
    indices = data.order(total, 0, 0, count)
    device = choose_device(config.execution)
    extractor = find_extractor(config.evaluation.features, device=device.type, data=config.data)
    train = data.open_split(images, "train")
    real = features(data.batch(train, indices), extractor)
    return _compare_with_held_out(real, WHOLE[:1], config, extractor)["all"]


def _compare_with_held_out(
    samples: Features,
    parts: Sequence[str],
    config: RunConfig,
    extractor: Extractor,
    autoencoder: Autoencoder | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the quality columns of the parts of samples with features (M, F)."""
    pixels, reference = reference_images(config, autoencoder)
    held_out = cached_features(pixels, extractor)
    return {
        name: compare(part, real, extractor, reference)
        for name, (part, real) in pair_parts(samples, held_out).items()
        if name in parts and (name == "all" or len(part) >= FEWEST_IMAGES)
    }


def reference_images(
    config: RunConfig, autoencoder: Autoencoder | None
) -> tuple[NDArray[np.uint8], str]:
    """Return the held-out images that samples are compared with, (N, c, H, H), and their name.

    For a model of latents these are the images that were encoded or, if they are missing here, the
    decoded latents, which are easier to match.
    """
    split = config.evaluation.split
    try:
        images = data.images_behind(config.data)
        return data.open_split(images, split).pixels, f"{images.name}/{split}"
    except UserError:
        if autoencoder is None:
            raise
    latents = torch.from_numpy(np.array(data.open_split(config.data, split).pixels))
    parts = [to_pixels(autoencoder.decode(part)) for part in latents.split(BATCH)]
    return torch.cat(parts).numpy(), f"{config.data.name}/{split}, decoded"


def pair_parts(samples: Features, held_out: Features) -> dict[str, tuple[Features, Features]]:
    """Return which samples are compared with which held-out images, by the names of `WHOLE`.

    A setting that suits the held-out images by luck suits them again when they are read a second
    time. So each half of the samples has its own half of the held-out images, every second one,
    if that has at least as many images as samples. With fewer the halves share all of them,
    because they would limit the precision more than the samples do.

    Args:
        samples: Features (M, F).
        held_out: Features (N, F) of the held-out images; they are split if N is at least M.
    """
    halves = np.array_split(samples, len(HALVES))
    apart = len(held_out) // len(HALVES) >= len(halves[0])
    real = [held_out[i :: len(HALVES)] if apart else held_out for i in range(len(HALVES))]
    pairs = zip(halves, real, strict=True)
    return {"all": (samples, held_out), **dict(zip(HALVES, pairs, strict=True))}
