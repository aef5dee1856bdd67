"""TarFlow (Zhai et al. 2025): a normalizing flow of causal Transformers over image patches.

Legend: `B` batch, `T` tokens per image, `D` values per token, `C` channels, `H` heads,
`K` channels of a head. Parameter names are those of the published weights.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tarflow.config import ModelConfig
from tarflow.cpu.layers import fused_affine, fused_layer
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
    """Put (B, T, D) tokens of a square image back together; the inverse of `patchify`."""
    side = math.isqrt(tokens.shape[1])
    return F.pixel_shuffle(tokens.mT.reshape(len(tokens), tokens.shape[2], side, side), patch)


def products_are_faster(query: Tensor) -> bool:
    """Tell whether `causal_attention` beats the fused kernel on these (B, H, T, K).

    In bfloat16 the CPU's kernel goes backward several times slower than plain products do; the
    matrix of all pairs fits the caches up to some hundred tokens (`benchmarks/README.md`).
    """
    small = query.shape[2] <= 512
    bfloat16 = query.dtype == torch.bfloat16
    return query.device.type == "cpu" and bfloat16 and small and torch.is_grad_enabled()


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from each token to itself and those before, (B, H, T, K) each, by plain products."""
    tokens, width = query.shape[2:]
    future = query.new_full((tokens, tokens), -math.inf).triu(1)
    scale = width**-0.5
    logits = torch.baddbmm(future, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
    mixed: Tensor = torch.bmm(logits.softmax(2), value.flatten(0, 1))
    return mixed.view_as(query)


def split_output(output: Tensor, volume_preserving: bool) -> tuple[Tensor, Tensor]:
    """Split (B, T, D or 2D), the last projection of a block, into log-scale and shift (B, T, D).

    Both are in float32 or wider; the log-scale of a volume-preserving block is zero.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if volume_preserving:
        return torch.zeros_like(output), output
    log_scale, shift = output.chunk(2, dim=2)
    return log_scale, shift


class Attention(nn.Module):
    """Causal self-attention after a layer norm."""

    def __init__(self, channels: int, head_dim: int) -> None:
        """Make the projections of `channels / head_dim` heads."""
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix (B, T, C) hidden states."""
        query, key, value = (
            part.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, K)
            for part in self.qkv(self.norm(hidden)).chunk(3, dim=2)
        )
        if products_are_faster(query):
            mixed = causal_attention(query, key, value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    """Two linear maps around an exact GELU, after a layer norm."""

    def __init__(self, channels: int) -> None:
        """Make the fourfold expansion."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.main = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (B, n, C) hidden states one by one."""
        transformed: Tensor = self.main(self.norm(hidden))
        return transformed


class Layer(nn.Module):
    """A pre-norm Transformer layer."""

    def __init__(self, channels: int, head_dim: int) -> None:
        """Make attention and MLP."""
        super().__init__()
        self.fused: torch.dtype | None = None  # of the activations, where `fused_layer` trains it
        self.attention = Attention(channels, head_dim)
        self.mlp = MLP(channels)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The parameters in their order; to search the modules for them takes longer."""
        mixer, (up, _, down) = self.attention, self.mlp.main
        modules: Any = (mixer.norm, mixer.qkv, mixer.proj, self.mlp.norm, up, down)
        return tuple(each for module in modules for each in (module.weight, module.bias))

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (B, T, C) hidden states."""
        if self.fused and torch.is_grad_enabled():
            return fused_layer(hidden, self.weights, self.attention.head_dim, self.fused)
        hidden = hidden + self.attention(hidden)
        transformed: Tensor = hidden + self.mlp(hidden)
        return transformed


class FlowBlock(nn.Module):
    """One autoregressive affine map; it reads the tokens in raster order or `backwards`."""

    def __init__(self, config: ModelConfig, backwards: bool) -> None:
        """Make the embeddings, the layers and a last projection that starts at zero."""
        super().__init__()
        self.backwards = backwards
        self.checkpoint_activations = False
        self.fused = False  # whether `fused_affine` trains it
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
            Layer(config.channels, config.head_dim) for _ in range(config.layers)
        )
        self.proj_out = nn.Linear(config.channels, outputs)
        nn.init.zeros_(self.proj_out.weight)  # the bias is not zeroed, as published

    def permute(self, tokens: Tensor) -> Tensor:
        """Take (B, T, ...) from raster order to the order of this block, or back."""
        return tokens.flip(1) if self.backwards else tokens

    def embedding(self, labels: Tensor | None) -> Tensor:
        """Return what is added to the hidden states, (1 or B, T, C), in the block's order.

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

    def output(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Return what the last projection says of the successor of each token, (B, T, D or 2D).

        Args:
            tokens: (B, T, D) in the block's order.
            labels: (B,) int64, -1 where dropped; `None` drops all.
        """
        hidden = self.proj_in(tokens) + self.embedding(labels)
        for layer in self.attn_blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = layer(hidden)
        projected: Tensor = self.proj_out(hidden)
        return projected

    def coefficients(self, tokens: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift for the successor of each token.

        Args:
            tokens: (B, T, D) in the block's order.
            labels: (B,) int64, -1 where dropped; `None` drops all.

        Returns:
            Two (B, T, D) tensors in float32 or wider.
        """
        return split_output(self.output(tokens, labels), self.volume_preserving)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map (B, T, D) tokens one block towards the noise.

        The first token in the block's order passes unchanged, each other one is shifted and
        scaled by its predecessors.

        Returns:
            Tokens (B, T, D) in raster order, log-determinant (B,) in nats per dimension.
        """
        tokens = self.permute(tokens)
        if self.fused and not self.volume_preserving and torch.is_grad_enabled():
            return fused_affine(tokens, self.output(tokens, labels), self.backwards)
        log_scale, shift = self.coefficients(tokens, labels)
        log_scale, shift = log_scale[:, :-1], shift[:, :-1]
        rest = (tokens[:, 1:] - shift) * torch.exp(-log_scale)
        logdet = -log_scale.sum((1, 2)) / tokens[0].numel()
        return self.permute(torch.cat([tokens[:, :1], rest], 1)), logdet


class TarFlow(nn.Module):
    """A stack of autoregressive blocks between images and Gaussian noise."""

    var: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the flow; its weights come from torch's generator until `initialise`."""
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            FlowBlock(config, backwards=bool(index % 2)) for index in range(config.blocks)
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
        """Return tokens (B, T, D) and log-determinant (B,) after and of each block."""
        tokens = patchify(images, self.config.patch)
        steps = []
        for block in self.blocks:
            tokens, logdet = block(tokens, labels)
            steps.append((tokens, logdet))
        return steps

    @torch.no_grad()
    def update_prior_variance(self, square: Tensor) -> None:
        """Move `var` a tenth of the way to the mean square (T, D) of a batch's latents.

        The published code does so in each forward pass of a flow that preserves volume.
        """
        self.var.lerp_(square.to(self.var.dtype), 0.1)

    def log_prior(self, latents: Tensor) -> Tensor:
        """Return the log-density (B,) of latents (B, T, D), in nats per dimension.

        The prior is N(0, var); `var` stays 1 unless the flow preserves volume.
        """
        var = self.var.to(torch.promote_types(latents.dtype, torch.float32))
        return -0.5 * (latents.square() / var + torch.log(2 * math.pi * var)).mean((1, 2))

    def check_labels(self, labels: Tensor | None) -> None:
        """Refuse labels (B,) that this flow has no class for; -1 stands for a dropped label.

        Raises:
            UserError: naming the first wrong label.
        """
        if labels is None:
            return
        classes = self.config.classes
        wrong = labels[(labels < -1) | (labels >= classes)]
        if len(wrong):
            known = f"labels are 0 to {classes - 1}" if classes else "the model has no classes"
            raise UserError(f"label {int(wrong[0])} is unknown: {known}")


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
