"""What follows the passes of a step: gradient norm, clipping, optimizer, weight average."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tarflow import distributed, optim
from tarflow.config import RunConfig
from tarflow.device import Recorder, master_dtype
from tarflow.kernels import Parameter, kernels
from tarflow.resume import TrainState, fused_dtype


class Update:
    """Changes the weights of a state by their gradients, then their average.

    Attributes:
        norm: of all gradients before clipping, a scalar that `measure` fills.
    """

    def __init__(
        self,
        state: TrainState,
        config: RunConfig,
        gradients: Tensor | None = None,
        pool: Any = None,
    ) -> None:
        """Serve one run.

        Args:
            state: is changed by each update.
            config: of the run.
            gradients: the memory they share, if they do (`distributed.joined_gradients`).
            pool: as for `Recorder`, where steps are replayed; rates are then tensors.
        """
        self.optimizers, self.clip, self.gradients = state.optimizers, config.optim.clip, gradients
        named = dict(state.flow.named_parameters())  # to list them takes a millisecond
        self.parameters = list(named.values())
        self.parts = [distributed.part(parameter) for parameter in self.parameters]
        self.averages = [distributed.part(state.average[name]) for name in named]
        device = state.flow.var.device
        self.norm = torch.zeros((), device=device, dtype=master_dtype(config))
        self.measure: Callable[[], None] = self._measure
        self.step: Callable[[], None] = self._step
        if distributed.replayed(state.flow):
            self.measure = Recorder(self._measure, device, pool)
            if config.optim.optimizer == "adamw":  # Muon takes its rate from the host
                self.step = Recorder(self._step, device, pool)
                for group in state.optimizers[0].param_groups:
                    group["lr"] = torch.tensor(float(group["lr"]), device=device)
                    group["capturable"] = True

    def __call__(self, rate: float, decay: float) -> None:
        """Update once, after `measure`, and leave no gradient behind.

        Args:
            rate: learning rate, before the factor of a group.
            decay: how much of the weight average is kept.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                set_rate(group, rate * group["factor"])
        self.step()
        optim.update_average(self.averages, self.parts, decay)

    def _measure(self) -> None:
        self.norm.copy_(distributed.gradient_norm(self.parameters))

    def _step(self) -> None:
        nn.utils.clip_grads_with_norm_(self.parameters, self.clip, self.norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Forget all gradients."""
        if self.gradients is None:
            for parameter in self.parameters:
                parameter.grad = None
        else:
            self.gradients.zero_()


class FusedUpdate(Update):
    """The same for float32 parameters on a CPU and one AdamW, each as one pass over all values.

    PyTorch takes the parameters one by one, and needs longer for that than for the values of a
    small model. Moments and step count stay in the optimizer's state, the count as one for all.
    """

    def __init__(
        self, state: TrainState, config: RunConfig, gradients: Tensor | None = None
    ) -> None:
        """Serve one run; see `Update`."""
        super().__init__(state, config, gradients)
        dtype = fused_dtype(config, state.flow.var.device)
        found = kernels(dtype) if dtype else None
        assert found
        self.kernels = found
        (self.optimizer,) = self.optimizers
        moments = self.optimizer.state
        steps = [kept["step"] for kept in moments.values()]
        self.steps = steps[0] if steps else torch.zeros(())
        self.table = (Parameter * len(self.parameters))()
        self.rows = list(self.table)
        for parameter, average, row in zip(self.parameters, self.averages, self.rows, strict=True):
            kept = moments[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                kept.setdefault(name, torch.zeros_like(parameter))
            kept["step"] = self.steps
            row.weight, row.average = parameter.data_ptr(), average.data_ptr()
            row.mean, row.square = kept["exp_avg"].data_ptr(), kept["exp_avg_sq"].data_ptr()
            row.count = parameter.numel()
        of = dict(zip(self.parameters, self.rows, strict=True))
        groups = self.optimizer.param_groups
        self.groups = [(group, [of[each] for each in group["params"]]) for group in groups]

    def __call__(self, rate: float, decay: float) -> None:
        """Update once; see `Update`."""
        for group, rows in self.groups:
            group["lr"] = rate * group["factor"]
            for row in rows:
                row.rate, row.decay = group["lr"], group["weight_decay"]
        (beta1, beta2), epsilon = group["betas"], group["eps"]  # the same in all
        self.steps += 1
        steps = self.steps.item()
        self.kernels.adamw(
            *(self.table, len(self.table), min(1.0, self.clip / (self.norm.item() + 1e-6))),
            *(beta1, beta2, epsilon, 1 - beta1**steps, 1 - beta2**steps, 1 - decay),
        )
        self.clear()

    def _measure(self) -> None:
        for parameter, row in zip(self.parameters, self.rows, strict=True):
            assert parameter.grad is not None
            row.gradient = parameter.grad.data_ptr()
        self.kernels.gradient_norm(self.table, len(self.table), self.norm)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group of an optimizer, in place if a recording reads it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
