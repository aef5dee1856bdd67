"""DINOv2 features from a file of weights.

torch-fidelity loads DINOv2 by running code that torch.hub downloads, and reads no file. Here the
network is written out (Oquab et al. 2024, arXiv 2304.07193), so that the published file is enough.

Legend: `N` images, `T` tokens, `H` heads, `F` features, the width of the network.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

WIDTHS = {"s": 384, "b": 768, "l": 1024, "g": 1536}
_HEAD = 64  # channels of a head at all widths
_NORM = 1e-6
_OFFSET = 0.1  # added to the side in patches when positions are resized, as in training


class DinoV2(FeatureExtractorDinoV2):  # type: ignore[misc]
    """torch-fidelity's extractor, its resizing included, around weights from a file."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any
    ) -> None:
        FeatureExtractorBase.__init__(self, name, features_list)
        self.feature_extractor_internal_dtype = torch.float32
        self.model = load(Path(feature_extractor_weights_path), WIDTHS[name.split("-")[2]])


def load(path: Path, width: int) -> "VisionTransformer":
    """Build the network whose published weights a file holds.

    Raises:
        RuntimeError, KeyError: If the file holds another network, or one of another width.
    """
    state = torch.load(path, weights_only=True, map_location="cpu")
    depth = sum(name.endswith("norm1.weight") for name in state)
    gated = "blocks.0.mlp.w12.weight" in state
    hidden = state["blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"].shape[1]
    patch = state["patch_embed.proj.weight"].shape[-1]
    network = VisionTransformer(width, depth, hidden, patch, state["pos_embed"].shape[1], gated)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


class VisionTransformer(nn.Module):
    """The network, with the names of the published weights."""

    def __init__(
        self, width: int, depth: int, hidden: int, patch: int, positions: int, gated: bool
    ) -> None:
        """Allocate; `positions` includes the class token, `hidden` is the width of the MLPs."""
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, positions, width))
        self.mask_token = nn.Parameter(torch.empty(1, width))  # used in training only
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(_Block(width, hidden, gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, _NORM)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token (N, F) of square normalised images (N, 3, side, side)."""
        patches = self.patch_embed["proj"](images)
        tokens = patches.flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        x = tokens + self._positions(patches.shape[-1])
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x[:, 0])
        return normed

    def _positions(self, side: int) -> Tensor:
        """Resize the table (1, T, F) to another number of patches along a side."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = round(rest.shape[1] ** 0.5)
        if grid == side:
            return self.pos_embed
        square = rest.mT.unflatten(2, (grid, grid))
        scale = (side + _OFFSET) / grid
        resized = functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([first, resized.flatten(2).mT], 1)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _NORM)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.ls1 = nn.ParameterDict({"gamma": torch.empty(width)})
        self.norm2 = nn.LayerNorm(width, _NORM)
        self.mlp = nn.ModuleDict(
            {"w12": nn.Linear(width, 2 * hidden), "w3": nn.Linear(hidden, width)}
            if gated
            else {"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)}
        )
        self.ls2 = nn.ParameterDict({"gamma": torch.empty(width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1["gamma"] * self._attend(self.norm1(x))
        mixed: Tensor = x + self.ls2["gamma"] * self._mix(self.norm2(x))
        return mixed

    def _attend(self, x: Tensor) -> Tensor:
        heads = self.attn["qkv"](x).unflatten(-1, (3, -1, _HEAD))  # (N, T, 3, H, _HEAD)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return projected

    def _mix(self, x: Tensor) -> Tensor:
        if "w12" in self.mlp:
            gate, value = self.mlp["w12"](x).chunk(2, -1)
            mixed: Tensor = self.mlp["w3"](functional.silu(gate) * value)
        else:
            mixed = self.mlp["fc2"](functional.gelu(self.mlp["fc1"](x)))
        return mixed
