"""Score a checkpoint once: the results are kept beside it, and the next call reads them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tarflow.config import RunConfig, SamplerConfig
from tarflow.device import choose_device
from tarflow.evaluate.drawn_features import forget
from tarflow.evaluate.features import Extractor, find_extractor
from tarflow.evaluate.held_out import held_out_likelihood
from tarflow.evaluate.sample_quality import evaluate_samples
from tarflow.human import Progress, silent
from tarflow.identity import HALVES, WHOLE, setting_id
from tarflow.latent.autoencoder import autoencoder_of
from tarflow.model.flow import TarFlow
from tarflow.model.weights import load_model
from tarflow.record import read_json, write_json
from tarflow.sample.plan import PLAN
from tarflow.storage import local_copy

Scores = TypeVar("Scores")


def evaluate_setting(
    folder: Path, sampler: SamplerConfig, seed: int, parts: Sequence[str] = HALVES
) -> list[dict[str, Any]]:
    """Sample from a finished run with other sampler settings, and keep the scores beside the run.

    Args:
        folder: Folder of the run.
        sampler: Sampler settings to use instead of the run's.
        seed: Seed of the noise; settings that are compared must share it.
        parts: By default the halves of the draws, one to choose a setting on and one to judge it;
            `WHOLE` scores all draws together as well.

    Returns:
        Rows of `evaluations.parquet`, one for each of `parts`. A picture is written beside them.
    """
    flow, config = load_model(folder / "model.safetensors")
    config = replace(config, sampler=sampler)
    path = folder / "evaluations" / f"{setting_id(config, seed, parts)}.json"

    def compute() -> list[dict[str, Any]]:
        device = choose_device(config.execution)
        extractor = find_extractor(
            config.evaluation.features, device=device.type, data=config.data
        )
        autoencoder = autoencoder_of(config.data, config.evaluation.autoencoder, device)
        picture = path.with_suffix(".png")
        return evaluate_samples(
            flow.to(device), config, extractor, autoencoder, picture, seed, parts
        )

    return _read_or_compute(path, compute)


def score_on_test(folder: Path) -> dict[str, Any]:
    """Score the test images once with a finished run, and keep the scores in its test.json.

    Args:
        folder: Folder of the run.

    Returns:
        The columns of `runs.parquet` on likelihood, of the test split.
    """

    def compute() -> dict[str, Any]:
        flow, config = load_model(folder / "model.safetensors")
        config = replace(config, evaluation=replace(config.evaluation, split="test"))
        return held_out_likelihood(flow.to(choose_device(config.execution)), config).columns()

    return _read_or_compute(folder / "test.json", compute)


def evaluate_checkpoint(
    checkpoint: Path,
    flow: TarFlow,
    config: RunConfig,
    extractor: Extractor | None,
    seed: int,
    follow: Callable[[str], Progress] = lambda _: silent,
) -> dict[str, Any]:
    """Score held-out images and samples as `config` says, and keep the scores beside a checkpoint.

    The names of the files depend on the settings, the weights and the extractor. An interrupted
    call leaves the features of its samples beside them, and the next one draws only the rest.

    Args:
        checkpoint: File that `flow` was read from.
        flow: The model on its device.
        config: Configuration of the run, with the `sampler` and `evaluation` to use.
        extractor: Network whose features are compared; None draws no samples.
        seed: Seed of the samples' noise.
        follow: Returns what to call after each batch, given what is done to the images, with
            those done, those to be done, and the seconds so far.

    Returns:
        The columns of `runs.parquet` on likelihood, then those of `evaluations.parquet`.
    """
    evaluation, weights = config.evaluation, _file_hash(checkpoint)
    name = _short_hash(weights, evaluation.split, evaluation.draws, evaluation.decoder_images)
    scores = _read_or_compute(
        checkpoint.parent / "likelihood" / f"{name}.json",
        lambda: held_out_likelihood(flow, config, report=follow("images scored")).columns(),
    )
    if extractor is None:
        return scores
    autoencoder = autoencoder_of(config.data, evaluation.autoencoder, flow.var.device)
    made_by = [weights, extractor.name, extractor.digest]
    made_by += [autoencoder.digest] if autoencoder else []
    name = f"{setting_id(config, seed)}-{_short_hash(*made_by)}"
    evaluations = checkpoint.parent / "evaluations"
    plans, kept = checkpoint.parent / PLAN, evaluations / f"{name}-samples"

    def compare_samples() -> list[dict[str, Any]]:
        samples = flow, config, extractor, autoencoder
        report = follow("images drawn")
        return evaluate_samples(*samples, None, seed, WHOLE[:1], plans, kept, report)

    (row,) = _read_or_compute(evaluations / f"{name}.json", compare_samples)
    forget(kept)
    return scores | row


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
