"""The causal Transformer layers inside a block of a flow.

Legend: `B` batch, `n` or `T` tokens, `C` channels, `H` heads, `K` channels of a head. Parameter
names are those of the published weights.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.rotary import rotate


class Attention(nn.Module):
    """Causal self-attention after a layer norm."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Mix (B, n, C) hidden states, each with those before it.

        Args:
            hidden: States of n tokens.
            rotation: Rotary positions (2, n, K / 2), or `None` where positions are learned.
        """
        query, key, value = (
            part.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, H, n, K)
            for part in self.qkv(self.norm(hidden)).chunk(3, dim=2)
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = self.attend(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from each token to itself and those before it; all are (B, H, T, K)."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class MLP(nn.Module):
    """Two linear maps around an exact GELU, after a layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.main = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform each of the (B, T, C) hidden states alone."""
        transformed: Tensor = self.main(self.norm(hidden))
        return transformed


class Layer(nn.Module):
    """A pre-norm Transformer layer."""

    attention_type: ClassVar[type[Attention]] = Attention

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.attention = self.attention_type(channels, head_dim)
        self.mlp = MLP(channels)

    def forward(self, hidden: Tensor, rotation: Tensor | None = None, /) -> Tensor:
        """Transform (B, n, C) hidden states; for the rotation see `Attention.forward`."""
        hidden = hidden + self.attention(hidden, rotation)
        transformed: Tensor = hidden + self.mlp(hidden)
        return transformed


class FinalNorm(nn.Module):
    """Root mean square norm whose weight starts at zero and is added to one (Gu et al. 2025)."""

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize (..., C) hidden states, in float32 or wider."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], 1 + self.weight.to(wide.dtype), self.eps)
