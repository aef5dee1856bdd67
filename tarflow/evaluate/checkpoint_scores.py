"""Score a checkpoint once: the results are kept beside it, and the next call reads them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tarflow.config import RunConfig, SamplerConfig
from tarflow.device import choose_device
from tarflow.evaluate.features import Extractor, find_extractor
from tarflow.evaluate.held_out import held_out_likelihood
from tarflow.evaluate.sample_quality import evaluate_samples
from tarflow.identity import HALVES, setting_id
from tarflow.model.flow import TarFlow
from tarflow.model.weights import load_model
from tarflow.record import read_json, write_json
from tarflow.sample.plan import PLAN
from tarflow.storage import local_copy

Scores = TypeVar("Scores")


def evaluate_setting(
    folder: Path, sampler: SamplerConfig, seed: int, halves: Sequence[str] = HALVES
) -> list[dict[str, Any]]:
    """Sample from a finished run with other sampler settings, and keep the scores beside the run.

    Args:
        folder: Folder of the run.
        sampler: Sampler settings to use instead of the run's.
        seed: Seed of the noise; settings that are compared must share it.
        halves: Names of the equal parts of the draws that are scored separately; by default one
            to choose a setting on and one to judge it.

    Returns:
        Rows of `evaluations.parquet`, one for each of `halves`. A picture is written beside them.
    """
    flow, config = load_model(folder / "model.safetensors")
    config = replace(config, sampler=sampler)
    path = folder / "evaluations" / f"{setting_id(config, seed, halves)}.json"

    def compute() -> list[dict[str, Any]]:
        device = choose_device(config.execution)
        extractor = find_extractor(config.evaluation.features, device=device.type)
        picture = path.with_suffix(".png")
        return evaluate_samples(flow.to(device), config, extractor, picture, seed, halves)

    return _read_or_compute(path, compute)


def evaluate_checkpoint(
    checkpoint: Path, flow: TarFlow, config: RunConfig, extractor: Extractor, seed: int
) -> list[dict[str, Any]]:
    """Sample from a checkpoint as `config` says, and keep the scores beside it.

    The name of the file depends on the setting, the weights and the extractor.

    Args:
        checkpoint: File that `flow` was read from.
        flow: The model on its device.
        config: Configuration of the run, with the sampler, split, count and features to use.
        extractor: Network whose features are compared.
        seed: Seed of the noise.

    Returns:
        One row of `evaluations.parquet`.
    """
    inputs = _short_hash(_file_hash(checkpoint), extractor.name, extractor.digest)
    path = checkpoint.parent / "evaluations" / f"{setting_id(config, seed)}-{inputs}.json"
    plans = checkpoint.parent / PLAN
    return _read_or_compute(
        path, lambda: evaluate_samples(flow, config, extractor, None, seed, plans=plans)
    )


def score_checkpoint(checkpoint: Path, flow: TarFlow, config: RunConfig) -> dict[str, Any]:
    """Score the held-out images with a checkpoint, and keep the summary beside it.

    Args:
        checkpoint: File that `flow` was read from.
        flow: The model on its device.
        config: Configuration of the run, with the split and the number of noise draws to use.

    Returns:
        The columns of `runs.parquet` that describe likelihood.
    """
    evaluation = config.evaluation
    name = _short_hash(
        _file_hash(checkpoint), evaluation.split, evaluation.draws, evaluation.decoder_images
    )
    path = checkpoint.parent / "likelihood" / f"{name}.json"
    return _read_or_compute(path, lambda: held_out_likelihood(flow, config).columns())


def _read_or_compute(path: Path, compute: Callable[[], Scores]) -> Scores:
    kept: Scores | None = read_json(path)
    if kept:
        return kept
    scores = compute()
    write_json(path, scores)
    return scores


def _file_hash(path: Path) -> str:
    with local_copy(path) as local, local.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _short_hash(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
