"""One block of a flow: an autoregressive affine map over the patches of an image.

Legend: `B` batch, `T` tokens per image, `D` values per token, `C` channels, `K` channels of a
head, `P` condition tokens of `E` values. A condition is a label for each image, (B,) int64, or
vectors, (B, P, E). Parameter names are those of the published weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.rotary import rotations
from tarflow.model.transformer import FinalNorm, Layer
from tarflow.model_config import ModelConfig

UNIT = math.log(math.e - 1)  # softplus(UNIT) is 1


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
