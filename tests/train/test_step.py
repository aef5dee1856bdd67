"""Recorded steps where no device could record: a recording does its work when replayed."""

from dataclasses import replace

import pytest
import torch
from graphs import run_and_replay

from tarflow import cuda_graph, distributed
from tarflow.config import (
    DataConfig,
    ExecutionConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
)
from tarflow.train.state import new_state
from tarflow.train.step import Diverged, TrainStep

CPU = torch.device("cpu")
RUN = RunConfig(
    model=ModelConfig(patch=7, channels=16, head_dim=8, blocks=2, layers=1, classes=10),
    data=DataConfig(hash="none"),
    noise=NoiseConfig(std=0.1),
    images=16000,
    batch=16,
    precision="float64",
)


def steps(config, times=6):
    state = new_state(config, CPU)
    update = TrainStep(state, config)
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
def test_recorded_steps_train_alike_and_from_the_same_memory(changes, monkeypatch):
    config = replace(RUN, **changes)
    expected, plain = steps(config)
    monkeypatch.setattr(distributed, "supports_cuda_graphs", lambda _: True)
    monkeypatch.setattr(cuda_graph, "capture", run_and_replay)
    found, recorded = steps(config)
    assert found == pytest.approx(expected, rel=1e-6)  # rates are float32 there
    for ours, theirs in zip(recorded.flow.parameters(), plain.flow.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)
        assert ours.grad is not None
        assert not ours.grad.any()


def test_recordings_read_new_values_and_are_made_once_per_shape(monkeypatch):
    made, total = [], torch.zeros(())

    def capture(work, *where):
        made.append(work)
        return run_and_replay(work, *where)

    monkeypatch.setattr(cuda_graph, "capture", capture)

    def add(first, second):
        total.add_(first.sum() if second is None else (first * second).sum())

    recorder = cuda_graph.CudaGraph(add, CPU)
    for count in (3, 3, 2, 3):
        recorder(torch.full((count,), 2.0), torch.full((count,), 5.0))
    recorder(torch.ones(3), None)
    assert total == 2 * 5 * (3 + 3 + 2 + 3) + 3
    assert len(made) == 3


def test_a_recorded_step_that_diverges_changes_no_weight(monkeypatch):
    monkeypatch.setattr(distributed, "supports_cuda_graphs", lambda _: True)
    monkeypatch.setattr(cuda_graph, "capture", run_and_replay)
    _, state = steps(RUN, times=2)
    update = TrainStep(state, RUN)
    state.flow.blocks[1].proj_out.bias.data.fill_(-1e5)
    before = [parameter.clone() for parameter in state.flow.parameters()]
    with pytest.raises(Diverged, match="block 1"):
        update(torch.zeros(16, 1, 28, 28, dtype=torch.uint8), torch.zeros(16, dtype=torch.int64))
    assert all(map(torch.equal, before, state.flow.parameters()))
