"""Keys and values of earlier tokens, and windows of tokens that are read and written at once.

Legend: `R` rows (images, twice as many with guidance), `n` tokens of a window, `T` tokens per
image, `P` condition tokens, `L` layers, `H` heads, `K` channels of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.model.flow import TarFlow


class KVCache:
    """Keys and values of one flow block; all blocks use the same memory in turn."""

    def __init__(self, flow: TarFlow, rows: int, dtype: torch.dtype) -> None:
        """Allocate the cache on the flow's device.

        Args:
            flow: Model whose blocks will use the cache.
            rows: Most rows R that a block computes at once.
            dtype: Type of keys, values and matrix products.
        """
        config = flow.config
        self.heads = config.channels // config.head_dim
        # a CPU multiplies few rows fastest when each thread computes a product by itself
        self.parts = 1 if flow.var.is_cuda else math.gcd(self.heads, torch.get_num_threads())
        keys = config.condition_tokens + config.tokens
        # zeros, because masked values still enter products
        self.memory = torch.zeros(
            (max(config.depths), 2, rows * self.heads, keys, config.head_dim),
            dtype=dtype,
            device=flow.var.device,
        )

    def layers(self, rows: int, depth: int) -> tuple[Tensor, ...]:
        """Return the keys and values of layers for `rows` rows, (2, R * H, P + T, K) each."""
        return self.memory[:depth, :, : rows * self.heads].unbind()


@dataclass(frozen=True)
class Window:
    """Consecutive tokens `start` to `start + count`."""

    start: int
    count: int

    @property
    def filled(self) -> int:
        """Number of keys and values that attention reads."""
        return self.start + self.count

    def shifted(self, tokens: int) -> "Window":
        """Return the window some tokens further."""
        return Window(self.start + tokens, self.count)

    def read(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """Return a tensor's values at these tokens; `dim` is the dimension of tokens."""
        return tensor.narrow(dim, self.start, self.count)

    def write(self, tensor: Tensor, values: Tensor, dim: int = 1) -> None:
        """Overwrite a tensor's values at these tokens."""
        tensor.narrow(dim, self.start, self.count).copy_(values)


@dataclass(frozen=True)
class DeviceWindow:
    """Like `Window`, but its position is a device tensor.

    The shapes of all operations depend on `count` and `filled` only, so a CUDA graph can be
    replayed for one position after another.
    """

    positions: Tensor  # (n,) int64, consecutive
    filled: int  # number of keys and values that attention reads; those after a token are masked

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(self.positions)

    def shifted(self, tokens: int) -> "DeviceWindow":
        """Return the window some tokens further."""
        return DeviceWindow(self.positions + tokens, self.filled + tokens)

    def read(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """Return a tensor's values at these tokens; `dim` is the dimension of tokens."""
        return tensor.index_select(dim, self.positions)

    def write(self, tensor: Tensor, values: Tensor, dim: int = 1) -> None:
        """Overwrite a tensor's values at these tokens."""
        tensor.index_copy_(dim, self.positions, values.to(tensor))


AnyWindow = Window | DeviceWindow
