"""The training state of a run: what it is, and how it is made from the config."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tarflow import distributed
from tarflow.config import RunConfig
from tarflow.cpu.layers import FusedBlock, FusedLayer, ProductLayer
from tarflow.execution import Execution
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow, initialise
from tarflow.model.transformer import Layer
from tarflow.train import optim


@dataclass
class TrainState:
    """What training owns and changes; the one thing that checkpoints save and restore."""

    flow: TarFlow
    ema: dict[str, Tensor]  # weight average, by name of the state dict
    optimizers: list[torch.optim.Optimizer]  # together they own all parameters
    images: int = 0  # training images seen
    seconds: float = 0.0  # spent in training, without pauses
    curve: list[dict[str, float]] = field(default_factory=list)
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    loss_steps: int = 0  # steps in `loss_sum`, since the last row of the curve
    micro_batch: int = 0  # images per pass and worker that fit in memory; 0 if not tried yet
    inherited: int = 0  # of `images`, those that a trunk was trained on
    inherited_seconds: float = 0.0  # of `seconds`, those that the trunk took
    resumed: int = 0  # `images` when this process began to train
    resumed_seconds: float = 0.0  # `seconds` at that time

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by its name in a checkpoint, as this worker holds it."""
        for name, tensor in self.flow.state_dict().items():
            yield f"flow.{name}", tensor
        for name, tensor in self.ema.items():
            yield f"average.{name}", tensor
        for name, moments in optim.optimizer_state(self.flow, self.optimizers):
            for kind, value in moments.items():
                yield f"optimizer.{kind}.{name}", value
        yield "losses", self.loss_sum


def new_state(config: RunConfig, execution: Execution) -> TrainState:
    """Return the state before the first step: a function of the config alone.

    Weights are drawn as for a single worker, and then sharded if the execution says so.
    """
    block_type, layer_type = model_types(config, execution)
    flow = TarFlow(config.model, block_type, layer_type)
    initialise(flow, config.seed)
    flow = flow.to(execution.dtype).train()
    if execution.kernels == "compile":
        for module in flow.modules():
            if isinstance(module, Layer):
                module.compile()  # all are alike, so the code of one serves all
    if execution.sharded:
        distributed.shard(flow, execution.device, execution.precision)
    else:
        flow = flow.to(execution.device)
    ema = {name: tensor.detach().clone() for name, tensor in flow.state_dict().items()}
    loss_sum = torch.zeros((), dtype=torch.float64, device=execution.device)
    return TrainState(flow, ema, optim.make_optimizers(flow, config.optim), loss_sum=loss_sum)


def model_types(config: RunConfig, execution: Execution) -> tuple[type[FlowBlock], type[Layer]]:
    """Return the classes of blocks and layers that train fastest; all have the same parameters."""
    block_type: type[FlowBlock] = FlowBlock
    layer_type: type[Layer] = Layer
    if execution.kernels == "fused" and execution.device.type == "cuda":
        from tarflow.cuda import layers  # Triton is not there on every system

        narrow = execution.residuals == "bfloat16"
        block_type = layers.NarrowBlock if narrow else layers.FusedBlock
        layer_type = layers.FusedLayer
    elif execution.kernels == "fused":
        block_type, layer_type = FusedBlock, FusedLayer
    elif execution.device.type == "cpu":
        layer_type = ProductLayer
    if config.execution.checkpoint_activations:
        layer_type = recomputed(layer_type)
    return block_type, layer_type


def recomputed(layer_type: type[Layer]) -> type[Layer]:
    """Return a layer that keeps its input only and recomputes the rest in the backward pass."""

    class RecomputedLayer(layer_type):  # type: ignore[misc, valid-type]
        def forward(self, *hidden: Tensor) -> Any:
            if not torch.is_grad_enabled():
                return super().forward(*hidden)
            return checkpoint(
                super().forward, *hidden, use_reentrant=False, preserve_rng_state=False
            )

    return RecomputedLayer
