"""A Transformer layer that sees few tokens at a time and keeps keys and values of earlier ones.

Legend: `R` rows (images, twice as many with guidance), `n` tokens of a window, `M = R * n`,
`T` tokens per image, `C` channels, `H` heads, `K` channels of a head, `P` parts into which the
heads and the MLP are split.

What a training pass computes for all tokens at once is computed here for few, thousands of times,
so the weights are laid out once per block. A CPU multiplies few rows fastest when each thread has
its own product: the columns of a first matrix and the rows of the second are split into one part
per thread (as in tensor parallelism, Shoeybi et al. 2019, arXiv 1909.08053) and go through as a
batch.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.flow import Layer

FUSED_FROM = 64  # tokens of a window from which fused attention beats plain products


class IncrementalLayer:
    """A Transformer layer that attends to the keys and values it has kept."""

    def __init__(self, layer: Layer, cache: Tensor, parts: int, rows: int) -> None:
        """Lay out weights; `cache` is (2, R * H, T, K)."""
        attention, mlp = layer.attention, layer.mlp
        up, down = cast(nn.Linear, mlp.main[0]), cast(nn.Linear, mlp.main[2])
        self.shape = (
            parts,
            rows,
            cache.shape[1] // (parts * rows),
            cache.shape[3],
        )  # P, R, H/P, K
        self.cache, self.keys, self.values = cache, cache[0].mT, cache[1]
        self.norms = attention.norm, mlp.norm
        scale = torch.ones_like(attention.qkv.bias)
        scale[: len(scale) // 3] = cache.shape[3] ** -0.5  # of queries, once and for all
        weight, bias = attention.qkv.weight * scale[:, None], attention.qkv.bias * scale
        dtype = cache.dtype
        self.qkv = SplitLinear.columns(weight, bias, 3 * parts, dtype)
        self.proj = SplitLinear.rows(attention.proj.weight, attention.proj.bias, parts, dtype)
        self.up = SplitLinear.columns(up.weight, up.bias, parts, dtype)
        self.down = SplitLinear.rows(down.weight, down.bias, parts, dtype)

    def __call__(self, hidden: Tensor, view: "Window | Place", cooled: Tensor | None) -> None:
        """Transform (M, C) hidden states in place."""
        attention, mlp = self.norms
        qkv = self.qkv(_normed(hidden, attention))
        for part in self.proj(self.attend(qkv, view, cooled)):
            hidden += part
        for part in self.down(F.gelu(self.up(_normed(hidden, mlp)))):
            hidden += part

    def attend(self, qkv: Tensor, view: "Window | Place", cooled: Tensor | None) -> Tensor:
        """Keep the keys and values of (3 P, M, C / P); return what is mixed, (P, M, C / P)."""
        parts, rows, heads, width = self.shape
        split = qkv.view(3, parts, rows, view.count, heads, width).transpose(3, 4)
        split = split.reshape(3, -1, view.count, width)
        view.keep(self.cache, split[1:])
        query = split[0]
        if cooled is not None:
            query = (query.view(parts, rows, -1) * cooled).view(query.shape)
        keys, values = self.keys[:, :, : view.filled], self.values[:, : view.filled]
        allowed = view.allowed(query.device)
        if view.count < FUSED_FROM:
            mask = torch.where(allowed, 0.0, -torch.inf).to(query.dtype)
            mixed = torch.bmm(torch.baddbmm(mask, query, keys).softmax(2), values)
        else:
            mixed = F.scaled_dot_product_attention(query, keys.mT, values, allowed, scale=1.0)
        mixed = mixed.view(parts, rows, heads, view.count, width).transpose(2, 3)
        return mixed.reshape(parts, rows * view.count, -1)

    def step(self, hidden: Tensor, index: int, room: "Room", cooled: Tensor | None) -> None:
        """Do the same for one token of all rows, (R, C), whose place is known on the host."""
        attention, mlp = self.norms
        room.normed.copy_(_normed(hidden, attention))
        self.qkv.into(room.qkv, room.for_qkv)
        if cooled is not None:
            room.queries *= cooled
        end = index + 1
        self.cache[:, :, index:end] = room.learned
        weights = torch.bmm(room.query, self.keys[:, :, :end]).softmax(2)
        torch.bmm(weights, self.values[:, :end], out=room.attended)
        self.proj.into(room.terms, room.mixed)
        for term in room.each:
            hidden += term
        room.normed.copy_(_normed(hidden, mlp))
        self.up.into(room.up, room.for_mlp)
        self.down.into(room.terms, F.gelu(room.up))
        for term in room.each:
            hidden += term


class Room:
    """Where the results for one token go, and the views of them that layers take.

    Made once per block: a step of few rows would spend as long on making tensors and views as on
    its arithmetic.
    """

    def __init__(self, layer: IncrementalLayer) -> None:
        """Make room for any layer of the shape of this one."""
        parts, rows, heads, width = layer.shape
        empty, channels = layer.cache.new_empty, parts * heads * width
        self.normed = empty(rows, channels)
        self.for_qkv = self.normed.expand(3 * parts, -1, -1)
        self.for_mlp = self.normed.expand(parts, -1, -1)
        self.qkv = empty(3 * parts, rows, heads * width)
        self.queries = self.qkv[:parts]
        split = self.qkv.view(3, -1, 1, width)
        self.query, self.learned = split[0], split[1:]
        self.mixed = empty(parts, rows, heads * width)
        self.attended = self.mixed.view(-1, 1, width)
        self.up = empty(parts, rows, layer.up.weight.shape[2])
        self.terms = empty(parts, rows, channels)
        self.each = self.terms.unbind()


@dataclass(frozen=True)
class SplitLinear:
    """A linear map in parts: (P, inputs, outputs) and (P, 1, outputs)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def columns(
        cls, weight: Tensor, bias: Tensor, parts: int, dtype: torch.dtype
    ) -> "SplitLinear":
        """Split the outputs: each part gives its share of them."""
        split = weight.detach().unflatten(0, (parts, -1)).mT
        return cls(split.to(dtype).contiguous(), bias.detach().to(dtype).view(parts, 1, -1))

    @classmethod
    def rows(cls, weight: Tensor, bias: Tensor, parts: int, dtype: torch.dtype) -> "SplitLinear":
        """Split the inputs: the parts give terms of a sum, the first with the bias."""
        split = weight.detach().T.unflatten(0, (parts, -1))
        once = torch.zeros(parts, 1, len(weight), dtype=dtype, device=weight.device)
        once[0, 0] = bias.detach()
        return cls(split.to(dtype).contiguous(), once)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map (M, inputs), the same for all parts, or (P, M, inputs) to (P, M, outputs)."""
        inputs = inputs.to(self.weight.dtype)
        return torch.baddbmm(self.bias, inputs.expand(len(self.weight), -1, -1), self.weight)

    def into(self, out: Tensor, inputs: Tensor) -> None:
        """Map (P, M, inputs), of the weights' type, to `out`, (P, M, outputs)."""
        torch.baddbmm(self.bias, inputs, self.weight, out=out)


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `start + count`, a place known on the host."""

    start: int
    count: int

    @property
    def filled(self) -> int:
        """Keys and values to look at."""
        return self.start + self.count

    def keep(self, cache: Tensor, learned: Tensor) -> None:
        """Write the keys and values (2, R * H, n, K) of the tokens."""
        cache[:, :, self.start : self.filled] = learned

    def allowed(self, device: torch.device) -> Tensor:
        """Tell which keys each token may look at, (n, filled)."""
        pairs = torch.ones(self.count, self.filled, dtype=torch.bool, device=device)
        return pairs.tril(self.start)


@dataclass(frozen=True)
class Place:
    """Tokens at a place known on the device only; does as `Window`, over more keys than needed."""

    positions: Tensor  # (n,), one after another
    looked_at: Tensor  # (filled,), 0, 1, ...

    @property
    def count(self) -> int:
        """Tokens."""
        return len(self.positions)

    @property
    def filled(self) -> int:
        """Keys and values to look at."""
        return len(self.looked_at)

    def keep(self, cache: Tensor, learned: Tensor) -> None:
        """Write the keys and values (2, R * H, n, K) of the tokens."""
        cache.index_copy_(2, self.positions, learned)

    def allowed(self, _device: torch.device) -> Tensor:
        """Tell which keys each token may look at, (n, filled)."""
        return self.looked_at <= self.positions[:, None]


def _normed(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
