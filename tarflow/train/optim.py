"""Optimizers, their update, and the weight average (EMA); horizons are counted in images."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tarflow import distributed
from tarflow.config import OptimConfig
from tarflow.model.flow import TarFlow


def make_optimizers(flow: TarFlow, optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all parameters, with weight decay on all, as published.

    `adamw` updates every parameter. `muon` (Jordan et al. 2024) updates the matrices inside the
    layers and AdamW the rest; Muon's updates are scaled to the size of AdamW's, so that both share
    one rate (Liu et al. 2025, arXiv 2502.16982).

    The rate of a group is the scheduled one times its `factor`. Decay is divided by the factor, so
    that weights decay equally fast at every width: rate times decay is the same for all.
    """
    factors = rate_factors(flow, optim)
    chosen = hidden_matrices(flow) if optim.optimizer == "muon" else {}
    rest = {name: p for name, p in flow.named_parameters() if name not in chosen}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            groups(rest, factors, optim),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            fused=True,
        )
    ]
    if chosen:
        optimizers.append(
            torch.optim.Muon(
                groups(chosen, factors, optim), lr=optim.lr, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def rate_factors(flow: TarFlow, optim: OptimConfig) -> dict[str, float]:
    """Return the factor of each parameter's learning rate, by name.

    With `base_channels`, Adam's rate falls as 1/channels for every matrix that reads the hidden
    states (those of the layers, and the last of a block). It stays for what only writes into
    them: input projection, embeddings, norms, biases (Yang et al. 2022, arXiv 2203.03466, tables 3
    and 8; a last projection that starts at zero needs no extra multiplier). The attention's scale
    stays too, because heads grow in number, never in size. Muon's update of the same matrix has
    full rank and a norm sqrt(channels) times smaller, so its rate falls as 1/sqrt(channels) (Yang,
    Simon and Bernstein 2023, arXiv 2310.17813).
    """
    factors = {name: 1.0 for name, _ in flow.named_parameters()}
    if not optim.base_channels:
        return factors
    factor = optim.base_channels / flow.config.channels
    hidden = factor**0.5 if optim.optimizer == "muon" else factor
    factors |= dict.fromkeys(hidden_matrices(flow), hidden)
    return factors | {name: factor for name in factors if name.endswith("proj_out.weight")}


def groups(
    parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float], optim: OptimConfig
) -> list[dict[str, Any]]:
    """Return one parameter group per factor, that of factor 1 first."""
    distinct = sorted({factors[name] for name in parameters}, key=lambda factor: factor != 1.0)
    return [
        {
            "params": [p for name, p in parameters.items() if factors[name] == factor],
            "factor": factor,
            "weight_decay": optim.weight_decay / factor,
        }
        for factor in distinct
    ]


def hidden_matrices(flow: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight matrices inside the layers, which map hidden states to hidden states.

    >>> from tarflow.model_config import ModelConfig
    >>> from tarflow.model.flow import TarFlow
    >>> list(hidden_matrices(TarFlow(ModelConfig(blocks=1, layers=1))))[:2]
    ['blocks.0.attn_blocks.0.attention.qkv.weight', 'blocks.0.attn_blocks.0.attention.proj.weight']
    """
    return {
        name: parameter
        for name, parameter in flow.named_parameters()
        if ".attn_blocks." in name and parameter.ndim == 2
    }


def optimizer_state(
    flow: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name of each parameter and the state that its optimizer keeps for it."""
    names = {parameter: name for name, parameter in flow.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[parameter], optimizer.state[parameter]


def ema_exponent(width: float) -> float:
    """Return the exponent of the power-function EMA of a given relative width.

    The EMA weights the model at `t` images by `t ** exponent`; the standard deviation of that
    profile is `width` times the images seen (Karras et al. 2024, arXiv 2312.02696, equation 17).

    >>> round(ema_exponent(0.05), 2)
    16.97
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        spread = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3)))
        low, high = (middle, high) if spread > width else (low, middle)
    return (low + high) / 2


def ema_decay(exponent: float, images: int, batch: int) -> float:
    """Return the share of the EMA that is kept when `images` have been seen after this batch."""
    return float((1 - batch / images) ** (exponent + 1))


@torch.no_grad()
def update_ema(ema: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """Move an EMA towards the current weights, in place, keeping a share `decay` of it."""
    torch._foreach_lerp_(list(ema), list(current), 1 - decay)


class Update:
    """Clips gradients, steps the optimizers and moves the EMA.

    Attributes:
        norm: Norm of all gradients before clipping, a scalar written by `gradient_norm`.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[nn.Parameter],
        ema: Sequence[Tensor],
        clip: float,
    ) -> None:
        """Prepare for one run.

        Args:
            optimizers: They update all parameters between them.
            parameters: All parameters, whole or sharded.
            ema: Weight average of each parameter, sharded as it is.
            clip: Largest norm of all gradients.
        """
        self.optimizers, self.parameters, self.clip = optimizers, parameters, clip
        self.shards = [distributed.local_shard(parameter) for parameter in parameters]
        self.ema = [distributed.local_shard(average) for average in ema]
        self.norm = self.shards[0].new_zeros(())

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients before clipping, a scalar that the next call reuses."""
        self.measure_norm()
        return self.norm

    def __call__(self, rate: float, ema_decay: float) -> None:
        """Clip by the last `gradient_norm`, step, and move the EMA.

        Args:
            rate: Learning rate, before the factor of a group.
            ema_decay: Share of the EMA that is kept.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # a CUDA graph reads it
                    group["lr"].fill_(rate * group["factor"])
                else:
                    group["lr"] = rate * group["factor"]
        self.clip_and_step()
        update_ema(self.ema, self.shards, ema_decay)

    def measure_norm(self) -> None:
        """Write the norm of all gradients to `norm`."""
        self.norm.copy_(distributed.gradient_norm(self.parameters))

    def clip_and_step(self) -> None:
        """Clip the gradients by `norm` and step the optimizers."""
        nn.utils.clip_grads_with_norm_(self.parameters, self.clip, self.norm)
        for optimizer in self.optimizers:
            optimizer.step()
