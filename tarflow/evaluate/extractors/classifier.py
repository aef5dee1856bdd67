"""A small network trained to tell the labels of a data set apart, as a feature extractor.

Networks trained on photographs see little of other images: on `digits` runs of very different
likelihood are equally far from real images in EfficientNet's features. This network is trained
on the training split itself, in seconds, and needs no download.

Legend: `N` images, `C` colour channels, `H`, `W` pixels, `F` features.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tarflow import data
from tarflow.config import CLASSIFIER, DataConfig
from tarflow.errors import UserError
from tarflow.record import replacing
from tarflow.storage import cache_folder

_VERSION = 1  # of network and training; raise it when they change
_WIDTHS = (32, 64, 64)  # the last is F: narrow enough for a Frechet distance of 320 images
_SIDE = 32  # larger images are reduced to this side, so that training takes seconds
_BATCH, _STEPS, _RATE = 64, 313, 3e-3  # 20,000 images, five epochs of digits
_MOST = 4000  # training images that set the scale of the features


class Classifier(nn.Module):
    """Three convolutions and a linear map; the features are the last convolution, pooled.

    Features have mean 0 and, on average over features, variance 1 on training images.
    """

    mean: Tensor  # of the pooled features, (F,)
    scale: Tensor  # root of their average variance

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in zip(_WIDTHS, (2, 2, 1), strict=True):
            convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the features (N, F) of uint8 images (N, 3, H, W), as extractors do."""
        return ((self.pooled(images) - self.mean) / self.scale,)

    def pooled(self, images: Tensor) -> Tensor:
        """Return the features before they are scaled, (N, F)."""
        x = images.float() / 127.5 - 1
        if max(x.shape[2:]) > _SIDE:
            x = functional.interpolate(x, (_SIDE, _SIDE), mode="bilinear", antialias=True)
        pooled: Tensor = self.body(x).mean((2, 3))
        return pooled


def trained_classifier(config: DataConfig) -> tuple[Classifier, str]:
    """Return the classifier of a data set and the SHA-256 of its weights.

    The first process trains it and keeps it in the cache folder by the content hash of the data.
    Any number of processes may ask at once: each that finds no file trains, with equal results.

    Raises:
        UserError: If the images have fewer than two labels, or the file cannot be written.
    """
    config = data.images_behind(config)
    classes = data.describe(config).classes
    if classes < 2:
        raise UserError(
            f"features '{CLASSIFIER}' are learned from labels, and {config.name} has "
            f"{classes or 'none'}: take other features"
        )
    name = f"{data.hash_data(config).hash}-{_VERSION}.safetensors"
    path = cache_folder() / CLASSIFIER / name
    network = _read(path, classes)
    if network is None:
        network = _train(data.open_split(config, "train"))
        try:
            with replacing(path) as temporary:
                save_file(network.state_dict(), temporary)
        except UserError as error:
            raise UserError(f"{error}; or set TARFLOW_CACHE to another folder") from None
    digest = hashlib.sha256()
    for weight in network.state_dict().values():
        digest.update(weight.numpy().tobytes())
    return network.eval().requires_grad_(False), digest.hexdigest()


def _read(path: Path, classes: int) -> Classifier | None:
    """Return the network in a file; None if it is absent or damaged, so that it is rewritten."""
    with torch.device("meta"):  # draws no random numbers, which would change the run's
        network = Classifier(classes)
    try:
        network.load_state_dict(load_file(path), assign=True)
    except (OSError, SafetensorError, RuntimeError):
        return None
    return network


def _train(images: data.Images) -> Classifier:
    """Train on the labels; the weights follow from the images and the kind of machine alone."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _one_thread():
        torch.manual_seed(0)
        network = Classifier(images.classes)
        optimizer = torch.optim.AdamW(network.parameters(), _RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
        seen = data.order(len(images), 0, 0, _STEPS * _BATCH)
        for indices in seen.reshape(_STEPS, _BATCH):
            logits = network.head(network.pooled(_colour(images, indices)))
            loss = functional.cross_entropy(logits, torch.from_numpy(images.labels[indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            chunks = np.array_split(seen[:_MOST], -(-_MOST // 100))
            features = torch.cat([network.pooled(_colour(images, chunk)) for chunk in chunks])
        network.mean.copy_(features.mean(0))
        # One scale for all features: a silent one would otherwise be blown up.
        network.scale.copy_(features.var(0).mean().sqrt().clamp(min=1e-6))
    return network


def _colour(images: data.Images, indices: NDArray[np.int64]) -> Tensor:
    """Return images as `features` hands them over, (N, 3, H, W)."""
    return torch.from_numpy(data.batch(images, indices)).expand(-1, 3, -1, -1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run the block on one thread: sums over several depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
