"""The state of a run in training: made from the config, saved, found again."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tarflow import distributed, optim
from tarflow.config import RunConfig
from tarflow.device import master_dtype
from tarflow.model import FlowBlock, Layer, TarFlow, initialise
from tarflow.state import StateWriter, load_state, remove_states


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


def new_state(config: RunConfig, device: torch.device) -> TrainState:
    """Return the state before the first step, a function of the config alone."""
    flow = TarFlow(config.model)
    initialise(flow, config.seed)
    flow = flow.to(device, master_dtype(config)).train()
    average = {name: tensor.detach().clone() for name, tensor in flow.state_dict().items()}
    for module in flow.modules():
        if isinstance(module, FlowBlock):
            module.checkpoint_activations = config.execution.checkpoint_activations
        elif isinstance(module, Layer) and config.execution.compile:
            module.compile()  # all are alike, so the code of one serves all
    return TrainState(flow, average, optim.make_optimizers(flow, config.optim))


def save(state: TrainState, writer: StateWriter) -> None:
    """Begin to write the full training state (first worker only)."""
    if distributed.rank():
        return
    tensors = {f"flow.{name}": tensor for name, tensor in state.flow.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.items()}
    for name, kept in optim.optimizer_state(state.flow, state.optimizers):
        tensors |= {f"optimizer.{kind}.{name}": value for kind, value in kept.items()}
    tensors["losses"] = state.losses
    facts = {"seconds": state.seconds, "curve": list(state.curve), "steps": state.steps}
    facts["micro_batch"] = state.micro_batch
    writer.save(state.images, tensors, facts)


def restore(state: TrainState, folder: Path, config: RunConfig) -> TrainState:
    """Fill a fresh state from the newest sound one on disk, if there is one."""
    loaded = load_state(folder)
    if loaded is None or loaded[1]["images"] > config.images:
        return state
    tensors, facts = loaded
    flow = state.flow.state_dict()
    state.flow.load_state_dict({name: tensors[f"flow.{name}"] for name in flow})
    for name in state.average:
        state.average[name].copy_(tensors[f"average.{name}"])
    device = state.flow.var.device
    kinds = {name.split(".")[1] for name in tensors if name.startswith("optimizer.")}
    for name, kept in optim.optimizer_state(state.flow, state.optimizers):
        for kind in kinds:
            if (key := f"optimizer.{kind}.{name}") in tensors:
                kept[kind] = tensors[key].to(device)
    state.images, state.seconds = facts["images"], facts["seconds"]
    state.curve, state.losses, state.steps = facts["curve"], tensors["losses"], facts["steps"]
    state.micro_batch = facts["micro_batch"]
    return state


def forget_states(folder: Path) -> None:
    """Remove the training states of a finished run."""
    remove_states(folder / "state")
