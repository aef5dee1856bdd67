"""Inception, CLIP and DINOv2 as torch-fidelity builds them, around files of published weights.

Importing torch-fidelity takes seconds, for torchvision and the compiler; the networks of the
embedded studies do without.
"""

import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.utils import create_feature_extractor

from tarflow.config import CLASSIFIER
from tarflow.errors import UserError
from tarflow.evaluate.extractors.dinov2 import DinoV2
from tarflow.evaluate.extractors.lite0 import LITE0
from tarflow.evaluate.extractors.weights import check_safe, label

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the published FID
_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"


@dataclass(frozen=True)
class Published:
    """The published weights of a network."""

    path: Path  # where the file lies on this machine, once it is downloaded
    url: str
    digest: str  # SHA-256 or the first digits of it; empty for DINOv2, which publishes none

    def download(self) -> Path:
        """Return the file, downloaded if it is absent."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(
                    self.url, str(self.path), self.digest or None, progress=False
                )
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"cannot download {self.url} ({error}): fetch it elsewhere and put it at "
                    f"{self.path}, or name the file with --weights"
                ) from None
        return self.path


def load(name: str, weights: Path | None) -> tuple[Any, str, str]:
    """Return a network that computes one layer, the name of its features, and its digest.

    Args:
        name: `inception`, or torch-fidelity's name of a CLIP or DINOv2 network.
        weights: File of its weights; by default the published one, downloaded if absent.

    Raises:
        UserError: If the name is unknown, or the weights are absent, unsafe or another network's.
    """
    network, layer = _parse(name)
    official = published(network)
    path = weights or official.download()
    digest = check_safe(path, official.digest if network in CLIP else None)
    try:
        if network in DINOV2:
            module: Any = DinoV2(network, [layer], str(path))
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*torch.jit.load.*deprecated", FutureWarning)
                options = {"cuda": False, "feature_extractor_weights_path": str(path)}
                module = create_feature_extractor(network, [layer], verbose=False, **options)
    except (RuntimeError, TypeError, AttributeError, KeyError):
        raise UserError(f"{path} does not hold the weights of {network}") from None
    return module, label(network, digest, official.digest), digest


def _parse(name: str) -> tuple[str, str]:
    """Return torch-fidelity's name of a network, and of the layer that is compared."""
    if name in ("inception", INCEPTION):
        return INCEPTION, "2048"
    if name in CLIP:
        return name, "clip"
    if name in DINOV2:
        return name, "dinov2"
    names = ("inception", LITE0, CLASSIFIER, *CLIP, *DINOV2)
    near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise UserError(f"no features '{name}': did you mean '{near}'?")


def published(network: str) -> Published:
    """Return the published weights of a network that torch-fidelity knows by this name."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if network in CLIP:
        path, url = folder / f"{network}-{CLIP[network]['hash']}.pt", CLIP_URLS[network]
    elif network in DINOV2:
        path = folder / f"{DINOV2[network]}_pretrain.pth"
        url = f"{_DINOV2_URL}/{DINOV2[network]}/{path.name}"
    else:
        path, url = folder / Path(URL_INCEPTION_V3).name, URL_INCEPTION_V3
    # Except for DINOv2, files are named by torch.hub's convention, name-HASH.
    return Published(path, url, "" if network in DINOV2 else path.stem.rpartition("-")[2])
