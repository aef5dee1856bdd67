"""`python -m tarflow score`: which images a trained model finds unlikely."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Column

from tarflow import human
from tarflow.commands.checkpoint import Checkpoint, load
from tarflow.commands.table import print_table
from tarflow.config import RunConfig
from tarflow.errors import UserError, check_counts

if TYPE_CHECKING:
    from tarflow.evaluate.scoring import Scores

GRID_COLUMNS, GRID_HALF = 8, 32  # layout of the picture: the worst images, then the best
COLUMNS = {
    "rank": "rank",
    "image": "image",
    "label": "label",
    "log_likelihood": "nats",
    "bpd": "bits/dim",
    "typicality": "typicality",
    "predicted": "class",
    "probability": "p(class)",
}


def score(
    checkpoint: Checkpoint,
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    split: Literal["validation", "test", "train"] = "validation",
    by: Literal["likelihood", "typicality"] = "likelihood",
    posterior: bool = False,
    conditions: Path | None = None,
    draws: int = 1,
    resize: bool = False,
    skip_broken: bool = False,
    show: int = 10,
    grid: Path | None = None,
    autoencoder: Path | None = None,
    out: Path | None = None,
) -> int:
    """Rank images by their exact log-likelihood, the least likely first (an anomaly score).

    The likelihood is that of the image plus the noise that the model was trained with. The number
    of an image determines its noise, and the likelihood is averaged over draws. Labels are used
    if they are known and dropped otherwise.

    Args:
        checkpoint: Folder of a run or of a release, or its file model.safetensors.
        images: Folders, image files, Parquet tables or .npz files; by default the run's own data.
        split: Split of the run's own data, if no images are named.
        by: Either likelihood, or typicality: how far the loss is from the mean of training images.
        posterior: Also name the most probable class by Bayes' rule; takes a pass per class.
        conditions: Parquet table whose column `condition` holds the candidates of the posterior,
            for a model conditioned on vectors; `class` is then the row of the most probable one.
        draws: Number of noise draws.
        resize: Convert images of another size or colour to the model's instead of refusing them.
        skip_broken: Leave out images that cannot be decoded instead of refusing them.
        show: Number of images to print from either end.
        grid: Picture to write: the worst images, then the best.
        autoencoder: Folder of the autoencoder of a model of latents, if not the one that encoded
            the images it was trained on.
        out: Parquet table to write, one row per image.
    """
    import torch

    from tarflow import data
    from tarflow.data.conditions import read_conditions
    from tarflow.data.pictures import read_pictures
    from tarflow.evaluate import scoring
    from tarflow.evaluate.held_out import training_reference
    from tarflow.latent.autoencoder import decoder_of
    from tarflow.model.noise import unit
    from tarflow.model.weights import latents_of_model
    from tarflow.record import write_table
    from tarflow.sample.grid import image_grid, save_grid

    check_counts(draws=draws, show=show)
    flow, config = load(checkpoint)
    missing = ""
    try:
        config = data.match_data(config)
    except UserError as error:
        missing = str(error)
    left_out: list[str] = []
    space = latents_of_model(checkpoint)
    codes = decoder_of(checkpoint, flow, config, autoencoder) if images or grid else None
    if images:
        model = config.model
        if space:
            side, channels = space.image_size, space.image_channels
            model = replace(model, image_size=side, image_channels=channels)
        pictures, names, left_out = read_pictures(images, model, resize, skip_broken)
        if codes:
            encoded = codes.encode(unit(torch.from_numpy(pictures.pixels)))
            pictures = replace(pictures, pixels=encoded.numpy())
    elif missing:
        raise UserError(f"{missing}; or name the images to score")
    else:
        pictures = data.open_split(config.data, split)
        if not pictures.classes:
            pictures = replace(pictures, labels=np.full(len(pictures), -1))
        names = [f"{config.data.name}/{split}#{index}" for index in range(len(pictures))]
    reference = None if missing else training_reference(flow, config)
    prior = candidates = None
    if conditions:
        candidates = torch.from_numpy(read_conditions(conditions)[0])
        prior = torch.full((len(candidates),), -math.log(len(candidates)))
    elif posterior:
        prior = scoring.class_log_prior(config, from_data=not missing)
    scores = scoring.score(flow, config, pictures, reference, draws, prior, candidates)
    ranked = scoring.rows(scores, names, by)
    if out:
        write_table(out, ranked, scoring.SCORES)
    if grid:
        indices = np.array([row["index"] for row in _ends(ranked, GRID_HALF)])
        shown = torch.from_numpy(data.batch(pictures, indices))
        shown = codes.decode(unit(shown)) if codes else shown
        words = {"model": str(checkpoint), "images": f"worst by {by} first, the best last"}
        save_grid(grid, image_grid(shown, columns=GRID_COLUMNS), words)
    heads = COLUMNS | {"bpd": "bits/latent dim"} if scores.bpd_kind == "latent" else COLUMNS
    _print_rows(_ends(ranked, show), heads, f"{len(ranked):,} images, worst first")
    for line in (*left_out, *_summary(scores, config, missing)):
        print(line)
    return 0


def _ends(ranked: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the worst rows and the best, without repeating any."""
    return ranked[:count] + ranked[max(count, len(ranked) - count) :]


def _print_rows(rows: list[dict[str, Any]], heads: Mapping[str, str], title: str) -> None:
    """Print the columns that have values."""
    names = [name for name in heads if any(row.get(name) is not None for row in rows)]
    print_table(
        title,
        [Column(heads[name], overflow="fold", no_wrap=name != "image") for name in names],
        [[row.get(name) for name in names] for row in rows],
    )


def _summary(scores: "Scores", config: RunConfig, missing: str) -> Iterator[str]:
    dims, noise = config.model.dims, config.noise
    parts = [f"prior {scores.prior.mean() / dims:+.4f}"]
    parts += [
        f"block {block} {value:+.4f}" for block, value in enumerate(scores.logdets.mean(0) / dims)
    ]
    kind = f"Gaussian noise of std {noise.std}" if noise.type == "gaussian" else "uniform noise"
    yield f"log-likelihood in nats, of images with {kind}"
    mean = scores.log_likelihood.mean() / dims
    yield f"mean, nats per dimension: {mean:.4f} = {' '.join(parts)}"
    if scores.bpd is not None:
        unit = human.bits_unit(scores.bpd_kind)
        yield f"mean {unit}: {scores.bpd.mean():.4f} ({scores.bpd_kind})"
    if missing:
        yield f"no typicality, as there are no training images: {missing}"
        if scores.bpd is None:
            yield "no bits per dimension: with Gaussian noise their bound needs training images"
    accuracy = scores.posterior and scores.posterior.accuracy(scores.labels)
    if accuracy is not None:
        yield f"class by Bayes' rule: {accuracy:.2%} right"
