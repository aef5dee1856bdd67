"""The flow against its mathematics, in float64 on small flows with random weights.

Legend: `B` batch, `T` tokens per image, `D` values per token.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tarflow import cost
from tarflow.config import SamplerConfig
from tarflow.errors import UserError
from tarflow.model.flow import TarFlow, initialise
from tarflow.model.patches import patchify, unpatchify
from tarflow.model_config import STARFLOW, ModelConfig
from tarflow.sample.inverse import invert

shapes = st.fixed_dictionaries(
    {
        "patch": st.sampled_from([2, 4, 8]),  # 8 leaves one token
        "image_channels": st.integers(1, 3),
        "classes": st.sampled_from([0, 3]),
        "blocks": st.integers(1, 4),
        "layers": st.integers(1, 2),
        "volume_preserving": st.booleans(),
        "family": st.sampled_from(["tarflow", "starflow"]),
        "seed": st.integers(0, 1000),
    }
)


def some_images(flow, count=3):
    c = flow.config
    rng = torch.Generator().manual_seed(1)
    shape = (count, c.image_channels, c.image_size, c.image_size)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(flow.var.dtype)


def some_labels(flow):
    return torch.tensor([0, 2, -1]) if flow.config.classes else None


def some_vectors(flow, count=3):
    rng = torch.Generator().manual_seed(2)
    shape = count, flow.config.condition_tokens, flow.config.condition_dim
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(flow.var.dtype)


@settings(max_examples=25, deadline=None)
@given(shape=shapes)
def test_forward_and_inverse_undo_each_other(random_flow, shape):
    flow = random_flow(**shape)
    images, labels = some_images(flow), some_labels(flow)
    latents, _ = flow(images, labels)
    before = latents.detach().clone()
    torch.testing.assert_close(invert(flow, latents, labels), images, atol=1e-7, rtol=1e-7)
    assert torch.equal(latents, before)
    noise = patchify(images, flow.config)
    back = invert(flow, noise, labels)
    assume(bool(back.isfinite().all()))  # log-scales grow with images: some noise overflows
    again, _ = flow(back, labels)
    torch.testing.assert_close(again, noise, atol=1e-7, rtol=1e-7)


@settings(max_examples=8, deadline=None)
@given(shape=shapes)
def test_log_determinant_is_that_of_the_jacobian(random_flow, shape):
    flow = random_flow(**shape)
    images, labels = some_images(flow), some_labels(flow)
    _, logdet = flow(images, labels)
    label = None if labels is None else labels[1:2]
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, label)[0], images[1:2])
    dense = torch.linalg.slogdet(jacobian.reshape(flow.config.dims, -1)).logabsdet
    torch.testing.assert_close(logdet[1], dense / flow.config.dims, atol=1e-9, rtol=0)


OPTIONS = {  # each option of STARFLOW alone
    **{name: {name: value} for name, value in STARFLOW.items()},
    "layers": {"layers": (1, 3, 2)},
    "vectors for all": {"condition_tokens": 3, "condition_dim": 5, "head_dim": 16},
    "vectors for the top": {
        "condition_tokens": 3,
        "condition_dim": 5,
        "head_dim": 16,
        "family": "starflow",
        "layers": (1, 1, 3),
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_alone_is_an_exact_invertible_flow(random_flow, options):
    flow = random_flow(**options)
    images = 0.3 * some_images(flow)  # three layers of random weights amplify rounding
    condition = some_vectors(flow) if flow.config.condition_tokens else None
    latents, logdet = flow(images, condition)
    torch.testing.assert_close(invert(flow, latents, condition), images, atol=1e-7, rtol=1e-7)
    one = None if condition is None else condition[1:2]
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, one)[0], images[1:2])
    dense = torch.linalg.slogdet(jacobian.reshape(flow.config.dims, -1)).logabsdet
    torch.testing.assert_close(logdet[1], dense / flow.config.dims, atol=1e-9, rtol=0)
    config = flow.config
    assert sum(p.numel() for p in flow.parameters()) == cost.params_total(config)
    matrices = [m.weight for m in flow.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(weight.numel() for weight in matrices) == cost.params(config)


def test_vectors_condition_the_top_block_and_are_dropped_to_the_null_condition(random_flow):
    flow = random_flow(**OPTIONS["vectors for the top"])
    images, vectors = some_images(flow), some_vectors(flow)
    dropped = flow.drop(vectors, torch.tensor([True, False, False]))
    none, given, mixed = (flow.trace(images, each) for each in (None, vectors, dropped))
    for plain, other in zip(none[:-1], given[:-1], strict=True):
        assert torch.equal(plain[0], other[0])
    assert (none[-1][0] - given[-1][0]).abs().amax((1, 2)).gt(1e-3).all()
    torch.testing.assert_close(mixed[-1][0][0], none[-1][0][0])
    torch.testing.assert_close(mixed[-1][0][1:], given[-1][0][1:])
    latents, guided = none[-1][0], SamplerConfig(guidance=2.0, rule="gaussian-score")
    torch.testing.assert_close(invert(flow, latents, None, guided), images, atol=1e-7, rtol=1e-7)
    assert (invert(flow, latents, vectors, guided) - images).abs().max() > 1e-3
    with pytest.raises(UserError, match="condition of an image is 2 x 5: the model takes 3 x 5"):
        invert(flow, latents, vectors[:, :2])


@pytest.mark.parametrize("index", [0, 1])
def test_blocks_are_causal_and_keep_their_first_token(random_flow, index):
    block = random_flow().blocks[index]
    tokens = torch.randn(2, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    order = list(range(16)) if index == 0 else list(range(16))[::-1]
    outputs, _ = block(tokens)
    assert torch.equal(outputs[:, order[0]], tokens[:, order[0]])
    for place, token in enumerate(order):
        moved = tokens.clone()
        moved[:, token] += 1
        changed = (block(moved)[0] - outputs).abs().amax((0, 2))
        assert changed[order[:place]].eq(0).all() if place else True
        assert changed[order[place:]].gt(1e-6).all()


def test_patches_are_channel_major_in_raster_order():
    image = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    model = ModelConfig(image_size=4, image_channels=2, patch=2)
    tokens = patchify(image, model)
    assert tokens[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(unpatchify(tokens, model), image)
    last = replace(model, token_order="channel-last")
    assert patchify(image, last)[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]
    assert torch.equal(unpatchify(patchify(image, last), last), image)


def test_untrained_flow_without_output_bias_is_the_identity():
    flow = TarFlow(ModelConfig(image_size=8, patch=2, channels=16, head_dim=8)).double()
    initialise(flow, 0)
    images = some_images(flow)
    biased, _ = flow(images)
    assert not torch.allclose(
        biased, patchify(images, flow.config)
    )  # the published start keeps the bias
    for block in flow.blocks:
        torch.nn.init.zeros_(block.proj_out.bias)
    latents, logdet = flow(images)
    loss = 0.5 * latents.square().mean() - logdet.mean()
    torch.testing.assert_close(loss, 0.5 * images.square().mean())


def test_weights_depend_on_the_seed_alone():
    config = ModelConfig(image_size=8, channels=16, head_dim=8, classes=2)
    flows = []
    for seed, elsewhere in [(3, 0), (3, 1), (4, 0)]:
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)
            flows.append(TarFlow(config))
            before = torch.get_rng_state()
            initialise(flows[-1], seed)
            assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (flow.state_dict() for flow in flows)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["blocks.0.pos_embed"], other["blocks.0.pos_embed"])
    tables = torch.cat([first[f"blocks.{i}.pos_embed"].flatten() for i in range(4)])
    assert tables.std().item() == pytest.approx(0.01, rel=0.1)
    weight = first["blocks.0.attn_blocks.0.mlp.main.2.weight"]  # 64 inputs: within 1 / 8
    assert 0.12 < weight.abs().max() <= 0.125
    assert not first["blocks.0.proj_out.weight"].any()
    assert first["blocks.0.proj_out.bias"].any()


def test_dropped_label_is_the_mean_class(random_flow):
    flow = random_flow(classes=3)
    images = some_images(flow)
    none, _ = flow(images, None)
    dropped, _ = flow(images, torch.full((3,), -1))
    torch.testing.assert_close(none, dropped)
    given, _ = flow(images, torch.tensor([2, 2, -1]))
    assert (given[:2] - none[:2]).abs().amax((1, 2)).gt(1e-3).all()
    torch.testing.assert_close(given[2], none[2])


def test_unknown_labels_are_refused(random_flow):
    flow = random_flow(classes=3)
    latents = patchify(some_images(flow), flow.config)
    for label in (3, -2):
        with pytest.raises(UserError, match=f"label {label} is unknown: labels are 0 to 2"):
            invert(flow, latents, torch.tensor([0, label, 1]))
    with pytest.raises(UserError, match="the model has no classes"):
        invert(random_flow(), latents, torch.tensor([0, 0, 0]))


def test_trace_names_the_block_that_is_not_finite(random_flow):
    flow = random_flow()
    images = some_images(flow)
    latents, logdet = flow(images)
    steps = flow.trace(images)
    torch.testing.assert_close(steps[-1][0], latents)
    torch.testing.assert_close(sum(each for _, each in steps), logdet)
    with torch.no_grad():
        flow.blocks[1].proj_out.bias[0] = math.nan
    finite = [bool(each.isfinite().all()) for _, each in flow.trace(images)]
    assert finite == [True, False, False]


def test_volume_preserving_flow_learns_the_variance_of_its_latents(random_flow):
    flow = random_flow(volume_preserving=True)
    images = some_images(flow)
    before = flow.var.clone()
    latents, logdet = flow(images)
    assert not logdet.any()
    flow.update_prior_variance(latents.square().mean(0))
    expected = 0.9 * before + 0.1 * latents.detach().square().mean(0)
    torch.testing.assert_close(flow.var, expected)
    normal = torch.distributions.Normal(0.0, flow.var.sqrt())
    torch.testing.assert_close(flow.log_prior(latents), normal.log_prob(latents).mean((1, 2)))


def test_bfloat16_keeps_the_log_determinant_in_float32(random_flow):
    flow = random_flow(torch.float32)
    images = 0.5 * some_images(flow, count=8)
    exact, exact_logdet = flow(images)
    with torch.autocast("cpu", torch.bfloat16):
        latents, logdet = flow(images)
        restored = invert(flow, latents)
    assert logdet.dtype == latents.dtype == torch.float32
    assert (logdet - exact_logdet).abs().max() < 5e-3
    assert (latents - exact).abs().mean() < 0.02 * exact.abs().mean()
    assert (restored - images).abs().mean() < 0.02  # solver and forward round alike
    assert len(logdet.unique()) == len(logdet)  # not rounded to the bfloat16 grid


def test_bfloat16_gradients_point_where_exact_ones_do(random_flow):
    flow = random_flow(torch.float32, layers=2)
    images = 0.5 * some_images(flow, count=16)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            latents, logdet = flow(images)
        loss = 0.5 * latents.square().mean() - logdet.mean()
        found = torch.autograd.grad(loss, list(flow.parameters()))
        gradients.append(torch.cat([each.flatten() for each in found]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.03 * exact.norm()
    assert not torch.equal(rounded, exact)


def test_guidance_without_another_branch_changes_nothing(random_flow):
    flow = random_flow(classes=3)
    latents = patchify(some_images(flow), flow.config)
    guided = SamplerConfig(guidance=2.0)
    torch.testing.assert_close(invert(flow, latents, None, guided), invert(flow, latents))
    labels = torch.tensor([-1, 1, -1])
    mixed, plain = invert(flow, latents, labels, guided), invert(flow, latents, labels)
    torch.testing.assert_close(mixed[[0, 2]], plain[[0, 2]])
    assert (mixed[1] - plain[1]).abs().max() > 1e-3


@pytest.mark.parametrize("volume_preserving", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
def test_cost_counts_the_parameters_of_the_model(classes, volume_preserving):
    config = ModelConfig(
        image_size=256,
        image_channels=3,
        classes=classes,
        patch=8,
        channels=768,
        blocks=8,
        layers=8,
        volume_preserving=volume_preserving,
    )
    with torch.device("meta"):
        flow = TarFlow(config)
    assert sum(p.numel() for p in flow.parameters()) == cost.params_total(config)
    matrices = [m.weight for m in flow.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(weight.numel() for weight in matrices) == cost.params(config)
    if classes and not volume_preserving:
        assert cost.params_total(config) == 463_481_856  # AFHQ 256 as published


@pytest.mark.filterwarnings("ignore:.*lookup_backend.*")
@pytest.mark.parametrize("options", [{"classes": 3, "layers": 2}, OPTIONS["vectors for the top"]])
def test_cost_counts_the_flops_of_the_model(random_flow, options):
    flow = random_flow(torch.float32, **options)
    config = flow.config
    batch = 3
    images = some_images(flow, batch).requires_grad_()  # the first product goes backward too
    condition = some_labels(flow)
    if config.condition_tokens:  # its projection goes backward too
        condition = some_vectors(flow).requires_grad_()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        latents, logdet = flow(images, condition)
        forward = counter.get_total_flops()
        (latents.square().mean() - logdet.mean()).backward()
    dense = 0  # what explicit attention computes for pairs that causal attention leaves out
    for block, layers in enumerate(config.depths):
        read = config.prefix(block) + config.tokens
        dense += layers * 4 * config.channels * (read**2 - read * (read + 1) // 2)
    assert forward == batch * (cost.forward_flops(config) + dense)
    assert counter.get_total_flops() == batch * (cost.training_flops(config) + 3 * dense)
