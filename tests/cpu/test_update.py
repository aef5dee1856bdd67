"""One pass over all values updates as PyTorch does, parameter by parameter."""

from dataclasses import replace

import pytest
import torch

from tarflow.config import DataConfig, ExecutionConfig, OptimConfig, RunConfig
from tarflow.cpu.kernels import kernels
from tarflow.cpu.update import OnePassUpdate
from tarflow.execution import resolve_execution
from tarflow.model_config import ModelConfig
from tarflow.train.checkpoint import CheckpointWriter, restore, save
from tarflow.train.optim import Update
from tarflow.train.state import new_state
from tarflow.train.step import TrainStep

PLAIN = ExecutionConfig(fused=False)
RUN = RunConfig(
    model=ModelConfig(patch=7, channels=24, head_dim=8, blocks=2, layers=1),
    data=DataConfig(hash="none"),
    images=16000,
    batch=16,
    precision="float32",
    optim=OptimConfig(base_channels=8, weight_decay=0.1),  # two groups
)

pytestmark = pytest.mark.skipif(
    kernels(torch.float32) is None, reason="there is no g++ on this machine"
)


def fresh(config=RUN):
    return new_state(config, resolve_execution(config))


def made(state, config=RUN):
    """Return the step of a run, whose update is what is tested."""
    return TrainStep(state, config, resolve_execution(config))


def updated(config, times, state=None, start=0):
    """Update a state with gradients drawn for each step, some of them to be clipped."""
    state = state or fresh(config)
    step = made(state, config)
    norms = []
    for number in range(start, start + times):
        rng = torch.Generator().manual_seed(number)
        for parameter in state.flow.parameters():
            values = torch.randn(parameter.shape, generator=rng) * 10.0 ** (number % 4 - 3)
            parameter.grad = values.to(parameter)
        norms.append(step.update.gradient_norm().item())
        step.update(1e-2 / (number + 1), 0.9)
        step.clear_gradients()
        assert all(parameter.grad is None for parameter in state.flow.parameters())
    return norms, state


def contents(state):
    return {name: tensor.detach().clone() for name, tensor in state.tensors()}


def test_a_fused_update_is_as_near_to_exact_arithmetic_as_a_plain_one():
    exact_norms, exact = updated(replace(RUN, precision="float64"), 12)
    plain_norms, plain = updated(replace(RUN, execution=PLAIN), 12)
    norms, found = updated(RUN, 12)
    assert any(norm > RUN.optim.clip for norm in norms)
    assert any(norm < RUN.optim.clip for norm in norms)
    assert norms == pytest.approx(exact_norms, rel=1e-6)
    assert plain_norms == pytest.approx(norms, rel=1e-5)
    expected, usual, found = contents(exact), contents(plain), contents(found)
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        error, plain_error = ((each[name] - truth).norm() for each in (found, usual))
        assert error <= 1.5 * plain_error + 1e-7 * truth.norm(), name


def test_without_a_width_the_average_is_the_weights():
    state = fresh()
    update = made(state).update
    for parameter in state.flow.parameters():
        parameter.grad = torch.ones_like(parameter)
    update.gradient_norm()
    update(1e-2, 0.0)
    for name, parameter in state.flow.named_parameters():
        assert torch.equal(state.ema[name], parameter)


@pytest.mark.parametrize("fused", [True, False])
def test_either_resumes_from_a_checkpoint_of_the_other(fused, tmp_path):
    first = replace(RUN, execution=ExecutionConfig(fused=fused))
    then = replace(RUN, execution=ExecutionConfig(fused=not fused))
    _, through = updated(first, 5)
    _, before = updated(first, 3)
    before.images = 48
    with CheckpointWriter(tmp_path) as writer:
        save(before, writer)
    resumed = fresh(then)
    restore(resumed, tmp_path, RUN)
    assert resumed.images == 48
    _, found = updated(then, 2, resumed, start=3)
    expected, found = contents(through), contents(found)
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert torch.allclose(found[name], truth, rtol=1e-5, atol=1e-7), name


def test_no_number_depends_on_the_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            norms, state = updated(RUN, 3)
            found.append((norms, contents(state)))
    finally:
        torch.set_num_threads(before)
    for norms, state in found[1:]:
        assert norms == found[0][0]
        assert all(torch.equal(state[name], each) for name, each in found[0][1].items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(value):
    state = fresh()
    update = made(state).update
    for parameter in state.flow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.flow.blocks[1].proj_out.bias.grad[3] = value
    assert str(update.gradient_norm().item()) == str(
        torch.tensor(value).item()
    )  # 1e30 squared is no float32


def test_what_is_fused_follows_the_config():
    def chosen(**changes):
        config = replace(RUN, **changes)
        return type(made(fresh(config), config).update)

    assert chosen() is OnePassUpdate
    assert chosen(precision="bfloat16") is OnePassUpdate
    assert chosen(precision="float64") is Update
    assert chosen(execution=ExecutionConfig(fused=False)) is Update
    assert chosen(optim=OptimConfig(optimizer="muon")) is Update
