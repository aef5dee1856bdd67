"""Which parameter learns at which rate, and that the rule does what it is for."""

from dataclasses import replace

import pytest
import torch

from tarflow.config import OptimConfig
from tarflow.errors import UserError
from tarflow.model.flow import TarFlow, initialise
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.model_config import ModelConfig
from tarflow.train.optim import make_optimizers

MODEL = ModelConfig(image_size=8, patch=2, channels=64, head_dim=8, blocks=2, layers=2, classes=3)
HIDDEN = ("qkv.weight", "attention.proj.weight", "main.0.weight", "main.2.weight")


def flow_of(channels):
    flow = TarFlow(replace(MODEL, channels=channels)).double()
    initialise(flow, seed=1)
    return flow


def settings(flow, optim):
    """Return factor and decay of every parameter, each of which must be in one group."""
    names = {parameter: name for name, parameter in flow.named_parameters()}
    found = {}
    for optimizer in make_optimizers(flow, optim):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[parameter] not in found
                found[names[parameter]] = (group["factor"], group["weight_decay"])
    assert found.keys() == set(names.values())
    return found


def test_all_parameters_share_one_rate_unless_a_base_is_given():
    flow = flow_of(64)
    for optimizer in ("adamw", "muon"):
        found = settings(flow, OptimConfig(optimizer=optimizer))
        assert set(found.values()) == {(1.0, 1e-4)}
    (adamw,) = make_optimizers(flow, OptimConfig())
    (group,) = adamw.param_groups
    assert group["params"] == list(flow.parameters())


@pytest.mark.parametrize(("optimizer", "hidden"), [("adamw", 0.25), ("muon", 0.5)])
def test_rates_of_matrices_that_take_hidden_states_follow_the_width(optimizer, hidden):
    optim = OptimConfig(optimizer=optimizer, base_channels=16)
    for name, (factor, decay) in settings(flow_of(64), optim).items():
        expected = 1.0
        if name.endswith(HIDDEN):
            expected = hidden
        elif name.endswith("proj_out.weight"):
            expected = 0.25
        assert factor == expected, name
        assert factor * decay == pytest.approx(1e-4), name


def moved(channels, base):
    """Return how far a few steps move the hidden states and the outputs of a block (rms)."""
    flow = flow_of(channels)
    optim = OptimConfig(lr=2e-3, base_channels=base)
    (optimizer,) = make_optimizers(flow, optim)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    seen = []
    block = flow.blocks[0]
    block.proj_out.register_forward_hook(lambda _, inputs, out: seen.append((*inputs, out)))
    for _ in range(4):
        optimizer.zero_grad()
        negative_log_likelihood(*flow(images)).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * group["factor"]
        optimizer.step()
    pairs = zip(seen[0], seen[-1], strict=True)
    return [(after - before).detach().square().mean().sqrt().item() for before, after in pairs]


def test_steps_of_a_wide_flow_are_as_large_as_those_of_a_narrow_one():
    ruled = [wide / narrow for wide, narrow in zip(moved(512, 16), moved(16, 16), strict=True)]
    plain = [wide / narrow for wide, narrow in zip(moved(512, 0), moved(16, 0), strict=True)]
    assert max(ruled) < 2
    assert min(plain) > 3 * max(ruled)


def test_a_base_is_a_width():
    with pytest.raises(UserError, match="base_channels is -1"):
        OptimConfig(base_channels=-1)
