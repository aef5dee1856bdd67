"""Optimizer and weight average; every horizon is counted in images seen."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.config import OptimConfig
from tarflow.model.flow import TarFlow


def make_optimizers(flow: TarFlow, optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """Return what updates the parameters, with weight decay on all, as published.

    `adamw` takes all. `muon` (Jordan et al. 2024) takes the matrices of the layers, with updates
    of the size of AdamW's, so that both share one rate (Liu et al. 2025, arXiv 2502.16982).

    The rate of a group is the scheduled one times its `factor`. Decay is divided by the factor,
    so that weights forget as fast at every width: rate times decay is the same for all.
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
    """Return by name what the rate of each parameter is multiplied by.

    With `base_channels`, Adam's rate falls as 1/channels for all matrices that take the hidden
    states in (of the layers, and the last of a block) and stays for all that is only written into
    them: input projection, embeddings, norms, biases (Yang et al. 2022, arXiv 2203.03466, tables 3
    and 8; a last projection that starts at zero needs no multiplier of its own). So does the
    attention's scale, as heads grow in number and never in size. An update of Muon of
    the same entries has full rank and a norm that is sqrt(channels) times smaller, hence a rate
    that falls as 1/sqrt(channels) (Yang, Simon and Bernstein 2023, arXiv 2310.17813).
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
    """Return one group of an optimizer for each factor, the one that leaves the rate first."""
    wanted = sorted({factors[name] for name in parameters}, key=lambda factor: factor != 1.0)
    return [
        {
            "params": [p for name, p in parameters.items() if factors[name] == factor],
            "factor": factor,
            "weight_decay": optim.weight_decay / factor,
        }
        for factor in wanted
    ]


def hidden_matrices(flow: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight matrices inside the layers by name; all else is no map of hidden states.

    >>> from tarflow.config import ModelConfig
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
    """Yield the name of each parameter and what its optimizer keeps of it."""
    names = {parameter: name for name, parameter in flow.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[parameter], optimizer.state[parameter]


def ema_exponent(width: float) -> float:
    """Return the exponent of the power-function average of a given relative width.

    The average weights the model at `t` images by `t ** exponent`; the standard deviation of that
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
    """Return how much of the average is kept when `images` have been seen after this batch."""
    return float((1 - batch / images) ** (exponent + 1))


@torch.no_grad()
def update_average(average: Iterable[Tensor], current: Iterable[Tensor], decay: float) -> None:
    """Move an average towards the current weights, in place."""
    torch._foreach_lerp_(list(average), list(current), 1 - decay)
