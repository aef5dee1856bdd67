"""Features of many samples, drawn batch by batch: progress is seen, and nothing drawn is lost.

Legend: `M` samples, `F` features.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tarflow.config import RunConfig
from tarflow.evaluate.features import Extractor, features
from tarflow.human import Progress, silent
from tarflow.latent.autoencoder import Autoencoder
from tarflow.model.flow import TarFlow
from tarflow.model.noise import to_pixels
from tarflow.record import replacing
from tarflow.sample.drawing import Drawing, default_condition, draw
from tarflow.sample.plan import Plan

BATCH = 250  # images drawn at a time


@dataclass(frozen=True, eq=False)
class DrawnFeatures:
    """Features of the samples of one or more batches, and what it took to draw them."""

    features: NDArray[np.float32]  # (M, F); samples that stayed without finite values are left out
    redrawn: int  # draws that were repeated because they were not finite
    lost: int  # samples that stayed without finite values
    seconds: float  # of drawing alone
    first: Drawing | None = None  # the first batch itself, unless its features were kept


def draw_features(
    flow: TarFlow,
    config: RunConfig,
    extractor: Extractor,
    autoencoder: Autoencoder | None,
    seed: int,
    plan: Plan,
    part: slice,
    kept: Path | None = None,
    report: Progress = silent,
) -> DrawnFeatures:
    """Draw some of the samples of an evaluation, and compute their features.

    Args:
        flow: The model to sample from, on its device.
        config: Configuration of the run, with its `sampler` and number of samples.
        extractor: Network whose features are computed.
        autoencoder: What decodes the latents that the model draws; None for a model of pixels.
        seed: Seed of the noise.
        plan: Method that inverts each block.
        part: Slice of the samples.
        kept: Folder for the features of each batch; a call after an interruption reads them.
        report: Called after each batch, with what this call has drawn and will draw.
    """
    starts = range(part.start, max(part.stop, part.start + 1), BATCH)
    slices = [slice(start, min(start + BATCH, part.stop)) for start in starts]
    files = [kept / f"{one.start}-{one.stop}.npz" if kept else None for one in slices]
    batches = [_read(file) if file else None for file in files]
    missing = [index for index, batch in enumerate(batches) if not batch]
    todo = sum(slices[index].stop - slices[index].start for index in missing)
    done, started, count = 0, time.perf_counter(), config.evaluation.samples
    condition = default_condition(flow, config, count)
    for index in missing:
        one, file, start = slices[index], files[index], time.perf_counter()
        drawn = draw(flow, config, count, autoencoder, condition, seed, BATCH, plan, part=one)
        seconds = time.perf_counter() - start
        made = features(to_pixels(drawn.pictures), extractor)
        batch = DrawnFeatures(
            made, drawn.redrawn, drawn.lost, seconds, drawn if index == 0 else None
        )
        if file:
            _write(file, batch)
        batches[index] = batch
        done += one.stop - one.start
        report(done, todo, time.perf_counter() - started)
    every = [batch for batch in batches if batch]
    return DrawnFeatures(
        features=np.concatenate([batch.features for batch in every]),
        redrawn=sum(batch.redrawn for batch in every),
        lost=sum(batch.lost for batch in every),
        seconds=sum(batch.seconds for batch in every),
        first=every[0].first,
    )


def _write(path: Path, batch: DrawnFeatures) -> None:
    with replacing(path) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            features=batch.features,
            redrawn=batch.redrawn,
            lost=batch.lost,
            seconds=batch.seconds,
        )


def _read(path: Path) -> DrawnFeatures | None:
    """Return a batch of an earlier call, or `None`."""
    if not path.exists():
        return None
    with path.open("rb") as handle, np.load(handle) as arrays:
        return DrawnFeatures(
            arrays["features"],
            int(arrays["redrawn"]),
            int(arrays["lost"]),
            float(arrays["seconds"]),
        )


def forget(kept: Path) -> None:
    """Remove the features of the batches of an evaluation that has ended."""
    if kept.exists():
        for file in kept.glob("*.npz"):
            file.unlink()
        kept.rmdir()
