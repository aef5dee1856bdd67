"""`python -m tarflow evaluate`: likelihood and sample quality of a trained model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tarflow.commands.flags import NO_FLAGS, Flags
from tarflow.config import ExecutionConfig
from tarflow.errors import UserError
from tarflow.storage import locate

FEWEST = 4  # samples that any measure can compare


def evaluate(
    checkpoint: Annotated[str, tyro.conf.Positional],
    /,
    split: Literal["validation", "test"] = "validation",
    count: int | None = None,
    draws: int | None = None,
    features: str | None = None,
    weights: Path | None = None,
    seed: int = 0,
    sampling: Flags = NO_FLAGS,
) -> int:
    """Score held-out images (bits per dimension) and samples (KID, FID, precision and recall).

    FID means Inception features; with any other extractor the distance is called FD. What is not
    given is taken from the run's config. The scores are kept beside the checkpoint, in
    likelihood/ and evaluations/; the same command finds them there.

    Args:
        checkpoint: model.safetensors of a run.
        split: of the data that the run names.
        count: images to draw; 0 scores likelihood only.
        draws: noise draws per held-out image of the likelihood.
        features: efficientnet-lite0 (offline), inception, or CLIP and DINOv2 such as
            clip-vit-b-32 and dinov2-vit-s-14.
        weights: file of the extractor's published weights, if they are not to be downloaded.
        seed: of the samples' noise.
        sampling: how.
    """
    from tarflow import data
    from tarflow.device import choose_device
    from tarflow.evaluate.checkpoint_scores import evaluate_checkpoint, score_checkpoint
    from tarflow.evaluate.features import find_extractor
    from tarflow.evaluate.metrics import refused
    from tarflow.model.weights import load_model

    path = locate(checkpoint)
    flow, config = load_model(path)
    given = {"split": split, "samples": count, "draws": draws, "features": features}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    wanted = replace(config.evaluation, **asked)
    if wanted.samples < FEWEST and wanted.samples:
        raise UserError(f"--count is {wanted.samples}: write 0 for none, or at least {FEWEST}")
    if wanted.draws < 1:
        raise UserError(f"--draws is {wanted.draws}: it must be at least 1")
    config = replace(config, sampler=sampling.over(config.sampler), evaluation=wanted)
    device = choose_device(ExecutionConfig())
    flow = flow.to(device)
    scores: dict[str, Any] = {}
    if wanted.samples:
        extractor = find_extractor(wanted.features, weights, device.type)
        reference = data.open_split(config.data, split)
        warning = refused(wanted.samples, len(reference.labels), extractor)
        if warning:
            Console(stderr=True, highlight=False).print(f"warning: {warning}", markup=False)
        (scores,) = evaluate_checkpoint(path, flow, config, extractor, seed)
    scores = score_checkpoint(path, flow, config) | scores
    table = Table("measure", "value", title=f"{checkpoint} on {config.data.name}/{split}")
    for name, value in scores.items():
        if value is not None and not name.endswith("_se"):
            table.add_row(name, _in_words(value, scores.get(f"{name}_se")))
    Console().print(table)
    return 0


def _in_words(value: Any, error: float | None) -> str:
    """Write a value with its standard error.

    >>> _in_words(1.5, 0.25), _in_words("all", None)
    ('1.5 ± 0.25', 'all')
    """
    shown = f"{value:.5g}" if isinstance(value, float) else str(value)
    return shown if error is None else f"{shown} ± {error:.2g}"
