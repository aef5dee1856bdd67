"""What a run draws while it trains, so that one sees it learn: samples and the validation loss.

Every preview turns the same noise into images with the weight average, and scores the same
validation images. Both draw from generators of their own, so training numbers stay as they are.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tarflow import data
from tarflow.config import RunConfig
from tarflow.evaluate.held_out import noise_names, noised_batches, training_loss
from tarflow.execution import Execution
from tarflow.latent.autoencoder import Autoencoder
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import log_density
from tarflow.model.weights import build
from tarflow.record import PREVIEWS, read_table, write_table
from tarflow.sample.drawing import draw
from tarflow.sample.grid import image_grid, png_of
from tarflow.train.state import TrainState

FILE = "previews.parquet"
SAMPLES = 8  # images of a preview, one row
HELD_OUT = 64  # validation images that it scores
FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)  # of a run, after which there is a preview by default
SHARE = 0.02  # of the training time that previews may take by default
STEP_SECONDS = 0.5e-3  # to draw a token in a layer, until the first preview has been timed
LOG = logging.getLogger("tarflow")


class Previews:
    """Draws the previews of a run, on the first worker; call it after each training step."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        execution: Execution,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        """Continue with the previews that the folder holds.

        Args:
            config: Run; `execution.preview_images` says how often. No `evaluation.samples`, no
                previews.
            folder: Folder of the run, which gets `previews.parquet`.
            execution: How the run is executed.
            autoencoder: What decodes the latents that the run draws; None for a run of pixels.
        """
        self.autoencoder = autoencoder
        self.config, self.path = config, folder / FILE
        self.every = config.execution.preview_images
        self.on = bool(config.evaluation.samples) and execution.first
        if self.on and execution.sharded:
            self.on = False  # drawing would need the weights of all workers in one
            LOG.info("no previews: no device holds all weights of this run")
        self.rows: list[dict[str, Any]] | None = None  # read when the first is due
        self.spent = 0.0  # seconds of the previews that this process has drawn
        self.last = 0.0  # seconds of the last one

    def __call__(self, state: TrainState) -> None:
        """Draw a preview of a training state if one is due."""
        if self.on and self._reached(state.images) and self._cheap(state):
            self._draw(state)

    def _reached(self, images: int) -> bool:
        """Tell whether the last step has reached a point where a preview may be drawn."""
        before, whole = images - self.config.batch, self.config.images
        if self.every:
            return images // self.every > before // self.every or images == whole
        return any(before < fraction * whole <= images for fraction in FRACTIONS)

    def _cheap(self, state: TrainState) -> bool:
        if self.every:
            return True
        model = self.config.model
        steps = model.tokens * model.total_layers
        training = state.seconds / state.images  # of an image, about what one costs here
        first = steps * STEP_SECONDS + (2 * SAMPLES + HELD_OUT / 3) * training  # no backward pass
        return self.spent + (self.last or first) <= SHARE * state.seconds

    def _draw(self, state: TrainState) -> None:
        started = time.perf_counter()
        if self.rows is None:
            kept = read_table(self.path).to_pylist() if self.path.exists() else []
            self.rows = [row for row in kept if row["images"] < state.images]
        config, device = self.config, next(iter(state.ema.values())).device
        weights = state.ema | dict(state.flow.named_buffers())
        flow = build(config.model, weights).to(device).requires_grad_(False)
        try:
            pictures = draw(flow, config, SAMPLES, self.autoencoder, batch=SAMPLES).pictures
            loss = self._loss(flow)
        except torch.OutOfMemoryError:
            self.on = False
            LOG.warning("no previews: samples do not fit into memory beside the training state")
            return
        picture = png_of(image_grid(pictures, columns=SAMPLES), {})
        row = {"images": state.images, "seconds": state.seconds, "loss": loss}
        self.rows.append(row | {"samples": picture})
        write_table(self.path, self.rows, PREVIEWS)
        self.last = time.perf_counter() - started
        self.spent += self.last

    def _loss(self, flow: TarFlow) -> float | None:
        """Return the mean loss of the first validation images; None if there are none."""
        held_out = data.open_split(self.config.data, "validation")
        indices = np.arange(min(HELD_OUT, len(held_out.labels)))
        batches = noised_batches(held_out, indices, self.config, flow, noise_names(1), HELD_OUT)
        for *_, condition, noised in batches:  # one batch
            with torch.no_grad():
                loss = training_loss(log_density(flow, noised, condition), flow.config.dims)
            return float(loss.mean())
        return None
