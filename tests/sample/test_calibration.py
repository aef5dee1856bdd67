"""Calibration: plans that are exact enough, kept, and found again only where they hold."""

import math
from dataclasses import replace

import pytest
import torch

from tarflow.config import NoiseConfig, RunConfig, SamplerConfig
from tarflow.errors import UserError
from tarflow.model.noise import generator, noisy, to_pixels
from tarflow.record import read_json, write_json
from tarflow.sample import calibration, judge
from tarflow.sample.block_metrics import convergence_ranking, initial_guessing
from tarflow.sample.calibration import (
    _Batch,
    calibrate,
    choose_plan,
    situation,
)
from tarflow.sample.inverse import invert
from tarflow.sample.judge import Judge
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
    assert plan.seconds(9) == 3 * sum(block.seconds for block in plan.measured)
    assert [each.sequential_seconds > 0 for each in plan.measured] == [True] * 3
    assert sum(each.crm for each in plan.measured) == pytest.approx(100)
    pixels = to_pixels(images)
    noised = noisy(pixels, NOISE, generator(1, "another draw"), flow.var.dtype)
    with torch.no_grad():
        latents, _ = flow(noised, labels)
    inverted = invert(flow, latents, labels, sampler, plan)
    exact = invert(flow, latents, labels, sampler)
    assert (inverted - exact).abs().max() <= plan.situation.tolerance
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


def test_a_plan_is_found_for_the_guidance_it_was_measured_with(random_flow, tmp_path):
    flow, labels = random_flow(classes=3), torch.tensor([0, 1])
    guided = SamplerConfig(guidance=1.0, temperature=0.9, denoise=0.5)
    changed = {"guidance": 3.0, "rule": "sigma-linear", "part": "scale", "annealed": False}
    changed |= {"guided_blocks": "top:2", "temperature": 0.8}
    path = tmp_path / "plan.json"
    measured = replace(
        named_plan("jacobi", 3, 0.1), situation=situation(flow, 2, labels, guided, 0.1)
    )
    keep_plan(path, measured)
    for field, value in changed.items():
        other = replace(guided, **{field: value})
        assert find_plan(path, situation(flow, 2, labels, other, 0.1)) is None, field
    undenoised = replace(guided, denoise=0.0)
    assert find_plan(path, situation(flow, 2, labels, undenoised, 0.1)) == measured


def test_plans_of_older_versions_are_dropped(random_flow, tmp_path):
    path = tmp_path / "plan.json"
    now = situation(random_flow(), 2, None, None, 0.1)
    plan = replace(named_plan("jacobi", 3, 0.1), situation=now)
    keep_plan(path, plan)
    (old,) = read_json(path)
    old["situation"]["guided_blocks"] = 0
    del old["situation"]["guidance"]
    write_json(path, [old])
    assert find_plan(path, now) is None
    keep_plan(path, plan)
    assert len(read_json(path)) == 1
    assert find_plan(path, now) == plan


def test_methods_are_tightened_until_a_margin_is_left(random_flow, monkeypatch):
    """By a lower tolerance, or, where attempts run out, by sequential decoding."""
    flow = random_flow(classes=3)
    loose = named_plan("jacobi", 3, 0.5).methods
    judged = Judge(flow, None, None, 4, rounding=0.0)
    assert not judged.accepts(judged.error(loose), 1e-4)
    strict = judged.tighten(loose, 1e-4)
    assert 0 < judged.error(strict) <= 1e-4 / judge.MARGIN
    assert [method.segments for method in strict] == [1, 1, 1]
    monkeypatch.setattr(judge, "ATTEMPTS", 0)
    methods = judged.tighten(loose, 1e-4)
    assert SEQUENTIAL in methods
    assert judged.error(methods) <= 1e-4 / judge.MARGIN


def test_images_are_judged_that_were_not_calibrated_on(random_flow, monkeypatch):
    """One draw of the judge is far off for any iteration, so that no block may iterate."""
    flow = random_flow()
    never = Judge(flow, None, None, 4, rounding=0.0)
    never.draws[0][1][0] += 1.0
    monkeypatch.setattr(Judge, "draws", never.draws)
    plan = calibrate(flow, some_images(flow), None, NOISE, tolerance=0.1)
    assert plan.methods == (SEQUENTIAL,) * 3


@pytest.mark.parametrize(("seconds", "stays"), [(0.95, False), (0.5, True)])
def test_a_method_stays_only_if_it_is_clearly_faster(random_flow, monkeypatch, seconds, stays):
    """The timings that chose it are not trusted: it is timed again, in turns."""
    flow = random_flow()
    time_method, time_sequential = _Batch.time_method, _Batch.time_sequential

    def timed(self, index, latents, method, limit=math.inf):
        _, iterations = time_method(self, index, latents, method)
        return (0.0 if limit < math.inf else seconds), iterations

    monkeypatch.setattr(_Batch, "time_method", timed)
    monkeypatch.setattr(_Batch, "time_sequential", lambda *given: (time_sequential(*given)[0], 1))
    plan = calibrate(flow, some_images(flow), None, NOISE)
    assert [bool(method.segments and method.sweeps) for method in plan.methods] == [stays] * 3
    assert [block.seconds for block in plan.measured] == [seconds if stays else 1] * 3


def test_bfloat16_is_not_calibrated_below_its_rounding(random_flow, monkeypatch, caplog):
    flow = random_flow(torch.float32)
    images = some_images(flow)
    with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.delattr(_Batch, "time_method")  # no iteration is tried
        plan = calibrate(flow, images, None, NOISE, tolerance=1e-3)
    assert plan.methods == (SEQUENTIAL,) * 3
    assert plan.error > 1e-3 / judge.MARGIN
    assert "rounding to bfloat16 changes pixels" in caplog.text
    assert "float32 keeps the tolerance" in caplog.text


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
    """Many batches pay; a kept plan serves any count; few images go token by token."""
    flow = random_flow(torch.float32, image_size=28, image_channels=1, patch=7, classes=10)
    model = replace(flow.config, classes=10)
    config = RunConfig(model=model, noise=NOISE, sampler=SamplerConfig(denoise=0))
    measured = []

    def counted(*arguments):
        measured.append(arguments)
        return calibrate(*arguments)

    monkeypatch.setattr(calibration, "calibrate", counted)
    path, enough = tmp_path / "plan.json", 2 * calibration.WORTHWHILE_BATCHES
    few = choose_plan("auto", flow, config, enough - 1, 2, path)
    assert few.methods == (SEQUENTIAL,) * 3
    assert not measured
    many = choose_plan("auto", flow, config, enough, 2, path)
    assert len(measured) == 1
    assert choose_plan("auto", flow, config, 7, 2, path) == many
    assert choose_plan("auto", flow, config, enough, 2, path) == many
    assert len(measured) == 1
    drawn = sample(flow, 6, config.sampler, NOISE, batch=2, plan=many)
    plain = sample(flow, 6, config.sampler, NOISE, batch=3)
    assert (drawn.images - plain.images).abs().max() < 3 * default_tolerance(NOISE)
    assert str(choose_plan("selective", flow, config, 7, 2)) == "sequential, 2 jacobi"
