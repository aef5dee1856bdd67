"""Image features that sample quality is measured in, and the networks they come from.

`efficientnet-lite0@SIDE` needs no download: it resizes images to SIDE pixels and pools the last
layer (1,280 values); `efficientnet-lite0@SIDE/112` pools a middle layer instead, narrow enough for
a Frechet distance of a few thousand images. On digits a side of 64 costs 0.8 s for 500 images on
one CPU thread (96: 2.4 s). At 32 most of the last layer is silent. `inception` is the network of
the published FID; `clip-*` and `dinov2-*` are torch-fidelity's. Their files are downloaded into
torch.hub's checkpoint folder, or named.

Legend: `N` images, `C` colour channels, `H`, `W` pixels, `F` features.
"""

import hashlib
import re
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from tarflow.errors import UserError
from tarflow.evaluate.extractors import lite0
from tarflow.evaluate.extractors.dinov2 import DinoV2
from tarflow.evaluate.extractors.lite0 import LITE0

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the published FID
_LITE0_SIDE = 64
_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"

Pixels = NDArray[np.uint8] | Tensor


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network that turns uint8 images into features, with its identity."""

    name: str  # as tables show it, e.g. efficientnet-lite0@64
    module: Any  # torch-fidelity feature extractor giving one layer
    digest: str  # of the weights
    device: torch.device

    @property
    def is_inception(self) -> bool:
        """Whether a Frechet distance in these features may be called FID."""
        return self.name.startswith(INCEPTION)

    @cached_property
    def width(self) -> int:
        """Number of features per image, F."""
        return int(features(np.zeros((1, 3, 32, 32), np.uint8), self).shape[1])

    def logits(self, features: NDArray[np.float32]) -> Tensor:
        """Return Inception's class logits without bias, (N, 1008), from pooled features (N, F)."""
        weight: Tensor = self.module.fc.weight
        return torch.from_numpy(features) @ weight.cpu().T


def find_extractor(
    name: str = LITE0, weights: Path | None = None, device: str = "cpu"
) -> Extractor:
    """Build a feature extractor, once per process.

    Args:
        name: `efficientnet-lite0`, optionally followed by `@SIDE` (a multiple of 32) and by
            `/112` for the middle layer; `inception`; or torch-fidelity's names of CLIP and
            DINOv2, such as `clip-vit-b-32` and `dinov2-vit-s-14`.
        weights: the file of weights as it was published; by default those that were installed
            with the extra `features`, or those in torch.hub's checkpoint folder, downloaded if
            absent.
        device: where the network runs.

    Raises:
        UserError: if the name is unknown, or the weights are absent, unsafe or of another
            network.
    """
    return _find(name, weights, device)


def features(images: Pixels, extractor: Extractor, batch: int = 50) -> NDArray[np.float32]:
    """Compute the features (N, F) of grey or colour uint8 images (N, C, H, W)."""
    if len(images.shape) != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}: (N, 1 or 3, H, W) is needed")
    if images.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"images are {images.dtype}: uint8 is needed")
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
def _find(name: str, weights: Path | None, device: str) -> Extractor:
    registered, layer = _parse(name)
    official = _published_hash(registered)
    path = weights or _published(registered)
    digest = _check_safe(path, official if registered in CLIP else None)
    arguments = (registered, [layer])
    try:
        if registered in DINOV2:
            module: Any = DinoV2(*arguments, str(path))
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*torch.jit.load.*deprecated", FutureWarning)
                module = create_feature_extractor(
                    *arguments, cuda=False, verbose=False, feature_extractor_weights_path=str(path)
                )
    except (RuntimeError, TypeError, AttributeError, KeyError):
        raise UserError(f"{path} does not hold the weights of {registered}") from None
    shown = f"{registered}/112" if layer == "112" else registered
    if not official or not digest.startswith(official):
        shown += f":{digest[:8]}"  # other weights measure something else: say so in the name
    return Extractor(shown, module.to(device), digest, torch.device(device))


def _parse(name: str) -> tuple[str, str]:
    """Return the name registered with torch-fidelity and the layer."""
    if name in ("inception", INCEPTION):
        return INCEPTION, "2048"
    if name in CLIP:
        return name, "clip"
    if name in DINOV2:
        return name, "dinov2"
    known = re.fullmatch(rf"{LITE0}(?:@(\d+))?(?:/(\d+))?", name)
    if not known:
        names = ("inception", LITE0, *CLIP, *DINOV2)
        near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(f"no features '{name}': did you mean '{near}'?")
    side, layer = int(known[1] or _LITE0_SIDE), known[2] or "1280"
    if side < 32 or side % 32 or layer not in lite0.LAYERS:
        raise UserError(
            f"no features '{name}': the side is a multiple of 32, "
            f"the layer {' or '.join(lite0.LAYERS)}"
        )
    registered = f"{LITE0}@{side}"
    if registered not in FEATURE_EXTRACTORS_REGISTRY:  # registering twice is an error
        register_feature_extractor(registered, lite0.EfficientNetLite0)
    return registered, layer


def _published_hash(registered: str) -> str:
    """Return the first digits, or all, of the hash of the published file; none are for DINOv2."""
    if registered in CLIP:
        return str(CLIP[registered]["hash"])
    if registered in DINOV2:
        return ""
    if registered == INCEPTION:
        return _hash_in_name(Path(URL_INCEPTION_V3))
    return _hash_in_name(lite0.installed_weights())


def _hash_in_name(path: Path) -> str:
    return path.stem.rpartition("-")[2]  # torch.hub's convention: name-HASH.pth


def _published(registered: str) -> Path:
    """Return the published file, downloaded if that is needed."""
    if registered.startswith(LITE0):
        return lite0.installed_weights()
    if registered in CLIP:
        url, file = CLIP_URLS[registered], f"{registered}-{_published_hash(registered)}.pt"
    elif registered in DINOV2:
        file = f"{DINOV2[registered]}_pretrain.pth"
        url = f"{_DINOV2_URL}/{DINOV2[registered]}/{file}"
    else:
        url, file = URL_INCEPTION_V3, Path(URL_INCEPTION_V3).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                url, str(path), _published_hash(registered) or None, progress=False
            )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download the weights of {registered} ({error}): fetch {url} "
                f"elsewhere and put it at {path}, or name the file with --weights"
            ) from None
    return path


def _check_safe(path: Path, program: str | None) -> str:
    """Return the hash of a file, refused if it can do more than hold tensors.

    Args:
        path: of the file, which torch-fidelity will unpickle.
        program: the whole hash of the one file that may be a TorchScript program, as CLIP's are.
    """
    try:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if program is None:
            torch.load(path, weights_only=True, map_location="meta")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"{path} is not a plain file of weights saved by torch.save") from None
    if program and digest != program:
        raise UserError(
            f"{path} is not the published file: its SHA-256 is {digest[:8]}..., not "
            f"{program[:8]}...; such files are programs, so no other is read"
        )
    return digest
