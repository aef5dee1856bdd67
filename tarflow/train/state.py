"""The state of a run in training: made from the config, saved, found again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow import distributed
from tarflow.config import RunConfig
from tarflow.cpu.kernels import kernels
from tarflow.device import DTYPES, check_compiler, master_dtype
from tarflow.model.flow import FlowBlock, Layer, TarFlow, initialise
from tarflow.train import optim
from tarflow.train.checkpoint import StateWriter, load_state, remove_checkpoints
from tarflow.train.schedule import shared_images
from tarflow.train.trunk import Trunk


@dataclass
class TrainState:
    """What training owns and changes; the one thing that is saved and restored."""

    flow: TarFlow
    average: dict[str, Tensor]  # weight average (EMA), by name of the state dict
    optimizers: list[torch.optim.Optimizer]  # each owns a part of the parameters
    images: int = 0  # training images seen
    seconds: float = 0.0  # spent in training, pauses left out
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    steps: int = 0  # whose losses were summed since the last row of the curve
    micro_batch: int = 0  # images per pass and worker that fit in memory; 0 is not known yet
    inherited: int = 0  # of the images, those that a trunk was trained on
    inherited_seconds: float = 0.0  # of the seconds, those that the trunk took


def new_state(config: RunConfig, device: torch.device) -> TrainState:
    """Return the state before the first step, a function of the config alone.

    Weights are drawn as for a single worker, and then divided if `execution.sharding` is `shard`.

    Raises:
        UserError: if layers are to be compiled and there is no compiler.
    """
    fused = fused_dtype(config, device)
    compiled = config.execution.compile and not fused
    if compiled:
        check_compiler()
    flow = TarFlow(config.model)
    initialise(flow, config.seed)
    flow = flow.to(master_dtype(config)).train()
    for module in flow.modules():
        if isinstance(module, FlowBlock):
            module.checkpoint_activations = config.execution.checkpoint_activations
            module.fused = fused is not None
        elif isinstance(module, Layer):
            module.fused = fused
            if compiled:
                module.compile()  # all are alike, so the code of one serves all
    if config.execution.sharding == "shard":
        distributed.divide(flow, device, config.precision)
    else:
        flow = flow.to(device)
    average = {name: tensor.detach().clone() for name, tensor in flow.state_dict().items()}
    losses = torch.zeros((), dtype=torch.float64, device=device)
    return TrainState(flow, average, optim.make_optimizers(flow, config.optim), losses=losses)


def fused_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    """Return the type of the activations inside fused parts, or None if none are fused.

    None are on accelerators, where the state is divided, in float64, and without a compiler.
    """
    execution, dtype = config.execution, DTYPES.get(config.precision)
    if device.type != "cpu" or not execution.fused or execution.sharding == "shard":
        return None
    return dtype if kernels(dtype) else None


def tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a state by its name on disk, as each worker holds it."""
    for name, tensor in state.flow.state_dict().items():
        yield f"flow.{name}", tensor
    for name, tensor in state.average.items():
        yield f"average.{name}", tensor
    for name, kept in optim.optimizer_state(state.flow, state.optimizers):
        for kind, value in kept.items():
            yield f"optimizer.{kind}.{name}", value
    yield "losses", state.losses


def save(state: TrainState, writer: StateWriter, trunk: Path | None = None) -> None:
    """Begin to write the full training state: all workers give their parts, the first writes.

    With `trunk` it goes to that folder, for other runs. One tensor at a time is whole on the
    device. What is written does not tell how many workers there were.
    """
    gathered = ((name, distributed.full_tensor(tensor)) for name, tensor in tensors(state))
    if distributed.rank():
        for _ in gathered:
            pass
        return
    facts = {"seconds": state.seconds, "curve": list(state.curve), "steps": state.steps}
    facts["micro_batch"] = state.micro_batch
    facts |= {"inherited": state.inherited, "inherited_seconds": state.inherited_seconds}
    writer.save(state.images, gathered, facts, trunk)


def restore(
    state: TrainState, folder: Path, config: RunConfig, trunk: Trunk | None = None
) -> TrainState:
    """Fill a fresh state from the newest sound one on disk, if there is one; else from a trunk's.

    The first worker reads it and sends the others what they hold, tensor by tensor.
    """
    device = state.flow.var.device
    loaded = _newest(folder, config, trunk) if distributed.rank() == 0 else None
    found, facts = loaded or ({}, {})
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    facts, shapes = distributed.broadcast([facts, shapes], device)
    if not facts:
        return state
    kinds = sorted({name.split(".")[1] for name in shapes if name.startswith("optimizer.")})
    parameters = dict(state.flow.named_parameters())
    for name, kept in optim.optimizer_state(state.flow, state.optimizers):
        for kind in kinds:  # an optimizer makes its state in the first step only
            if (shape := shapes.get(f"optimizer.{kind}.{name}")) is not None:
                like = parameters[name].detach()
                kept[kind] = torch.empty_like(like) if shape else torch.zeros((), device=device)
    for name, tensor in tensors(state):
        distributed.scatter(tensor, found[name] if distributed.rank() == 0 else None)
    state.images, state.seconds = facts["images"], facts["seconds"]
    state.curve, state.steps = facts["curve"], facts["steps"]
    state.micro_batch = facts["micro_batch"]
    state.inherited = facts.get("inherited", 0)  # not in states of the first releases
    state.inherited_seconds = facts.get("inherited_seconds", 0.0)
    return state


def _newest(
    folder: Path, config: RunConfig, trunk: Trunk | None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and facts of a run's own newest state, or of one that a trunk has left it."""
    if found := load_state(folder, config.images):
        return found
    if trunk and (found := load_state(trunk.folder, shared_images(config))):
        facts = found[1]
        facts |= {"inherited": facts["images"], "inherited_seconds": facts["seconds"]}
    return found


def forget_states(folder: Path) -> None:
    """Remove the training states of a finished run."""
    remove_checkpoints(folder / "state")
