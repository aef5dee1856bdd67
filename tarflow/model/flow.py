"""TarFlow (Zhai et al. 2025): a normalizing flow of causal Transformers over image patches.

A flow maps images to Gaussian noise and back. It is a stack of blocks; each reads the patches of
an image in one direction, and shifts and scales every patch by what a causal Transformer makes of
the patches before it. So the map is invertible, its Jacobian triangular and its likelihood exact.

This file is the mathematics alone. How a machine runs it fast (compiled kernels, CUDA graphs,
sharding, recomputed activations) wraps it from outside.

Legend: `B` batch, `T` tokens per image, `D` values per token, `C` channels, `H` heads,
`K` channels of a head. Parameter names are those of the published weights.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.config import ModelConfig
from tarflow.errors import UserError
from tarflow.model import noise


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut (B, c, height, width) images into (B, T, D) tokens in raster order.

    Inside a token the order is channel, row, column.

    >>> patchify(torch.zeros(2, 3, 8, 8), patch=4).shape
    torch.Size([2, 4, 48])
    """
    return F.pixel_unshuffle(images, patch).flatten(2).mT


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """Join the (B, T, D) tokens of square images; the inverse of `patchify`."""
    side = math.isqrt(tokens.shape[1])
    return F.pixel_shuffle(tokens.mT.reshape(len(tokens), tokens.shape[2], side, side), patch)


class Attention(nn.Module):
    """Causal self-attention after a layer norm."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix (B, T, C) hidden states, each with those before it."""
        query, key, value = (
            part.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, K)
            for part in self.qkv(self.norm(hidden)).chunk(3, dim=2)
        )
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

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (B, T, C) hidden states."""
        hidden = hidden + self.attention(hidden)
        transformed: Tensor = hidden + self.mlp(hidden)
        return transformed


class FlowBlock(nn.Module):
    """One autoregressive affine map (Zhai et al. 2025, equation 4).

    It reads the tokens in raster order, or the other way round if `backwards`.
    """

    def __init__(
        self, config: ModelConfig, backwards: bool, layer_type: type[Layer] = Layer
    ) -> None:
        super().__init__()
        self.backwards = backwards
        self.volume_preserving = config.volume_preserving
        outputs = config.token_dim * (1 if config.volume_preserving else 2)
        self.proj_in = nn.Linear(config.token_dim, config.channels)
        self.pos_embed = nn.Parameter(torch.randn(config.tokens, config.channels) * 0.01)
        self.class_embed = (
            nn.Parameter(torch.randn(config.classes, 1, config.channels) * 0.01)
            if config.classes
            else None
        )
        self.attn_blocks = nn.ModuleList(
            layer_type(config.channels, config.head_dim) for _ in range(config.layers)
        )
        self.proj_out = nn.Linear(config.channels, outputs)
        nn.init.zeros_(self.proj_out.weight)  # the bias is not zeroed, as published

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map tokens one block towards the noise.

        The first token in the block's order passes unchanged; each other one is shifted and scaled
        by what its predecessors say.

        Args:
            tokens: (B, T, D) in raster order.
            labels: (B,) int64, -1 where the label is dropped; `None` drops all.

        Returns:
            Tokens (B, T, D) in raster order, log-determinant (B,) in nats per dimension.
        """
        tokens = self.permute(tokens)
        log_scale, shift = self.coefficients(tokens, labels)
        log_scale, shift = log_scale[:, :-1], shift[:, :-1]
        rest = (tokens[:, 1:] - shift) * torch.exp(-log_scale)
        logdet = -log_scale.sum((1, 2)) / tokens[0].numel()
        return self.permute(torch.cat([tokens[:, :1], rest], 1)), logdet

    def permute(self, tokens: Tensor) -> Tensor:
        """Take (B, T, ...) from raster order to the order of this block, or back."""
        return tokens.flip(1) if self.backwards else tokens

    def coefficients(self, tokens: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift, (B, T, D) each, for the successor of each token.

        Args:
            tokens: (B, T, D) in the block's order.
            labels: (B,) int64, -1 where the label is dropped; `None` drops all.
        """
        return split_output(self.output(tokens, labels), self.volume_preserving)

    def output(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Return the last projection, (B, T, D or 2D); arguments as for `coefficients`."""
        hidden = self.proj_in(tokens) + self.embedding(labels)
        for layer in self.attn_blocks:
            hidden = layer(hidden)
        projected: Tensor = self.proj_out(hidden)
        return projected

    def embedding(self, labels: Tensor | None) -> Tensor:
        """Return positions plus classes, (1 or B, T, C), in the block's order.

        A dropped label (-1; `None` for the whole batch) is the mean of the class table.
        """
        position = self.permute(self.pos_embed[None])
        if self.class_embed is None:
            return position
        mean = self.class_embed.mean(0, keepdim=True)
        if labels is None:
            return position + mean
        chosen = self.class_embed[labels.clamp(min=0)]
        return position + torch.where((labels < 0)[:, None, None], mean, chosen)


def split_output(output: Tensor, volume_preserving: bool) -> tuple[Tensor, Tensor]:
    """Split what the last projection gives into log-scale and shift, in float32 or wider.

    Args:
        output: (B, T, 2D), or (B, T, D) of a volume-preserving block, which has no scale.
        volume_preserving: Whether `output` is the shift alone; the log-scale is then 0.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if volume_preserving:
        return torch.zeros_like(output), output
    log_scale, shift = output.chunk(2, dim=2)
    return log_scale, shift


class TarFlow(nn.Module):
    """A stack of autoregressive blocks between images and Gaussian noise."""

    var: Tensor  # (T, D) variance of the prior: 1 unless the flow preserves volume

    def __init__(
        self,
        config: ModelConfig,
        block_type: type[FlowBlock] = FlowBlock,
        layer_type: type[Layer] = Layer,
    ) -> None:
        """Build the flow; its weights come from torch's generator until `initialise`.

        Args:
            config: Architecture.
            block_type: Class of the blocks; a subclass has the same parameters and computes the
                same map another way.
            layer_type: Class of the Transformer layers, likewise.
        """
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            block_type(config, bool(index % 2), layer_type) for index in range(config.blocks)
        )
        self.register_buffer("var", torch.ones(config.tokens, config.token_dim))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images to noise.

        Args:
            images: (B, c, height, width) in [-1, 1].
            labels: (B,) int64, -1 where the label is dropped; `None` drops all. An unconditional
                flow ignores them.

        Returns:
            Latents (B, T, D), log-determinant (B,) in nats per dimension (float32 or wider).
        """
        steps = self.trace(images, labels)
        return steps[-1][0], torch.stack([logdet for _, logdet in steps]).sum(0)

    def trace(self, images: Tensor, labels: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return tokens (B, T, D) after each block, and its log-determinant (B,)."""
        tokens = patchify(images, self.config.patch)
        steps = []
        for block in self.blocks:
            tokens, logdet = block(tokens, labels)
            steps.append((tokens, logdet))
        return steps

    def log_prior(self, latents: Tensor) -> Tensor:
        """Return the log-density (B,) of latents (B, T, D) under N(0, var), nats per dimension."""
        var = self.var.to(torch.promote_types(latents.dtype, torch.float32))
        return -0.5 * (latents.square() / var + torch.log(2 * math.pi * var)).mean((1, 2))

    @torch.no_grad()
    def update_prior_variance(self, mean_square: Tensor) -> None:
        """Move `var` a tenth of the way to the mean square (T, D) of a batch's latents.

        The published code does so in each forward pass of a volume-preserving flow.
        """
        self.var.lerp_(mean_square.to(self.var.dtype), 0.1)

    def check_labels(self, labels: Tensor | None) -> None:
        """Refuse labels (B,) that this flow has no class for; -1 stands for a dropped label.

        Raises:
            UserError: Naming the first wrong label.
        """
        if labels is None:
            return
        classes = self.config.classes
        wrong = labels[(labels < -1) | (labels >= classes)]
        if len(wrong):
            known = f"labels are 0 to {classes - 1}" if classes else "the model has no classes"
            raise UserError(f"label {int(wrong[0])} is unknown: {known}")

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the log-density of images as they are, (B,) nats; differentiable.

        The flow was trained on images with noise: this is a density of such images, not the
        probability of a clean one. Arguments as for `forward`; an unknown label is a `UserError`.
        """
        self.check_labels(labels)
        latents, logdet = self(images, labels)
        density: Tensor = (self.log_prior(latents) + logdet) * self.config.dims
        return density


@torch.no_grad()
def initialise(flow: TarFlow, seed: int) -> None:
    """Draw fresh weights that depend on the seed only, not on device or torch's generator."""
    rng = noise.generator(seed, "weights")

    def uniform(parameter: Tensor, bound: float) -> None:
        values = torch.rand(parameter.shape, generator=rng, dtype=torch.float64)
        parameter.copy_((2 * values - 1) * bound)

    for name, module in flow.named_modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            uniform(module.weight, 0.0 if name.endswith("proj_out") else bound)
            uniform(module.bias, bound)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, FlowBlock):
            for table in (module.pos_embed, module.class_embed):
                if table is not None:
                    normal = torch.randn(table.shape, generator=rng, dtype=torch.float64)
                    table.copy_(0.01 * normal)
    flow.var.fill_(1.0)
