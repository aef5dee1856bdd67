"""`python -m tarflow evaluate`: likelihood and sample quality of a trained model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tarflow.commands.flags import NO_FLAGS, Flags


def evaluate(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    /,
    split: Literal["validation", "test"] = "validation",
    count: int = 500,
    features: str = "efficientnet-lite0",
    weights: Path | None = None,
    seed: int = 0,
    sampling: Flags = NO_FLAGS,
) -> int:
    """Score held-out images (bits per dimension) and samples (KID, FID, precision and recall).

    FID means Inception features; with any other extractor the distance is called FD.

    Args:
        checkpoint: model.safetensors of a run.
        split: of the data that the run names.
        count: images to draw; 0 scores likelihood only.
        features: efficientnet-lite0 (offline) or inception.
        weights: file of Inception weights, if they are not to be downloaded.
        seed: of the samples' noise.
        sampling: how.
    """
    from tarflow import likelihood
    from tarflow.checkpoint import load_model
    from tarflow.evaluation import evaluate_samples
    from tarflow.features import find_extractor

    flow, config = load_model(checkpoint)
    sampler = sampling.over(config.sampler)
    wanted = replace(config.evaluation, split=split, samples=count, features=features)
    config = replace(config, sampler=sampler, evaluation=wanted)
    extractor = find_extractor(features, weights) if count else None
    scores = likelihood.evaluate(flow, config).columns()
    if extractor:
        (drawn,) = evaluate_samples(flow, config, extractor, None, seed)
        scores |= {key: value for key, value in drawn.items() if value is not None}
    table = Table("measure", "value", title=f"{checkpoint} on {config.data.name}/{split}")
    for name, value in scores.items():
        table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    Console().print(table)
    return 0
