"""TarFlow (Zhai et al. 2025): a normalizing flow of causal Transformers over image patches.

A flow maps images to Gaussian noise and back. It is a stack of blocks; each reads the patches of
an image in one direction, and shifts and scales every patch by what a causal Transformer makes of
the patches before it. So the map is invertible, its Jacobian triangular and its likelihood exact.

This folder is the mathematics alone. How a machine runs it fast (compiled kernels, CUDA graphs,
sharding, recomputed activations) wraps it from outside.

Options of the config turn a TarFlow into a STARFlow (Gu et al. 2025, arXiv 2506.06276).

Read on in `patches`, `block` and `transformer`, which this file puts together.

Legend: `B` batch, `T` tokens per image, `D` values per token, `P` condition tokens of `E` values.
A condition is a label for each image, (B,) int64, or vectors, (B, P, E). Parameter names are those
of the published weights.
"""

import math

import torch
from torch import Tensor, nn

from tarflow.errors import UserError
from tarflow.model import noise
from tarflow.model.block import FlowBlock
from tarflow.model.patches import patchify
from tarflow.model.transformer import FinalNorm, Layer
from tarflow.model_config import ModelConfig


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
