"""A trained model in Python: load it, draw images, score images, show them.

>>> import tarflow
>>> model = tarflow.load("studies/digits/runs/5cd1e4c810")  # doctest: +SKIP
>>> model.sample(16, labels=[3, 8], guidance=2)  # doctest: +SKIP
>>> model.bits(images)  # doctest: +SKIP

Legend: `N` images, `c` colour channels, `H` height and width.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from tarflow import data, human
from tarflow.config import ExecutionConfig, RunConfig, SamplerConfig
from tarflow.config_files import from_dict, read_yaml, to_dict
from tarflow.cost import params_total
from tarflow.cpu.layers import ProductLayer
from tarflow.data.pictures import pixels_of
from tarflow.device import choose_device
from tarflow.errors import UserError
from tarflow.evaluate import scoring
from tarflow.evaluate.held_out import TrainingReference, training_reference
from tarflow.identity import run_id
from tarflow.latent.autoencoder import Autoencoder, decoder_of
from tarflow.model.flow import TarFlow
from tarflow.model.noise import to_pixels, unit
from tarflow.model.weights import latents_of_model, load_model
from tarflow.record import read_result
from tarflow.run import resolve_config, run
from tarflow.sample.calibration import choose_plan
from tarflow.sample.drawing import draw
from tarflow.sample.grid import image_grid, usual_count
from tarflow.sample.plan import PLAN
from tarflow.sample.sampling import Samples
from tarflow.storage import locate, locate_model


@dataclass(frozen=True, eq=False)
class Drawn(Samples):
    """Samples that show themselves in a notebook."""

    @property
    def labels(self) -> Tensor | None:
        """Classes (N,); None without classes."""
        vectors = self.condition is not None and self.condition.is_floating_point()
        return None if vectors else self.condition

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Images as other libraries take them: (N, H, H, 3) of colour or (N, H, H) of grey."""
        pixels = to_pixels(self.images).permute(0, 2, 3, 1).numpy()
        return pixels[..., 0] if pixels.shape[3] == 1 else pixels

    def grid(self, columns: int | None = None) -> Image.Image:
        """Return all images as one picture; by default every class has a row."""
        return image_grid(self.images, self.labels, columns)

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        self.grid().save(written, "PNG")
        return written.getvalue()

    def __repr__(self) -> str:
        count, channels, height, width = self.images.shape
        return f"{count} images of {channels} x {height} x {width}"


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model on its device, as `load` returns it."""

    path: Path  # its model.safetensors
    flow: TarFlow = field(repr=False)  # in eval mode
    config: RunConfig = field(repr=False)
    row: Mapping[str, Any] = field(repr=False)  # of runs.parquet; empty without the run's folder

    def __repr__(self) -> str:
        model, row = self.config.model, self.row
        classes = f"{model.classes} classes" if model.classes else "no classes"
        words = (
            f"{self.path.parent.name}: {human.count(params_total(model))} parameters, images of "
            f"{model.image_channels} x {model.image_size} x {model.image_size}, {classes}"
        )
        if "bpd" in row:
            words += f"; {human.bits(row['bpd'])} ± {human.bits(row['bpd_se'])} "
            words += human.bits_unit(row["bpd_kind"])
            words += f" ({row['bpd_kind']}, {row['split']} images)"
        return words

    def sample(
        self,
        count: int | None = None,
        labels: ArrayLike | Tensor | None = None,
        guidance: float | None = None,
        condition: ArrayLike | Tensor | None = None,
        seed: int = 0,
        batch: int = 64,
        **sampler: Any,
    ) -> Drawn:
        """Draw images by the sampler settings of the run, and its measured plan if it has one.

        Args:
            count: Number of images; by default 64 in all, or a few less so that every class
            has as many.
            labels: Classes to draw, in turn; by default all of them.
            guidance: Guidance weight, 0 for none; by default that of the run.
            condition: Vectors (K, P, E) to condition on in turn, if the model takes vectors; by
                default those of the run's held-out images.
            seed: Seed of the noise; image i depends on (seed, i, its label) only.
            batch: Images to draw at a time.
            **sampler: Other fields of `SamplerConfig`, such as `denoise` or `temperature`.

        Returns:
            Images, in the order in which they were drawn; a notebook shows them as a picture.

        Raises:
            UserError: If a label or a setting is wrong.
        """
        if batch < 1 or (count is not None and count < 1):
            raise UserError(f"count is {count} and batch {batch}: both must be at least 1")
        classes = [] if labels is None else np.atleast_1d(np.asarray(_plain(labels))).tolist()
        if not all(isinstance(label, int) for label in classes):
            raise UserError(f"labels are numbers of classes, such as [3, 8], not {classes}")
        if classes and condition is not None:
            raise UserError("give labels or condition, not both")
        if guidance is not None:
            sampler["guidance"] = guidance
        config = replace(self.config, sampler=_replaced(self.config.sampler, sampler))
        if count is None:
            count = usual_count(len(set(classes)) or self.flow.config.classes)
        given = torch.tensor(classes) if classes else _vectors(condition)
        turns = None if given is None else given[torch.arange(count) % len(given)]
        plan = choose_plan("auto", self.flow, config, count, batch, self.path.parent / PLAN)
        drawn = draw(self.flow, config, count, self._decoder, turns, seed, batch, plan)
        return Drawn(drawn.pictures, drawn.condition, drawn.redrawn, drawn.lost)

    def grid(self, count: int | None = None, **settings: Any) -> Image.Image:
        """Draw images and return them as one picture; arguments as for `sample`."""
        return self.sample(count, **settings).grid()

    def score(
        self, images: Any, labels: ArrayLike | None = None, draws: int = 1
    ) -> scoring.Scores:
        """Return every score of images that `python -m tarflow score` prints.

        Args:
            images: As for `bits`.
            labels: (N,) classes, -1 where unknown; by default all are unknown.
            draws: Number of noise draws that scores are averaged over.

        Raises:
            UserError: If the images do not fit the model, or a label is unknown.
        """
        if isinstance(images, data.Images):  # with labels and vectors of their own
            if labels is None and images.classes:
                labels = images.labels
            chosen = images
        else:
            chosen = data.Images(
                self._pixels(images), np.empty(0, np.int64), self.flow.config.classes
            )
        count = len(chosen.pixels)
        known = np.full(count, -1) if labels is None else np.asarray(_plain(labels))
        if known.shape != (count,):
            raise UserError(f"{known.size} labels for {count} images: give one per image")
        chosen = replace(chosen, labels=known)
        return scoring.score(self.flow, self.config, chosen, self._reference, draws)

    def bits(
        self, images: Any, labels: ArrayLike | None = None, draws: int = 1
    ) -> NDArray[np.float64]:
        """Return bits per dimension of the clean 8-bit images, (N,): lower is likelier.

        It is the number that `python -m tarflow score` prints; `bits_kind` says which one. The
        position of an image determines its noise.

        Args:
            images: One image or several: a picture of PIL, a list of them, or an array (N, c, H,
                H), (N, H, H, c) or (N, H, H) of 8-bit pixels or of floats in [-1, 1]; or
                a split from `tarflow.data.open_split`, which has labels.
            labels: (N,) classes, -1 where unknown; by default all are unknown.
            draws: Number of noise draws that bits are averaged over.

        Raises:
            UserError: If the images do not fit the model, a label is unknown, or the model was
                trained with Gaussian noise and its training images are missing.
        """
        if self._missing and self.config.noise.type == "gaussian":
            raise UserError(f"with Gaussian noise bits need training images: {self._missing}")
        bits = self.score(images, labels, draws).bpd
        assert bits is not None
        return bits

    @property
    def bits_kind(self) -> str:
        """What `bits` is: `bound`, `dequantised` with uniform noise, or `latent`.

        Bits of latents are those of the noisy latent, and no bits of pixels.
        """
        if latents_of_model(self.path):
            return "latent"
        return "bound" if self.config.noise.type == "gaussian" else "dequantised"

    def log_prob(self, images: Any, labels: ArrayLike | None = None) -> Tensor:
        """Return the log-density of images as they are, without further noise, (N,) nats.

        It is differentiable with respect to a tensor of floats; see `TarFlow.log_prob`.

        Args:
            images: (N, c, H, H) tensor of floats, or images as for `bits`.
            labels: (N,) classes, -1 where unknown, or vectors (N, P, E) to condition on; by
                default all are unknown.

        Raises:
            UserError: If the images do not fit the model, or a label is unknown.
        """
        var = self.flow.var
        if not (isinstance(images, Tensor) and images.is_floating_point()):
            images = unit(torch.from_numpy(pixels_of(_plain(images), self.flow.config)))
        classes = None if labels is None else torch.as_tensor(labels).to(var.device)
        return self.flow.log_prob(images.to(var), classes)

    def inverse(
        self,
        latents: Tensor,
        labels: ArrayLike | Tensor | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """Map latents to images, without guidance or denoising: the inverse of `flow`.

        Args:
            latents: (N, T, D) tensor; samples come from noise times `flow.var.sqrt()`.
            labels: (N,) classes, -1 where unknown, or vectors (N, P, E) to condition on; by
                default all are unknown.
            differentiable: Whether gradients reach the latents and parameters; see
                `tarflow.sample.differentiable`.

        Returns:
            (N, c, H, H) images in about [-1, 1].

        Raises:
            UserError: If a label is unknown.
        """
        device = self.flow.var.device
        classes = None if labels is None else torch.as_tensor(labels).to(device)
        return self.flow.inverse(latents.to(device), classes, differentiable=differentiable)

    def _pixels(self, images: Any) -> NDArray[Any]:
        """Return images as the model takes them: 8-bit pixels, or their latents."""
        space, codes = latents_of_model(self.path), self._decoder
        if space is None or codes is None:
            return pixels_of(_plain(images), self.flow.config)
        side, channels = space.image_size, space.image_channels
        shown = replace(self.flow.config, image_size=side, image_channels=channels)
        pixels = unit(torch.from_numpy(pixels_of(_plain(images), shown)))
        encoded: NDArray[np.float32] = codes.encode(pixels).numpy()
        return encoded

    @cached_property
    def _decoder(self) -> Autoencoder | None:
        """What decodes the latents that the model draws; None for a model of pixels."""
        return decoder_of(self.path, self.flow, self.config)

    @cached_property
    def _missing(self) -> str:
        """Why the training images are missing; empty if they are there."""
        try:
            data.match_data(self.config)
        except UserError as error:
            return str(error)
        return ""

    @cached_property
    def _reference(self) -> TrainingReference | None:
        return None if self._missing else training_reference(self.flow, self.config)


def _vectors(condition: ArrayLike | Tensor | None) -> Tensor | None:
    return None if condition is None else torch.as_tensor(condition, dtype=torch.float32)


def _plain(values: Any) -> Any:
    """Return a tensor as an array, anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _replaced(sampler: SamplerConfig, changes: Mapping[str, Any]) -> SamplerConfig:
    """Return sampler settings with some changed, refusing unknown names and wrong types."""
    return from_dict(SamplerConfig, {**to_dict(sampler), **changes}, where="sample")


def load(path: str | Path) -> Model:
    """Load a trained model onto the device of this machine: a GPU if there is one.

    Args:
        path: File model.safetensors, or the folder of a run or a release that holds it; local or
            an address such as s3://bucket/model.

    Raises:
        UserError: If there is no such model.
    """
    file = locate_model(path)
    flow, config = load_model(file, ProductLayer)
    flow = flow.to(choose_device(ExecutionConfig())).requires_grad_(False)
    result = read_result(file.parent) or {"run": {}}
    return Model(file, flow, config, result["run"])


def train_model(config: RunConfig | str | Path, out: str | Path | None = None) -> Model:
    """Train a run, score and sample it, and load the result; the same run is not trained twice.

    `tarflow.train` is a short name for this. An interrupted run is resumed by the same call.

    Args:
        config: Configuration of the run, or its YAML file, such as best.yaml of a study.
        out: Folder of the run; by default runs/RUN_ID.

    Returns:
        The model; its `row` has the scores.

    Raises:
        UserError: If the config is wrong, or training diverged.
    """
    if not isinstance(config, RunConfig):
        config = read_yaml(RunConfig, locate(config))
    config = resolve_config(config)
    folder = locate(out) if out else Path("runs") / run_id(config)
    row = run(config, folder, role="final")
    if row["status"] == "failed":
        raise UserError(f"{row['error']} (details in {folder}/error.txt)")
    return load(folder)
