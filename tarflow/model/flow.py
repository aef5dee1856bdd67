"""TarFlow (Zhai et al. 2025): a normalizing flow of causal Transformers over image patches.

A flow maps images to Gaussian noise and back. It is a stack of blocks; each reads the patches of
an image in one direction, and shifts and scales every patch by what a causal Transformer makes of
the patches before it. So the map is invertible, its Jacobian triangular and its likelihood exact.

This file is the mathematics alone. How a machine runs it fast (compiled kernels, CUDA graphs,
sharding, recomputed activations) wraps it from outside.

Options of the config turn a TarFlow into a STARFlow (Gu et al. 2025, arXiv 2506.06276).

Legend: `B` batch, `T` tokens per image, `D` values per token, `C` channels, `H` heads,
`K` channels of a head, `P` condition tokens of `E` values. A condition is a label for each image,
(B,) int64, or vectors, (B, P, E). Parameter names are those of the published weights.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.errors import UserError
from tarflow.model import noise
from tarflow.model.rotary import rotate, rotations
from tarflow.model_config import ModelConfig

UNIT = math.log(math.e - 1)  # softplus(UNIT) is 1


def patchify(images: Tensor, model: ModelConfig) -> Tensor:
    """Cut (B, c, height, width) images into (B, T, D) tokens in raster order.

    Inside a token the order is channel, row, column, or row, column, channel.

    >>> model = ModelConfig(image_size=8, image_channels=3, patch=4)
    >>> patchify(torch.zeros(2, 3, 8, 8), model).shape
    torch.Size([2, 4, 48])
    """
    cells = F.pixel_unshuffle(images, model.patch)
    if model.token_order == "channel-last":
        cells = cells.unflatten(1, (model.image_channels, -1)).transpose(1, 2).flatten(1, 2)
    return cells.flatten(2).mT


def unpatchify(tokens: Tensor, model: ModelConfig) -> Tensor:
    """Join the (B, T, D) tokens of square images; the inverse of `patchify`."""
    side = math.isqrt(tokens.shape[1])
    cells = tokens.mT.reshape(len(tokens), tokens.shape[2], side, side)
    if model.token_order == "channel-last":
        cells = cells.unflatten(1, (-1, model.image_channels)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(cells, model.patch)


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


class FlowBlock(nn.Module):
    """One autoregressive affine map (Zhai et al. 2025, equation 4).

    It reads the tokens in raster order, or the other way round if `backwards`. The Transformer
    predicts the shift and scale of each token from its predecessors. Without a start token the
    first one has none and passes unchanged.
    """

    def __init__(self, config: ModelConfig, index: int, layer_type: type[Layer] = Layer) -> None:
        """Build block `index`, counted from the images."""
        super().__init__()
        self.config = config
        self.backwards = (config.first_block == "backwards") != bool(index % 2)
        self.prefix = config.prefix(index)
        sees_labels = config.classes and (
            config.conditioned == "all" or index == config.blocks - 1
        )
        outputs = config.token_dim * (1 if config.volume_preserving else 2)
        self.proj_in = nn.Linear(config.token_dim, config.channels)
        self.proj_txt = nn.Linear(config.condition_dim, config.channels) if self.prefix else None
        self.sos_embed = (
            nn.Parameter(torch.randn(1, 1, config.token_dim) * 0.01)
            if config.start_token
            else None
        )
        self.pos_embed = (
            nn.Parameter(torch.randn(config.tokens, config.channels) * 0.01)
            if config.positions == "learned"
            else None
        )
        self.class_embed = (
            nn.Parameter(torch.randn(config.classes, 1, config.channels) * 0.01)
            if sees_labels
            else None
        )
        self.attn_blocks = nn.ModuleList(
            layer_type(config.channels, config.head_dim) for _ in range(config.depths[index])
        )
        self.final_norm = FinalNorm(config.channels) if config.final_norm else None
        self.proj_out = nn.Linear(config.channels, outputs)
        nn.init.zeros_(self.proj_out.weight)  # the bias is not zeroed, as published

    @property
    def conditional(self) -> bool:
        """Whether this block sees the condition."""
        return self.class_embed is not None or self.proj_txt is not None

    @property
    def passed(self) -> int:
        """Number of tokens at the front that pass unchanged: 1, or 0 with a start token."""
        return 0 if self.config.start_token else 1

    def forward(self, tokens: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map tokens one block towards the noise.

        Args:
            tokens: (B, T, D) in raster order.
            condition: Labels (B,) int64, -1 where dropped, or vectors (B, P, E), `null_condition`
                of the flow where dropped. `None` is for blocks without a condition, and drops all
                labels.

        Returns:
            Tokens (B, T, D) in raster order, log-determinant (B,) in nats per dimension.
        """
        tokens = self.permute(tokens)
        log_scale, shift = self.coefficients(tokens, condition)
        first, rest = tokens[:, : self.passed], tokens[:, self.passed :]
        rest = (rest - shift) * torch.exp(-log_scale)
        logdet = -log_scale.sum((1, 2)) / tokens[0].numel()
        return self.permute(torch.cat([first, rest], 1)), logdet

    def permute(self, tokens: Tensor) -> Tensor:
        """Take (B, T, ...) from raster order to the order of this block, or back."""
        return tokens.flip(1) if self.backwards else tokens

    def coefficients(self, tokens: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift, (B, T, D) each, of all tokens that do not pass unchanged.

        Without a start token these are all but the first: (B, T - 1, D).

        Args:
            tokens: (B, T, D) in the block's order.
            condition: See `forward`.
        """
        count = tokens.shape[1]
        output = self.output(self.with_start(tokens)[:, :count], condition)
        log_scale, shift = self.split(output)
        return log_scale[:, : count - self.passed], shift[:, : count - self.passed]

    def with_start(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, T, D) after the start token, if this block has one."""
        if self.sos_embed is None:
            return tokens
        return torch.cat([self.sos_embed.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)

    def output(self, tokens: Tensor, condition: Tensor | None) -> Tensor:
        """Return the last projection, (B, T, D or 2D), at each token for its successor.

        Args:
            tokens: (B, T, D) in the block's order, from the start token on if there is one.
            condition: See `forward`.
        """
        hidden = self.proj_in(tokens) + self.embedding(condition)
        if self.proj_txt is not None:
            hidden = torch.cat([self.proj_txt(condition), hidden], 1)
        rotation = self.rotation(hidden)
        positions = () if rotation is None else (rotation[:, : hidden.shape[1]],)
        for layer in self.attn_blocks:
            hidden = layer(hidden, *positions)
        hidden = hidden[:, self.prefix :]
        projected: Tensor = self.proj_out(
            hidden if self.final_norm is None else self.final_norm(hidden)
        )
        return projected

    def rotation(self, like: Tensor) -> Tensor | None:
        """Return rotary positions (2, P + T, K / 2) on a tensor's device, or `None` if learned."""
        if self.config.positions == "learned":
            return None
        dtype = torch.promote_types(like.dtype, torch.float32)
        every = rotations(self.config, like.device, dtype)
        return every[:, self.config.condition_tokens - self.prefix :]

    def embedding(self, condition: Tensor | None) -> Tensor:
        """Return positions plus classes in the block's order, (1 or B, 1 or T, 1 or C).

        It is in the type of the weights, so that hidden states are too, also under autocast.

        A dropped label (-1; `None` for the whole batch) is the mean of the class table.
        """
        if self.pos_embed is None:
            position = self.proj_in.bias.new_zeros(1, 1, 1)
        else:
            position = self.permute(self.pos_embed[None])
        if self.class_embed is None:
            return position
        mean = self.class_embed.mean(0, keepdim=True)
        if condition is None:
            return position + mean
        chosen = self.class_embed[condition.clamp(min=0)]
        return position + torch.where((condition < 0)[:, None, None], mean, chosen)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Split what the last projection gives into log-scale and shift, in float32 or wider.

        Args:
            output: (B, T, 2D), or (B, T, D) of a volume-preserving block: the shift alone, whose
                log-scale is 0.
        """
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if clip := self.config.soft_clip:
            output = clip * torch.tanh(output / clip)
        if self.config.volume_preserving:
            return torch.zeros_like(output), output
        log_scale, shift = output.chunk(2, dim=2)
        if self.config.scale == "softplus":
            scale = F.softplus(log_scale + UNIT)
            log_scale = scale.clamp(min=torch.finfo(scale.dtype).tiny).log()
        return log_scale, shift


class TarFlow(nn.Module):
    """A stack of autoregressive blocks between images and Gaussian noise."""

    var: Tensor  # (T, D) variance of the prior: 1 unless the flow preserves volume
    null_condition: (
        Tensor  # (P, E) what a dropped condition is replaced by; absent without vectors
    )

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
            block_type(config, index, layer_type) for index in range(config.blocks)
        )
        self.register_buffer("var", torch.ones(config.tokens, config.token_dim))
        if config.condition_tokens:
            null = torch.zeros(config.condition_tokens, config.condition_dim)
            self.register_buffer("null_condition", null)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images to noise.

        Args:
            images: (B, c, height, width) in [-1, 1].
            condition: Labels (B,) int64, -1 where dropped; or vectors (B, P, E), `null_condition`
                where dropped; `None` drops all. An unconditional flow ignores it.

        Returns:
            Latents (B, T, D), log-determinant (B,) in nats per dimension (float32 or wider).
        """
        steps = self.trace(images, condition)
        return steps[-1][0], torch.stack([logdet for _, logdet in steps]).sum(0)

    def trace(
        self, images: Tensor, condition: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return tokens (B, T, D) after each block, and its log-determinant (B,)."""
        tokens = patchify(images, self.config)
        condition = self.complete(condition, len(images))
        steps = []
        for block in self.blocks:
            tokens, logdet = block(tokens, condition)
            steps.append((tokens, logdet))
        return steps

    def complete(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Return a condition that blocks take: `null_condition` for each image instead of `None`.

        Labels, and the `None` that drops all of them, are returned as they are.
        """
        if condition is None and self.config.condition_tokens:
            return self.null_condition.expand(batch, -1, -1)
        return condition

    def drop(self, condition: Tensor, dropped: Tensor) -> Tensor:
        """Return the condition (B, ...) with that of some images dropped.

        Args:
            condition: Labels (B,) or vectors (B, P, E).
            dropped: (B,) bool, true where it is dropped.
        """
        if not self.config.condition_tokens:
            return condition.masked_fill(dropped, -1)
        return torch.where(dropped[:, None, None], self.null_condition.to(condition), condition)

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

    def check_condition(self, condition: Tensor | None) -> None:
        """Refuse labels (B,) that this flow has no class for, and vectors of a wrong shape.

        Raises:
            UserError: Naming the first wrong label, or the shape.
        """
        if condition is None:
            return
        config, classes = self.config, self.config.classes
        shape = config.condition_tokens, config.condition_dim
        if condition.is_floating_point() or any(shape):
            if condition.shape[1:] != shape:
                given = " x ".join(map(str, condition.shape[1:])) or "one label"
                needed = " x ".join(map(str, shape)) if any(shape) else "no vectors"
                raise UserError(f"the condition of an image is {given}: the model takes {needed}")
            return
        wrong = condition[(condition < -1) | (condition >= classes)]
        if len(wrong):
            known = f"labels are 0 to {classes - 1}" if classes else "the model has no classes"
            raise UserError(f"label {int(wrong[0])} is unknown: {known}")

    def log_prob(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the log-density of images as they are, (B,) nats; differentiable.

        The flow was trained on images with noise: this is a density of such images, not the
        probability of a clean one. Arguments as for `forward`; a condition that does not fit is a
        `UserError`.
        """
        self.check_condition(condition)
        latents, logdet = self(images, condition)
        density: Tensor = (self.log_prior(latents) + logdet) * self.config.dims
        return density

    def inverse(
        self, latents: Tensor, condition: Tensor | None = None, *, differentiable: bool = False
    ) -> Tensor:
        """Map latents to images, without guidance or denoising: the inverse of `forward`.

        Args:
            latents: (B, T, D); samples come from noise times `var.sqrt()`.
            condition: As for `forward`; one that does not fit is a `UserError`.
            differentiable: Whether gradients reach the latents, the condition and the parameters;
                see `tarflow.sample.differentiable`.

        Returns:
            (B, c, height, width) images in about [-1, 1].
        """
        from tarflow.sample import differentiable as implicit  # solvers wrap the mathematics
        from tarflow.sample.inverse import invert

        solve = implicit.differentiable_inverse if differentiable else invert
        return solve(self, latents, condition)


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
            for table in (module.pos_embed, module.class_embed, module.sos_embed):
                if table is not None:
                    normal = torch.randn(table.shape, generator=rng, dtype=torch.float64)
                    table.copy_(0.01 * normal)
        elif isinstance(module, FinalNorm):
            module.weight.zero_()
    flow.var.fill_(1.0)
