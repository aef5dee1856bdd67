"""Image features that sample quality is measured in, and the networks that compute them.

`efficientnet-lite0@SIDE` needs no download: it resizes images to SIDE pixels and pools the last
layer (1,280 values). `efficientnet-lite0@SIDE/112` pools a middle layer instead, narrow enough for
a Frechet distance of a few thousand images. On digits a side of 64 takes 0.8 s for 500 images on
one CPU thread (96: 2.4 s). At 32 most of the last layer is silent. `classifier` is trained on the
labels of the data itself, for images unlike photographs. `inception` is the network of the
published FID; `clip-*` and `dinov2-*` are torch-fidelity's. The files of these are downloaded to
torch.hub's checkpoint folder, or named.

Legend: `N` images, `C` colour channels, `H`, `W` pixels, `F` features.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tarflow.config import CLASSIFIER, DataConfig
from tarflow.errors import UserError
from tarflow.evaluate.extractors import lite0
from tarflow.evaluate.extractors.classifier import trained_classifier
from tarflow.evaluate.extractors.lite0 import LITE0

Pixels = NDArray[np.uint8] | Tensor


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that turns 8-bit images into features, with its identity."""

    name: str  # as tables show it, e.g. efficientnet-lite0@64
    module: Any  # network that returns the features of uint8 images alone in a tuple
    digest: str  # SHA-256 of the weights
    device: torch.device

    @property
    def is_inception(self) -> bool:
        """Whether a Frechet distance in these features may be called FID."""
        return self.name.startswith("inception")

    @cached_property
    def width(self) -> int:
        """Number of features per image, F."""
        return int(features(np.zeros((1, 3, 32, 32), np.uint8), self).shape[1])

    def logits(self, features: NDArray[np.float32]) -> Tensor:
        """Return Inception's class logits without bias, (N, 1008), from pooled features (N, F)."""
        weight: Tensor = self.module.fc.weight
        return torch.from_numpy(features) @ weight.cpu().T


def find_extractor(
    name: str = LITE0,
    weights: Path | None = None,
    device: str = "cpu",
    data: DataConfig | None = None,
) -> Extractor:
    """Build a feature extractor, once per process.

    Args:
        name: `efficientnet-lite0`, optionally followed by `@SIDE` (a multiple of 32) and by
            `/112` for the middle layer; `classifier`; `inception`; or torch-fidelity's names of
            CLIP and DINOv2, such as `clip-vit-b-32` and `dinov2-vit-s-14`.
        weights: File of the published weights; by default those that the extra `features`
            installed, or those in torch.hub's checkpoint folder, downloaded if absent.
        device: Device that the network runs on.
        data: Labelled data that `classifier` is trained on; the others need none.

    Raises:
        UserError: If the name is unknown, the weights are absent, unsafe or another network's, or
            the data lack the labels that `classifier` learns.
    """
    return (
        _find_classifier(weights, device, data)
        if name == CLASSIFIER
        else _find(name, weights, device)
    )


def features(images: Pixels, extractor: Extractor, batch: int = 50) -> NDArray[np.float32]:
    """Compute the features (N, F) of grey or colour uint8 images (N, C, H, W)."""
    if len(images.shape) != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}, not (N, 1 or 3, H, W)")
    if images.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"images are {images.dtype}, not uint8")
    if not len(images):
        return np.empty((0, extractor.width), np.float32)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            if not isinstance(part, Tensor):
                part = torch.from_numpy(part.copy())  # the source may be read-only
            colour = part.to(extractor.device).expand(-1, 3, -1, -1)
            parts.append(extractor.module(colour)[0].float().cpu())
    return torch.cat(parts).numpy()


@cache
def _find_classifier(weights: Path | None, device: str, data: DataConfig | None) -> Extractor:
    if weights:
        raise UserError(f"features '{CLASSIFIER}' are trained on the data: leave out --weights")
    if data is None:
        raise ValueError(f"{CLASSIFIER} needs the data to train on")
    network, digest = trained_classifier(data)
    # Other data, or another kind of machine, give other weights and numbers.
    label = f"{CLASSIFIER}:{digest[:8]}"
    return Extractor(label, network.to(device), digest, torch.device(device))


@cache
def _find(name: str, weights: Path | None, device: str) -> Extractor:
    if lite0.NAME.fullmatch(name):
        module, label, digest = lite0.load(name, weights)
    else:
        from tarflow.evaluate.extractors import fidelity  # torchvision takes seconds

        module, label, digest = fidelity.load(name, weights)
    return Extractor(label, module.to(device), digest, torch.device(device))
