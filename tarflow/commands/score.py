"""`python -m tarflow score`: which images a trained model finds unlikely."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from tarflow.config import ExecutionConfig, RunConfig
from tarflow.errors import UserError

if TYPE_CHECKING:
    from tarflow.evaluate.scoring import Scores

GRID_COLUMNS, GRID_HALF = 8, 32  # of the picture: the worst images, then the best
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

Row: TypeAlias = dict[str, Any]


def score(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    split: Literal["validation", "test", "train"] = "validation",
    by: Literal["likelihood", "typicality"] = "likelihood",
    posterior: bool = False,
    draws: int = 1,
    resize: bool = False,
    show: int = 10,
    grid: Path | None = None,
    out: Path | None = None,
) -> int:
    """Rank images by their exact log-likelihood, the least likely first (an anomaly score).

    The likelihood is that of the image plus the noise the model was trained with: noise fixed by
    the image's number, averaged over draws. Labels are used where known, and dropped elsewhere.

    Args:
        checkpoint: model.safetensors.
        images: folders, image files, Parquet tables or .npz files; by default the run's own data.
        split: of the run's own data.
        by: likelihood, or typicality: how far the loss is from the mean of training images.
        posterior: also say which class an image has, by Bayes; costs a pass per class.
        draws: of the noise.
        resize: bring images of another size or colour to the model's, instead of refusing them.
        show: images to print from either end.
        grid: picture to write: the worst images, then the best.
        out: Parquet table to write, a row per image.
    """
    import torch

    from tarflow import data
    from tarflow.data.pictures import read_pictures
    from tarflow.device import choose_device
    from tarflow.evaluate import scoring
    from tarflow.evaluate.held_out import training_reference
    from tarflow.model.noise import unit
    from tarflow.model.weights import load_model
    from tarflow.record import write_table
    from tarflow.run import resolve_config
    from tarflow.sample.sampling import image_grid

    if draws < 1:
        raise UserError(f"cannot average {draws} draws: ask for at least 1")
    flow, config = load_model(checkpoint)
    flow.to(choose_device(ExecutionConfig())).requires_grad_(False)
    missing = ""
    try:
        config = resolve_config(config)
    except UserError as error:
        missing = str(error)
    if images:
        pictures, names = read_pictures(images, config.model, resize)
    elif missing:
        raise UserError(f"{missing}; or name the images to score")
    else:
        pictures = data.open_split(config.data, split)
        if not pictures.classes:
            pictures = replace(pictures, labels=np.full(len(pictures), -1))
        names = [f"{config.data.name}/{split}#{row}" for row in range(len(pictures))]
    reference = None if missing else training_reference(flow, config)
    prior = scoring.class_log_prior(config, from_data=not missing) if posterior else None
    scores = scoring.score(flow, config, pictures, reference, draws, prior)
    ranked = scoring.rows(scores, names, by)
    if out:
        write_table(out, ranked, scoring.SCORES)
    if grid:
        grid.parent.mkdir(parents=True, exist_ok=True)
        shown = np.array([row["index"] for row in _ends(ranked, GRID_HALF)])
        image_grid(unit(torch.from_numpy(data.batch(pictures, shown))), GRID_COLUMNS).save(grid)
    console = Console(highlight=False)
    console.print(_table(_ends(ranked, show), title=f"{len(ranked):,} images, worst first"))
    for line in _summary(scores, config, missing):
        console.print(line, soft_wrap=True, markup=False)
    return 0


def _ends(ranked: list[Row], count: int) -> list[Row]:
    """Return the worst rows and the best, each once."""
    return ranked[:count] + ranked[max(count, len(ranked) - count) :]


def _table(shown: list[Row], title: str) -> Table:
    """Lay out the columns that have values."""
    table = Table(title=title)
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in shown)]
    for name in names:
        table.add_column(COLUMNS[name], overflow="fold", no_wrap=name != "image")
    for row in shown:
        table.add_row(*(_text(row.get(name)) for name in names))
    return table


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _summary(scores: "Scores", config: RunConfig, missing: str) -> Iterator[str]:
    dims = config.model.dims
    parts = [f"prior {scores.prior.mean() / dims:+.4f}"]
    parts += [
        f"block {block} {value:+.4f}" for block, value in enumerate(scores.logdets.mean(0) / dims)
    ]
    noise = config.noise
    kind = f"Gaussian noise of std {noise.std}" if noise.type == "gaussian" else "uniform noise"
    yield f"log-likelihood in nats, of images with {kind}"
    yield f"mean, nats per dimension: {scores.log_likelihood.mean() / dims:.4f} = " + " ".join(
        parts
    )
    if scores.bpd is not None:
        yield f"mean bits per dimension: {scores.bpd.mean():.4f} ({scores.bpd_kind})"
    if missing:
        yield f"no typicality, as there are no training images: {missing}"
        if scores.bpd is None:
            yield "no bits per dimension, as their bound takes training images at Gaussian noise"
    accuracy = scores.posterior and scores.posterior.accuracy(scores.labels)
    if accuracy is not None:
        yield f"class by Bayes' rule: {accuracy:.2%} right"
