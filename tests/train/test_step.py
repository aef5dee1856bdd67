"""Steps as CUDA graphs, where no device could capture: a graph runs its work when replayed."""

from dataclasses import replace

import pytest
import torch
from graphs import run_and_replay

from tarflow import cuda_graph, execution
from tarflow.config import DataConfig, ExecutionConfig, NoiseConfig, OptimConfig, RunConfig
from tarflow.execution import resolve_execution
from tarflow.model_config import ModelConfig
from tarflow.train.cuda_graph import make_train_step
from tarflow.train.state import new_state
from tarflow.train.step import Diverged

CPU = torch.device("cpu")
RUN = RunConfig(
    model=ModelConfig(patch=7, channels=16, head_dim=8, blocks=2, layers=1, classes=10),
    data=DataConfig(hash="none"),
    noise=NoiseConfig(std=0.1),
    images=16000,
    batch=16,
    precision="float64",
)


def make(config, state=None):
    """Return a state and its step, as `train` makes them."""
    chosen = resolve_execution(config)
    state = state or new_state(config, chosen)
    return state, make_train_step(state, config, chosen)


def steps(config, times=6):
    state, update = make(config)
    rng = torch.Generator().manual_seed(0)
    found = []
    for _ in range(times):
        pixels = torch.randint(256, (16, 1, 28, 28), generator=rng, dtype=torch.uint8)
        labels = torch.randint(10, (16,), generator=rng)
        loss, norm = update(pixels, labels)
        found += [loss.item(), norm.item()]
    return found, state


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"execution": ExecutionConfig(micro_batch=5)},
        {"optim": OptimConfig(optimizer="muon")},
        {"optim": OptimConfig(base_channels=4)},
        {"model": replace(RUN.model, volume_preserving=True)},
    ],
)
def test_replayed_steps_train_alike_and_from_the_same_memory(changes, monkeypatch):
    config = replace(RUN, **changes)
    expected, plain = steps(config)
    monkeypatch.setattr(execution, "supports_cuda_graphs", lambda _: True)
    monkeypatch.setattr(cuda_graph, "capture", run_and_replay)
    found, replayed = steps(config)
    assert found == pytest.approx(expected, rel=1e-6)  # rates are float32 there
    for ours, theirs in zip(replayed.flow.parameters(), plain.flow.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)
        assert ours.grad is not None
        if "execution" in changes:  # several passes add their gradients to zeros
            assert not ours.grad.any()


def test_graphs_read_new_values_and_are_captured_once_per_shape(monkeypatch):
    captured, total = [], torch.zeros(())

    def capture(work, *where):
        captured.append(work)
        return run_and_replay(work, *where)

    monkeypatch.setattr(cuda_graph, "capture", capture)

    def add(first, second):
        total.add_(first.sum() if second is None else (first * second).sum())

    graph = cuda_graph.CudaGraph(add, CPU)
    for count in (3, 3, 2, 3):
        graph(torch.full((count,), 2.0), torch.full((count,), 5.0))
    graph(torch.ones(3), None)
    assert total == 2 * 5 * (3 + 3 + 2 + 3) + 3
    assert len(captured) == 3


def test_a_replayed_step_that_diverges_changes_no_weight(monkeypatch):
    monkeypatch.setattr(execution, "supports_cuda_graphs", lambda _: True)
    monkeypatch.setattr(cuda_graph, "capture", run_and_replay)
    _, state = steps(RUN, times=2)
    _, update = make(RUN, state)
    state.flow.blocks[1].proj_out.bias.data.fill_(-1e5)
    before = [parameter.clone() for parameter in state.flow.parameters()]
    with pytest.raises(Diverged, match="block 1"):
        update(torch.zeros(16, 1, 28, 28, dtype=torch.uint8), torch.zeros(16, dtype=torch.int64))
    assert all(map(torch.equal, before, state.flow.parameters()))
