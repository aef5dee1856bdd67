"""`python -m tarflow evaluate`: likelihood and sample quality of a trained model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from tarflow.commands.checkpoint import NO_FLAGS, Checkpoint, Flags, from_run, load, override
from tarflow.commands.progress import progress
from tarflow.commands.table import print_table
from tarflow.config import FEWEST_IMAGES
from tarflow.errors import UserError, check_counts
from tarflow.storage import locate_model


def evaluate(
    checkpoint: Checkpoint,
    /,
    split: Literal["validation", "test"] = "validation",
    count: Annotated[int | None, from_run("INT")] = None,
    draws: Annotated[int | None, from_run("INT")] = None,
    features: Annotated[str | None, from_run("NAME")] = None,
    weights: Path | None = None,
    autoencoder: Annotated[str | None, from_run("DIR")] = None,
    seed: int = 0,
    sampling: Flags = NO_FLAGS,
) -> int:
    """Score held-out images (bits per dimension) and samples (KID, FID, precision and recall).

    FID means Inception features; with any other extractor the distance is called FD. The scores
    are kept beside the checkpoint, in likelihood/ and evaluations/; the same command reads them
    from there. After an interruption it draws only the remaining images.

    Args:
        checkpoint: Folder of a run or of a release, or its file model.safetensors.
        split: Split of the run's data to score and to compare samples with.
        count: Number of images to draw; 0 scores likelihood only.
        draws: Noise draws per held-out image, over which its likelihood is averaged.
        features: efficientnet-lite0 (offline), classifier (trained on the labels of the data),
            inception, or CLIP and DINOv2 such as clip-vit-b-32 and dinov2-vit-s-14.
        weights: Published weights of the extractor, if they must not be downloaded.
        autoencoder: Folder of the autoencoder that decodes the samples of a model of latents, if
            not the one that encoded the images.
        seed: Seed of the samples' noise.
        sampling: Sampler settings.
    """
    from tarflow import data
    from tarflow.evaluate.checkpoint_scores import evaluate_checkpoint
    from tarflow.evaluate.features import find_extractor
    from tarflow.evaluate.metrics import refused

    if count and count < FEWEST_IMAGES:
        raise UserError(f"--count is {count}: write 0 for none, or at least {FEWEST_IMAGES}")
    check_counts(draws=draws)
    path = locate_model(checkpoint)
    flow, config = load(path, sampling)
    evaluation = override(
        config.evaluation,
        split=split,
        samples=count,
        draws=draws,
        features=features,
        autoencoder=autoencoder,
    )
    config = replace(config, evaluation=evaluation)
    extractor = None
    if (features or weights) and not evaluation.samples:
        raise UserError("--features and --weights compare samples with images: give --count too")
    if evaluation.samples:
        extractor = find_extractor(evaluation.features, weights, flow.var.device.type, config.data)
        held_out = data.open_split(config.data, split)
        if warning := refused(evaluation.samples, len(held_out), extractor):
            console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            console.print(f"warning: {warning}")
    scores = evaluate_checkpoint(path, flow, config, extractor, seed, progress)
    print_table(
        f"{path} on {config.data.name}/{split}",
        ("measure", "value"),
        (
            (name, _with_error(value, scores.get(f"{name}_se")))
            for name, value in scores.items()
            if value is not None and not name.endswith("_se")
        ),
    )
    return 0


def _with_error(value: Any, error: float | None) -> Any:
    """Write a value with its standard error, if it has one.

    >>> _with_error(1.5, 0.25), _with_error("all", None)
    ('1.5 ± 0.25', 'all')
    """
    return value if error is None else f"{value:.5g} ± {error:.2g}"
