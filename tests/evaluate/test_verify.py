"""The check of a model passes on right ones and fails on every way of being wrong."""

import pytest
import torch
import torch.nn.functional as F

from tarflow.config import NoiseConfig
from tarflow.evaluate import verify as verifying
from tarflow.evaluate.verify import verify
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow

GAUSSIAN = NoiseConfig(std=0.1)


@pytest.fixture
def failures(random_flow):
    """Verify a random flow and name the checks it fails."""

    def fail(flow=None, **fields):
        flow = flow or random_flow(torch.float32, classes=3, **fields)
        rng = torch.Generator().manual_seed(0)
        config = flow.config
        shape = (3, config.image_channels, config.image_size, config.image_size)
        images = 0.5 * torch.randn(shape, generator=rng)
        checks = list(verify(flow, images, torch.tensor([2, 0, -1]), GAUSSIAN))
        assert len(checks) in (1, 2 * config.blocks + 4)
        return {check.name for check in checks if not check.passed}

    return fail


@pytest.mark.parametrize("jacobian", [verifying.JACOBIAN, 24])  # whole images; 3 of 16 tokens
@pytest.mark.parametrize("options", [{}, {"volume_preserving": True}, {"family": "starflow"}])
def test_right_flows_pass(failures, monkeypatch, jacobian, options):
    monkeypatch.setattr(verifying, "JACOBIAN", jacobian)
    assert failures(**options) == set()


def test_attention_that_sees_the_future_is_found(failures, monkeypatch):
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda query, key, value, *_, **__: attend(query, key, value),
    )
    assert failures() >= {f"block {index} causality" for index in range(3)}


@pytest.mark.parametrize("place", [0, 7, 14])
def test_a_leak_between_any_two_neighbours_is_found(failures, monkeypatch, place):
    forward = FlowBlock.forward

    def leaky(block, tokens, labels=None):
        mapped, logdet = forward(block, tokens, labels)
        ordered, source = block.permute(mapped).clone(), block.permute(tokens)
        ordered[:, place] += 1e-6 * source[:, place + 1].detach()  # autograd does not see it
        return block.permute(ordered), logdet

    monkeypatch.setattr(FlowBlock, "forward", leaky)
    assert failures() >= {f"block {index} causality" for index in range(3)}


@pytest.mark.parametrize("jacobian", [verifying.JACOBIAN, 24])
def test_a_wrong_log_determinant_of_a_block_is_found(failures, monkeypatch, jacobian):
    monkeypatch.setattr(verifying, "JACOBIAN", jacobian)
    forward = FlowBlock.forward

    def wrong(block, tokens, labels=None):
        mapped, logdet = forward(block, tokens, labels)
        return mapped, logdet * (1 + 1e-6 * block.backwards)

    monkeypatch.setattr(FlowBlock, "forward", wrong)
    failed = failures()
    assert "block 1 log-determinant" in failed
    assert not failed & {"block 0 log-determinant", "block 2 log-determinant"}


@pytest.mark.parametrize("jacobian", [verifying.JACOBIAN, 24])
def test_a_wrong_log_determinant_of_the_flow_is_found(failures, monkeypatch, jacobian):
    monkeypatch.setattr(verifying, "JACOBIAN", jacobian)
    forward = TarFlow.forward

    def wrong(flow, images, labels=None):
        latents, logdet = forward(flow, images, labels)
        return latents, logdet + 1e-2

    monkeypatch.setattr(TarFlow, "forward", wrong)
    assert failures() == {"flow log-determinant", "arithmetic of the likelihood"}


def test_a_wrong_inverse_is_found(failures, monkeypatch):
    invert = verifying.invert
    monkeypatch.setattr(verifying, "invert", lambda *arguments: invert(*arguments) + 0.011)
    assert failures() == {"round trip"}


def test_lost_precision_is_found(failures, random_flow):
    """Weights of this size leave nothing of float32's digits."""
    flow = random_flow(torch.float32, classes=3)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight.mul_(40)
    assert failures(flow) & {"arithmetic of the likelihood", "round trip"}
