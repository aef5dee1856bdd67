"""One pass over all values updates as PyTorch does, parameter by parameter."""

from dataclasses import replace

import pytest
import torch

from tarflow.config import DataConfig, ExecutionConfig, ModelConfig, OptimConfig, RunConfig
from tarflow.cpu.kernels import kernels
from tarflow.train.checkpoint import StateWriter
from tarflow.train.state import new_state, restore, save, tensors
from tarflow.train.step import TrainStep
from tarflow.train.update import FusedUpdate, Update, make_update

CPU = torch.device("cpu")
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


def updated(make, config, times, state=None, start=0):
    """Update a state with gradients drawn for each step, some of them to be clipped."""
    state = state or new_state(config, CPU)
    update = make(state, config)
    norms = []
    for number in range(start, start + times):
        rng = torch.Generator().manual_seed(number)
        for parameter in state.flow.parameters():
            values = torch.randn(parameter.shape, generator=rng) * 10.0 ** (number % 4 - 3)
            parameter.grad = values.to(parameter)
        update.measure()
        norms.append(update.norm.item())
        update(1e-2 / (number + 1), 0.9)
        assert all(parameter.grad is None for parameter in state.flow.parameters())
    return norms, state


def contents(state):
    return {name: tensor.detach().clone() for name, tensor in tensors(state)}


def test_a_fused_update_is_as_near_to_exact_arithmetic_as_a_plain_one():
    exact_norms, exact = updated(Update, replace(RUN, precision="float64"), 12)
    plain_norms, plain = updated(Update, RUN, 12)
    norms, found = updated(make_update, RUN, 12)
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
    state = new_state(RUN, CPU)
    update = make_update(state, RUN)
    for parameter in state.flow.parameters():
        parameter.grad = torch.ones_like(parameter)
    update.measure()
    update(1e-2, 0.0)
    for name, parameter in state.flow.named_parameters():
        assert torch.equal(state.average[name], parameter)


@pytest.mark.parametrize(("first", "then"), [(make_update, Update), (Update, make_update)])
def test_either_goes_on_from_a_saved_state_of_the_other(first, then, tmp_path):
    _, through = updated(first, RUN, 5)
    _, before = updated(first, RUN, 3)
    before.images = 48
    with StateWriter(tmp_path) as writer:
        save(before, writer)
    resumed = restore(new_state(RUN, CPU), tmp_path, RUN)
    assert resumed.images == 48
    _, found = updated(then, RUN, 2, resumed, start=3)
    expected, found = contents(through), contents(found)
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        assert torch.allclose(found[name], truth, rtol=1e-5, atol=1e-7), name


def test_no_number_depends_on_the_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            norms, state = updated(make_update, RUN, 3)
            found.append((norms, contents(state)))
    finally:
        torch.set_num_threads(before)
    for norms, state in found[1:]:
        assert norms == found[0][0]
        assert all(torch.equal(state[name], each) for name, each in found[0][1].items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(value):
    state = new_state(RUN, CPU)
    update = make_update(state, RUN)
    for parameter in state.flow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.flow.blocks[1].proj_out.bias.grad[3] = value
    update.measure()
    assert str(update.norm.item()) == str(torch.tensor(value).item())  # 1e30 squared is no float32


def test_what_is_fused_follows_the_config():
    def chosen(**changes):
        config = replace(RUN, **changes)
        state = new_state(config, CPU)
        return type(TrainStep(state, config).update)

    assert chosen() is FusedUpdate
    assert chosen(precision="bfloat16") is FusedUpdate
    assert chosen(precision="float64") is Update
    assert chosen(execution=ExecutionConfig(fused=False)) is Update
    assert chosen(optim=OptimConfig(optimizer="muon")) is Update
