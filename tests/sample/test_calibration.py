"""Calibration: plans that are exact enough, kept, and found again only where they hold."""

from dataclasses import replace

import pytest
import torch

from tarflow.config import NoiseConfig, RunConfig, SamplerConfig
from tarflow.errors import UserError
from tarflow.model.noise import generator, noisy, to_pixels
from tarflow.sample import calibration
from tarflow.sample.block_metrics import convergence_ranking, initial_guessing
from tarflow.sample.calibration import (
    calibrate,
    choose_plan,
    situation,
)
from tarflow.sample.inverse import invert
from tarflow.sample.plan import (
    SEQUENTIAL,
    Method,
    default_tolerance,
    find_plan,
    keep_plan,
    named_plan,
)
from tarflow.sample.sampling import sample

NOISE = NoiseConfig(std=0.1)


def some_images(flow, count=4):
    rng = torch.Generator().manual_seed(1)
    config = flow.config
    shape = (count, config.image_channels, config.image_size, config.image_size)
    return 2 * torch.rand(shape, generator=rng, dtype=flow.var.dtype) - 1


@pytest.mark.parametrize("sampler", [None, SamplerConfig(guidance=1.0, guided_blocks="top:2")])
def test_the_plan_inverts_within_its_tolerance(random_flow, tmp_path, sampler):
    flow = random_flow(classes=3)
    images, labels = some_images(flow), torch.tensor([0, 1, 2, 0])
    plan = calibrate(flow, images, labels, NOISE, sampler)
    assert plan.error <= plan.situation.tolerance == default_tolerance(NOISE)
    assert plan.situation.batch == 4
    assert plan.situation.guided_blocks == (2 if sampler else 0)
    assert [each.sequential_seconds > 0 for each in plan.measured] == [True] * 3
    assert sum(each.crm for each in plan.measured) == pytest.approx(100)
    pixels = to_pixels(images)
    noised = noisy(pixels, NOISE, generator(1, "another draw"), flow.var.dtype)
    with torch.no_grad():
        latents, _ = flow(noised, labels)
    inverted = invert(flow, latents, labels, sampler, plan)
    exact = invert(flow, latents, labels, sampler)
    assert (inverted - exact).abs().max() < 3 * plan.situation.tolerance
    if sampler is None:
        torch.testing.assert_close(exact, noised)
    path = tmp_path / "plan.json"
    keep_plan(path, plan)
    keep_plan(path, plan)
    assert find_plan(path, plan.situation) == plan
    now = situation(flow, 4, labels, sampler, default_tolerance(NOISE))
    assert find_plan(path, now) == plan
    assert find_plan(path, replace(now, batch=5)) is None
    assert find_plan(path, replace(now, tolerance=0.02)) is None


def test_blocks_that_are_not_exact_enough_go_token_by_token(random_flow, monkeypatch):
    flow = random_flow(classes=3)
    monkeypatch.setattr(calibration, "TOLERANCE_DIVISORS", (1e-3,))  # a thousand times too loose
    plan = calibrate(flow, some_images(flow), None, NOISE, tolerance=1e-4)
    assert SEQUENTIAL in plan.methods
    assert plan.error <= 1e-4


def test_the_metrics_of_blocks_with_one_weight_alone(random_flow):
    """Without hidden states a block is affine with constants: both metrics in closed form."""
    flow = random_flow(channels=16)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight.zero_()
            block.proj_out.weight[8, 0] = 1.0  # shift of one value
            block.proj_out.bias.zero_()
            block.proj_in.weight.zero_()
            block.proj_in.bias.zero_()
            block.pos_embed.zero_()
            for layer in block.attn_blocks:
                layer.attention.proj.weight.zero_()
                layer.attention.proj.bias.zero_()
                layer.mlp.main[2].weight.zero_()
                layer.mlp.main[2].bias.zero_()
        images = some_images(flow)
        assert convergence_ranking(flow, images) == pytest.approx([100 / 3] * 3)
        from_latents, from_zeros = initial_guessing(flow, images)[0]
    assert from_latents == pytest.approx(0, abs=1e-12)
    assert from_zeros == pytest.approx(0, abs=1e-12)


def test_default_tolerance_of_uniform_noise_is_half_a_grey_level():
    assert default_tolerance(NoiseConfig(type="uniform")) == pytest.approx(1 / 255)


def test_names_of_solvers_are_checked():
    with pytest.raises(UserError, match="segmented:8"):
        named_plan("jacoby", 4, 0.1)
    with pytest.raises(UserError):
        Method(segments=-1)


def test_a_plan_is_measured_when_it_pays_and_reused(random_flow, tmp_path, monkeypatch):
    """Eight batches pay; a kept plan serves any count; few images go token by token."""
    flow = random_flow(torch.float32, image_size=28, image_channels=1, patch=7, classes=10)
    model = replace(flow.config, classes=10)
    config = RunConfig(model=model, noise=NOISE, sampler=SamplerConfig(denoise=0))
    measured = []

    def counted(*arguments):
        measured.append(arguments)
        return calibrate(*arguments)

    monkeypatch.setattr(calibration, "calibrate", counted)
    path = tmp_path / "plan.json"
    few = choose_plan("auto", flow, config, 7, 2, path)
    assert few.methods == (SEQUENTIAL,) * 3
    assert not measured
    many = choose_plan("auto", flow, config, 16, 2, path)
    assert len(measured) == 1
    assert choose_plan("auto", flow, config, 7, 2, path) == many
    assert choose_plan("auto", flow, config, 16, 2, path) == many
    assert len(measured) == 1
    drawn = sample(flow, 6, config.sampler, NOISE, batch=2, plan=many)
    plain = sample(flow, 6, config.sampler, NOISE, batch=3)
    assert (drawn.images - plain.images).abs().max() < 3 * default_tolerance(NOISE)
    assert str(choose_plan("selective", flow, config, 7, 2)) == "sequential, 2 jacobi"
