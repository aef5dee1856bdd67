"""What follows the passes of a step: gradient norm, clipping, optimizer, weight average."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tarflow import distributed
from tarflow.config import RunConfig
from tarflow.cpu.kernels import Kernels, Parameter, kernels
from tarflow.cuda_graph import CudaGraph
from tarflow.device import master_dtype
from tarflow.train import optim
from tarflow.train.state import TrainState, fused_dtype


class Update:
    """Changes the weights of a state by their gradients, then their average.

    Attributes:
        norm: of all gradients before clipping, a scalar that `measure` fills.
    """

    def __init__(self, state: TrainState, config: RunConfig, pool: Any = None) -> None:
        """Serve one run.

        Args:
            state: is changed by each update.
            config: of the run.
            pool: as for `CudaGraph`, where steps are replayed; rates are then tensors.
        """
        self.optimizers, self.clip = state.optimizers, config.optim.clip
        self.gradients = distributed.flatten_gradients(state.flow)
        named = dict(state.flow.named_parameters())  # to list them takes a millisecond
        self.parameters = list(named.values())
        self.parts = [distributed.local_shard(parameter) for parameter in self.parameters]
        self.averages = [distributed.local_shard(state.average[name]) for name in named]
        device = state.flow.var.device
        self.norm = torch.zeros((), device=device, dtype=master_dtype(config))
        self.find_norm: Callable[[], None] = self._find_norm
        self.step: Callable[[], None] = self._step
        if distributed.replayed(state.flow):
            self.find_norm = CudaGraph(self._find_norm, device, pool)
            if config.optim.optimizer == "adamw":  # Muon takes its rate from the host
                self.step = CudaGraph(self._step, device, pool)
                for group in state.optimizers[0].param_groups:
                    group["lr"] = torch.tensor(float(group["lr"]), device=device)
                    group["capturable"] = True

    def measure(self) -> None:
        """Average the gradients over the workers, and find their norm."""
        if self.gradients is not None:
            distributed.average_gradients(self.gradients)
        self.find_norm()

    def __call__(self, rate: float, decay: float) -> None:
        """Update once, after `measure`, and leave no gradient behind.

        Args:
            rate: learning rate, before the factor of a group.
            decay: how much of the weight average is kept.
        """
        self.set_rates(rate)
        self.step()
        optim.update_average(self.averages, self.parts, decay)

    def set_rates(self, rate: float) -> None:
        """Tell the optimizers, in place if a recording reads it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * group["factor"])
                else:
                    group["lr"] = rate * group["factor"]

    def _find_norm(self) -> None:
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

    def __init__(self, state: TrainState, config: RunConfig, run: Kernels) -> None:
        """Serve one run; see `Update`."""
        super().__init__(state, config)
        self.kernels = run
        (optimizer,) = self.optimizers
        moments = optimizer.state
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
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                row = of[parameter]
                row.factor, row.decay = group["factor"], group["weight_decay"]
            self.betas, self.epsilon = group["betas"], group["eps"]  # the same in all

    def __call__(self, rate: float, decay: float) -> None:
        """Update once; see `Update`."""
        self.set_rates(rate)
        self.steps += 1
        steps, (beta1, beta2) = self.steps.item(), self.betas
        clip = min(1.0, self.clip / (self.norm.item() + 1e-6))
        self.kernels.adamw(
            *(self.table, len(self.table), rate, clip, beta1, beta2, self.epsilon),
            *(1 - beta1**steps, 1 - beta2**steps, 1 - decay),
        )
        self.clear()

    def _find_norm(self) -> None:
        for parameter, row in zip(self.parameters, self.rows, strict=True):
            assert parameter.grad is not None
            row.gradient = parameter.grad.data_ptr()
        self.kernels.gradient_norm(self.table, len(self.table), self.norm)


def make_update(state: TrainState, config: RunConfig, pool: Any = None) -> Update:
    """Return the faster update that a run can have; see `Update`."""
    dtype = fused_dtype(config, state.flow.var.device)
    run = kernels(dtype) if dtype else None
    if run and config.optim.optimizer == "adamw":
        return FusedUpdate(state, config, run)
    return Update(state, config, pool)
