"""The training step as CUDA graphs: `TrainStep` with its device work captured and replayed.

Launching the operations of a small model one by one takes the host longer than the device needs to
run them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.config import RunConfig
from tarflow.cpu.update import OnePassUpdate
from tarflow.cuda_graph import CudaGraph, graph_pool
from tarflow.execution import Execution
from tarflow.train.optim import Update
from tarflow.train.state import TrainState
from tarflow.train.step import TrainStep


def make_train_step(state: TrainState, config: RunConfig, execution: Execution) -> TrainStep:
    """Return the training step of a run, as CUDA graphs where they are supported."""
    step_type = GraphedTrainStep if execution.cuda_graphs else TrainStep
    return step_type(state, config, execution)


class GraphedTrainStep(TrainStep):
    """`TrainStep`, with forward and backward passes and the update replayed from CUDA graphs."""

    def __init__(self, state: TrainState, config: RunConfig, execution: Execution) -> None:
        self.pool = graph_pool(execution.device)
        super().__init__(state, config, execution)
        self._pass = CudaGraph(self._new_gradients, execution.device, self.pool)

    def needs_buffer(self) -> bool:
        """Tell whether passes must add their gradients to a buffer: also if a step has several."""
        share = self.config.batch // self.execution.workers
        return self.execution.micro_batch < share or super().needs_buffer()

    def forward_backward(self, images: Tensor, condition: Tensor | None) -> None:
        """Add the gradients and the loss of a micro-batch to those of the step."""
        if self.gradients is not None:
            self._pass(images, condition)
            return
        # A captured backward pass that finds no gradients allocates them itself, and every replay
        # writes there: nothing is zeroed or added. Capturing computes none, so replay at once.
        captured = self._pass.captured
        self._pass(images, condition)
        if not captured:
            self.loss.zero_()
            self.square.zero_()
            self._pass(images, condition)

    def clear_gradients(self) -> None:
        """Make ready for the next step; without a buffer, replays overwrite the gradients."""
        if self.gradients is not None:
            super().clear_gradients()

    def _new_gradients(self, images: Tensor, condition: Tensor | None) -> None:
        if self.gradients is None:
            super().clear_gradients()
        super().forward_backward(images, condition)

    def make_update(self) -> Update | OnePassUpdate:
        """Return the update as CUDA graphs."""
        named = dict(self.state.flow.named_parameters())
        ema, clip = [self.state.ema[name] for name in named], self.config.optim.clip
        return GraphedUpdate(self.state.optimizers, list(named.values()), ema, clip, self.pool)


class GraphedUpdate(Update):
    """`Update`, with the gradient norm and the optimizer's step replayed from CUDA graphs."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[nn.Parameter],
        ema: Sequence[Tensor],
        clip: float,
        pool: Any,
    ) -> None:
        """Make the optimizers ready for capture; arguments as for `Update` and `CudaGraph`."""
        super().__init__(optimizers, parameters, ema, clip)
        device = parameters[0].device
        self._norm = CudaGraph(super().measure_norm, device, pool)
        self._step: Callable[[], None] = super().clip_and_step
        if len(optimizers) == 1:  # Muon takes its rate from the host
            self._step = CudaGraph(super().clip_and_step, device, pool)
            for group in optimizers[0].param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=device)
                group["capturable"] = True

    def measure_norm(self) -> None:
        """Write the norm of all gradients to `norm`."""
        self._norm()

    def clip_and_step(self) -> None:
        """Clip the gradients by `norm` and step the optimizers."""
        self._step()
