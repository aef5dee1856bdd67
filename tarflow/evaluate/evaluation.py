"""How good the samples of a trained flow are: drawn, compared with held-out images, recorded."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from tarflow import data, distributed
from tarflow.config import RunConfig, SamplerConfig, from_dict, to_dict
from tarflow.device import choose_device
from tarflow.evaluate import metrics
from tarflow.evaluate.features import Extractor, features, find_extractor
from tarflow.evaluate.held_out import held_out_likelihood
from tarflow.evaluate.reference import cached_features
from tarflow.identity import HALVES, WHOLE, run_id, setting_id
from tarflow.model.flow import TarFlow
from tarflow.model.noise import to_pixels
from tarflow.model.weights import load_model
from tarflow.record import read_json, replacing, write_json
from tarflow.sample.calibration import choose_plan
from tarflow.sample.plan import PLAN, Plan
from tarflow.sample.sampling import image_grid, sample
from tarflow.storage import local_copy

Made = TypeVar("Made")

BATCH = 250  # images drawn at a time
GRID_IMAGES, GRID_COLUMNS = 64, 8  # of samples.png


def evaluate_setting(
    folder: Path, sampler: SamplerConfig, seed: int, halves: Sequence[str] = HALVES
) -> list[dict[str, Any]]:
    """Sample from a finished run in another way, and keep the scores beside the run.

    A setting that was sampled before is returned as it is.

    Args:
        folder: of the run.
        sampler: the setting.
        seed: of the noise: the same for all settings that are to be compared.
        halves: as of `evaluate_samples`; by default one to choose by and one to judge by.

    Returns:
        Rows of `evaluations.parquet`, one for each of `halves`. A picture lies beside them.
    """
    flow, config = load_model(folder / "model.safetensors")
    config = replace(config, sampler=sampler)
    path = folder / "evaluations" / f"{setting_id(config, seed, halves)}.json"

    def make() -> list[dict[str, Any]]:
        device = choose_device(config.execution)
        extractor = find_extractor(config.evaluation.features, device=device.type)
        picture = path.with_suffix(".png")
        return evaluate_samples(flow.to(device), config, extractor, picture, seed, halves)

    return _once(path, make)


def evaluate_checkpoint(
    checkpoint: Path, flow: TarFlow, config: RunConfig, extractor: Extractor, seed: int
) -> list[dict[str, Any]]:
    """Sample from a checkpoint as `config` says, and keep the scores beside it.

    The file is named by the setting, the weights and the extractor. If it is there, nothing is
    sampled.

    Args:
        checkpoint: file that `flow` was read from.
        flow: on its device.
        config: of the run, with the sampler, split, count and features in question.
        extractor: of the features to compare.
        seed: of the noise.

    Returns:
        One row of `evaluations.parquet`.
    """
    files = _name(_digest(checkpoint), extractor.name, extractor.digest)
    path = checkpoint.parent / "evaluations" / f"{setting_id(config, seed)}-{files}.json"
    plans = checkpoint.parent / PLAN
    return _once(path, lambda: evaluate_samples(flow, config, extractor, None, seed, plans=plans))


def score_checkpoint(checkpoint: Path, flow: TarFlow, config: RunConfig) -> dict[str, Any]:
    """Score the held-out images by a checkpoint, and keep the sums beside it.

    Args:
        checkpoint: file that `flow` was read from.
        flow: on its device.
        config: of the run, with the split and the number of noise draws in question.

    Returns:
        The columns of `runs.parquet` that describe likelihood.
    """
    wanted = config.evaluation
    name = _name(_digest(checkpoint), wanted.split, wanted.draws, wanted.decoder_images)
    path = checkpoint.parent / "likelihood" / f"{name}.json"
    return _once(path, lambda: held_out_likelihood(flow, config).columns())


def evaluate_samples(
    flow: TarFlow,
    config: RunConfig,
    extractor: Extractor,
    picture: Path | None,
    seed: int = 0,
    halves: Sequence[str] = WHOLE,
    plans: Path | None = None,
) -> list[dict[str, Any]]:
    """Draw samples, save a picture of some, and compare them with the held-out images.

    All workers must ask. Each draws a part of the samples, and the first one compares them.

    Args:
        flow: the weights to sample from.
        config: of the run; its sampler and evaluation say how and how many.
        extractor: of the features to compare.
        picture: file for a grid of the first samples, if it is wanted.
        seed: of the noise.
        halves: names of the equal parts that the draws are cut into, to be scored apart.
        plans: file of measured solver plans, beside the checkpoint.

    Returns:
        Rows of `evaluations.parquet`, one for each of `halves`; none on all workers but the first.
    """
    evaluation, device = config.evaluation, flow.var.device
    start = time.perf_counter()
    count, batch = evaluation.samples, BATCH
    plan = choose_plan(config.execution.solver, flow, config, count, batch, plans)
    plan = from_dict(Plan, distributed.broadcast(to_dict(plan), device))
    mine = distributed.local_slice(count)
    drawn = sample(
        flow, count, config.sampler, config.noise, seed=seed, batch=batch, plan=plan, part=mine
    )
    seconds = time.perf_counter() - start
    mishaps = torch.tensor([[drawn.redrawn, drawn.lost]])
    redrawn, lost = distributed.gather_rows(mishaps, device).sum(0).tolist()
    shown = distributed.gather_rows(drawn.images[:GRID_IMAGES], device)[:GRID_IMAGES]
    described = torch.from_numpy(features(to_pixels(drawn.images), extractor))
    made = distributed.gather_rows(described, device).numpy()
    if distributed.rank():
        return []
    if picture:
        with replacing(picture) as temporary:
            image_grid(shown, GRID_COLUMNS).save(temporary, format="PNG")
    held_out = data.open_split(config.data, evaluation.split)
    reference = f"{config.data.name}/{evaluation.split}"
    real = cached_features(held_out.pixels, extractor)
    return [
        {
            "run_id": run_id(config),
            **asdict(config.sampler),
            "solver": str(plan),
            "seed": seed,
            "half": half,
            "seconds_per_image": seconds / (mine.stop - mine.start),
            "redrawn": redrawn,
            "lost": lost,
            **metrics.compare(part, real, extractor, reference),
        }
        for half, part in zip(halves, np.array_split(made, len(halves)), strict=True)
    ]


def reference_quality(config: RunConfig) -> dict[str, Any]:
    """Compare as many real training images with the held-out ones: what perfect samples score.

    Returns:
        The quality columns of `evaluations.parquet`, such as kid and kid_se.
    """
    evaluation = config.evaluation
    train = data.open_split(config.data, "train")
    chosen = data.order(len(train.labels), 0, 0, min(evaluation.samples, len(train.labels)))
    held_out = data.open_split(config.data, evaluation.split)
    extractor = find_extractor(evaluation.features, device=choose_device(config.execution).type)
    reference = f"{config.data.name}/{evaluation.split}"
    real = data.batch(train, chosen)
    return metrics.evaluate(real, held_out.pixels, extractor, reference)


def _once(path: Path, make: Callable[[], Made]) -> Made:
    """Return what a file holds; if it is absent, what `make` gives, and write that."""
    found: Made | None = read_json(path)
    if found:
        return found
    made = make()
    write_json(path, made)
    return made


def _digest(path: Path) -> str:
    with local_copy(path) as local, local.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _name(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
