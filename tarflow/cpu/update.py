"""AdamW and the weight average (EMA) on a CPU, in one pass over all values.

PyTorch updates parameters one by one, which takes longer than the arithmetic of a small model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tarflow.cpu.kernels import Kernels, Parameter


class OnePassUpdate:
    """Clips gradients, steps AdamW and moves the EMA of float32 parameters.

    Moments and step count stay in the optimizer's own state, so that checkpoints are the same
    whichever update wrote them; all parameters share one step count.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        ema: Sequence[Tensor],
        clip: float,
        kernels: Kernels,
    ) -> None:
        """Lay out the addresses that the kernels read.

        Args:
            optimizer: AdamW over all parameters; each of its groups has a `factor` of the rate.
            parameters: Parameters, float32, whose memory stays where it is.
            ema: Weight average of each parameter.
            clip: Largest norm of all gradients.
            kernels: Compiled functions.
        """
        self.optimizer, self.parameters, self.clip = optimizer, parameters, clip
        self.kernels = kernels
        self.norm = torch.zeros(())
        moments = optimizer.state
        steps = [kept["step"] for kept in moments.values()]
        self.steps = steps[0] if steps else torch.zeros(())
        self.table = (Parameter * len(parameters))()
        self.rows = list(self.table)
        for parameter, average, row in zip(parameters, ema, self.rows, strict=True):
            kept = moments[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                kept.setdefault(name, torch.zeros_like(parameter))
            kept["step"] = self.steps
            row.weight, row.average = parameter.data_ptr(), average.data_ptr()
            row.mean, row.square = kept["exp_avg"].data_ptr(), kept["exp_avg_sq"].data_ptr()
            row.count = parameter.numel()
        row_of = dict(zip(parameters, self.rows, strict=True))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                row = row_of[parameter]
                row.factor, row.decay = group["factor"], group["weight_decay"]
            self.betas, self.epsilon = group["betas"], group["eps"]  # the same in all groups

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients before clipping, a scalar that the next call reuses."""
        for parameter, row in zip(self.parameters, self.rows, strict=True):
            assert parameter.grad is not None
            row.gradient = parameter.grad.data_ptr()
        self.kernels.gradient_norm(self.table, len(self.table), self.norm)
        return self.norm

    def __call__(self, rate: float, ema_decay: float) -> None:
        """Clip by the last `gradient_norm`, step, and move the EMA.

        Args:
            rate: Learning rate, before the factor of a group.
            ema_decay: Share of the EMA that is kept.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.steps += 1
        steps, (beta1, beta2) = self.steps.item(), self.betas
        clip = min(1.0, self.clip / (self.norm.item() + 1e-6))
        self.kernels.adamw(
            *(self.table, len(self.table), rate, clip, beta1, beta2, self.epsilon),
            *(1 - beta1**steps, 1 - beta2**steps, 1 - ema_decay),
        )
