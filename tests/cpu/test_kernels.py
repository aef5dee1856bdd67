"""Fused parts of a flow give what the plain ones give, whatever the shapes and the processor."""

import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_files import TOLERANCE
from golden_files import built as reference_flow
from golden_files import read as reference_tensors

from tarflow.affine import fused_affine
from tarflow.config import ExecutionConfig, RunConfig
from tarflow.cpu import kernels as built
from tarflow.cpu.layers import (
    FusedBlock,
    FusedLayer,
    ProductLayer,
    causal_attention,
    fused_layer,
)
from tarflow.device import processor
from tarflow.execution import resolve_execution
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.model.transformer import Layer
from tarflow.model_config import ModelConfig
from tarflow.train.state import new_state, recomputed

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INSTRUCTIONS = {  # by processor, what another one must have to run them
    "native": "",  # matrix units, if there are any
    "cooperlake": "avx512_bf16",  # pairs of bfloat16
    "haswell": "avx2",  # 8 floats at a time
    "x86-64": "",  # 4 floats
}

pytestmark = pytest.mark.skipif(
    built.kernels(torch.float32) is None, reason="there is no g++ on this machine"
)


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request, monkeypatch):
    """Build for older processors too; a newer one runs their instructions."""
    if request.param != "native":
        if platform.machine() != "x86_64":
            pytest.skip("other instructions")
        flags = built.FLAGS.replace("-march=native", f"-march={request.param}")
        monkeypatch.setattr(built, "FLAGS", flags)
        needed = INSTRUCTIONS[request.param]
        if needed and needed not in processor("flags").split():
            pytest.skip("an older processor")
    built.kernels.cache_clear()
    yield
    built.kernels.cache_clear()


def fused(flow, block_type=FusedBlock, layer_type=FusedLayer):
    """Return a flow of the same weights that computes as in training."""
    twin = TarFlow(flow.config, block_type, layer_type).to(flow.var.dtype)
    twin.load_state_dict(flow.state_dict())
    return twin


def passed(flow, images, labels, dtype):
    """Return latents, log-determinants and gradients."""
    flow.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        latents, logdet = flow(images, labels)
    negative_log_likelihood(latents, logdet).mean().backward()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in flow.named_parameters()}
    return {"latents": latents.detach(), "logdet": logdet.detach()} | gradients


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    "shape",
    [
        {"image_size": 8, "patch": 2, "channels": 16, "head_dim": 8, "layers": 2, "classes": 3},
        {"image_size": 7, "patch": 1, "channels": 20, "head_dim": 10},  # no whole vectors
        {"image_size": 12, "patch": 1, "channels": 24, "head_dim": 24},  # several blocks of tokens
        {"head_dim": 16, "condition_tokens": 3, "condition_dim": 5, "start_token": True}
        | {"scale": "softplus", "soft_clip": 4.0, "final_norm": True, "layers": (1, 1, 2)},
        {"image_size": 12, "patch": 1, "head_dim": 16, "positions": "rope", "layers": 2}
        | {"condition_tokens": 3, "condition_dim": 5},
    ],
    ids=["classes", "odd", "long", "starflow", "rotary"],
)
def test_a_fused_flow_is_as_near_to_exact_arithmetic_as_a_plain_one(random_flow, shape, name):
    rng = torch.Generator().manual_seed(1)
    exact, flow = random_flow(torch.float64, **shape), random_flow(torch.float32, **shape)
    size = exact.config.image_size
    images = torch.rand(5, 2, size, size, generator=rng, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 2, -1, 1, 1]) if exact.config.classes else None
    truth = passed(exact, images, labels, torch.float64)  # vectors are dropped: the same for all
    eager = fused(flow, FlowBlock, ProductLayer)
    plain = passed(eager, images.float(), labels, TYPES[name])
    found = passed(fused(flow), images.float(), labels, TYPES[name])
    assert not torch.equal(plain["latents"], found["latents"])  # they are two computations
    for what, expected in truth.items():
        assert found[what].dtype == torch.float32
        error, usual = ((each[what] - expected).norm() for each in (found, plain))
        size = expected.norm()
        small = what.endswith("sos_embed")  # few sums, whose rounding does not average out
        floor = 1e-6 if name == "float32" else 3e-2 if small else 5e-3
        assert error <= 1.5 * usual + floor * size, f"{what}: {error / size:.1e}"
        assert error <= (1e-5 if name == "float32" else 0.1) * size, what


def test_a_fused_flow_reproduces_the_reference_tensors(golden):
    metadata, tensors = reference_tensors(golden, torch.float32)
    flow = fused(reference_flow(metadata, tensors))
    if flow.config.start_token:
        pytest.skip("softplus has no fused kernels")
    labels = tensors.get("in.labels") if flow.config.classes else None
    latents, logdet = flow(tensors["in.images"], labels)
    kind = "cond" if flow.config.classes else "uncond"
    assert "Affine" in str(latents.grad_fn) or flow.config.volume_preserving  # it was at work
    for name, found in (("latents", latents), ("logdet_per_dim", logdet)):
        expected = tensors[f"forward_{kind}.{name}"]
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max(), name


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("tokens", [1, 7, 48, 49, 130])
@pytest.mark.parametrize("width", [3, 8, 20, 64])
def test_attention_of_any_shape(tokens, width, name):
    check_attention(tokens, width, TYPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.usefixtures("instructions")
def test_attention_by_other_instructions(width, name):
    check_attention(67, width, TYPES[name])


def check_attention(tokens, width, dtype):
    run, (batch, heads) = built.kernels(dtype), (3, 2)
    rng, channels = torch.Generator().manual_seed(0), heads * width
    rows = batch * tokens

    def draw(*shape):
        return torch.randn(*shape, generator=rng).to(dtype)

    joined, grad, bias = draw(rows, 3 * channels), draw(rows, channels), draw(3 * channels).float()
    if dtype == torch.float32:
        joined[: tokens // 2] *= 12  # some logits are in the hundreds
    mixed, totals = torch.empty_like(grad), torch.empty(batch * heads * tokens)
    run.attend(joined, bias, mixed, totals, batch, tokens, heads, width)
    djoined, dbias = torch.full_like(joined, torch.nan), torch.empty_like(bias)
    dims = (batch, tokens, heads, width)
    run.attend_backward(joined, bias, mixed, totals, grad, djoined, dbias, *dims)

    exact = (joined.double() + bias.double()).requires_grad_()
    parts = exact.view(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    wanted = F.scaled_dot_product_attention(*parts, is_causal=True)
    wanted = wanted.transpose(1, 2).reshape(rows, channels)
    wanted.backward(grad.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for found, expected in ((mixed, wanted), (djoined, exact.grad), (dbias, exact.grad.sum(0))):
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.usefixtures("instructions")
def test_layers_by_other_instructions(name):
    torch.manual_seed(0)
    layer, hidden = Layer(24, 12), torch.randn(2, 9, 24, requires_grad=True)
    after = fused_layer(hidden, tuple(layer.parameters()), 12, TYPES[name])
    found = torch.autograd.grad(after.square().sum(), [hidden, *layer.parameters()])
    again = hidden.detach().double().requires_grad_()
    wanted = layer.double()(again)
    expected = torch.autograd.grad(wanted.square().sum(), [again, *layer.parameters()])
    tolerance = 1e-5 if name == "float32" else 0.03
    for each, truth in zip((after, *found), (wanted, *expected), strict=True):
        assert (each - truth).norm() <= tolerance * truth.norm()


def test_plain_products_attend_as_the_fused_kernel_does():
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 7, 4, generator=rng, dtype=torch.float64) for _ in range(4)]
    query, key, value, weight = (part.requires_grad_() for part in parts)
    fused = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    plain = causal_attention(query, key, value)
    torch.testing.assert_close(plain, fused)
    inputs = (query, key, value)
    expected = torch.autograd.grad((fused * weight).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((plain * weight).sum(), inputs), expected)


def test_gelu_and_its_slope_keep_their_precision_everywhere():
    at = torch.cat([torch.linspace(-30, 30, 60_001), torch.logspace(-30, 0, 999)])
    at = torch.cat([at, -at, torch.tensor([0.0, torch.inf, torch.nan])])[None].contiguous()
    exact = at.double().requires_grad_()
    wanted = F.gelu(exact)
    (slope,) = torch.autograd.grad(wanted.sum(), exact)
    found, value = at.clone(), torch.empty_like(at)
    built.kernels(torch.float32).gelu(found, torch.zeros(at.shape[1]), value, 1, at.shape[1])
    finite = at.isfinite()
    assert (value - wanted)[finite].abs().max() < 1e-6
    assert (found - slope)[finite].abs().max() < 1e-6
    relative = (value - wanted).abs() / wanted.abs()
    assert relative[finite & (at > -5) & (at != 0)].max() < 1e-5
    assert value[0, -1].isnan()
    assert found[0, -1].isnan()


def test_no_number_depends_on_the_threads():
    torch.manual_seed(0)
    layer, hidden = Layer(32, 16), torch.randn(7, 53, 32, requires_grad=True)
    log_scale = torch.randn(7, 53, 24, requires_grad=True)
    tokens = torch.randn(7, 53, 12, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            run = built.kernels(torch.float32)
            normed, sums = torch.empty(371, 32), [torch.empty(32) for _ in range(3)]
            means, inverses, dx = torch.empty(371), torch.empty(371), torch.empty(371, 32)
            x, weight = hidden.detach().view(371, 32), layer.attention.norm.weight
            run.add_norm(x, None, None, weight, weight, None, normed, means, inverses, 371, 32)
            again = torch.empty_like(normed)
            run.norm_backward(
                *(normed, x, means, inverses, weight, weight, x),
                *(again, dx, *sums[:2], None, sums[2], 371, 32),
            )
            mapped, logdet = fused_affine(built.kernels(log_scale.dtype), tokens, log_scale, True)
            total = mapped.square().sum() + logdet.sum()
            slopes = torch.autograd.grad(total, [tokens, log_scale])
            results.append([normed, again, dx, *sums, mapped, logdet, *slopes])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, each in zip(results[0], other, strict=True):
            assert torch.equal(first, each)


def test_what_is_not_finite_is_passed_on(random_flow):
    flow = fused(random_flow(torch.float32))
    images = torch.zeros(2, 2, 8, 8)
    images[1, 0, 0, 0] = torch.nan
    latents, _ = flow(images)
    assert latents[0].isfinite().all()  # images do not touch each other
    assert latents[1].isnan().any()
    tokens, output = torch.ones(1, 2, 1), torch.tensor([[[-100.0, 0.0], [0.0, 0.0]]])
    assert fused_affine(built.kernels(torch.float32), tokens, output, False)[
        0
    ].flatten().tolist() == [1.0, torch.inf]


def test_activations_computed_again_give_the_same_gradients(random_flow):
    flow = random_flow(torch.float32, layers=2)
    images = torch.linspace(-1, 1, 3 * 2 * 64).view(3, 2, 8, 8)
    kept = passed(fused(flow), images, None, torch.float32)
    again = passed(fused(flow, layer_type=recomputed(FusedLayer)), images, None, torch.float32)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_what_is_fused_follows_the_config(monkeypatch):
    run = RunConfig(model=ModelConfig(channels=16, head_dim=8), precision="float32")

    def chosen(**changes):
        config = replace(run, **changes)
        execution = resolve_execution(config)
        layer = new_state(config, execution).flow.blocks[0].attn_blocks[0]
        assert isinstance(layer, FusedLayer) == (execution.kernels == "fused")
        return execution.kernels

    assert chosen() == "fused"
    assert chosen(precision="bfloat16") == "fused"
    assert chosen(precision="float64") == "eager"
    assert chosen(execution=ExecutionConfig(fused=False)) == "eager"
    monkeypatch.setattr(built.shutil, "which", lambda _: None)
    built.kernels.cache_clear()
    assert chosen() == "eager"
    built.kernels.cache_clear()


def test_a_compiler_that_fails_is_told_and_done_without(monkeypatch, tmp_path, caplog):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    built.kernels.cache_clear()
    assert built.kernels(torch.float32) is None
    assert "no such header" in caplog.text
    assert not list((tmp_path / "cache" / "kernels").iterdir())  # nothing half made
    built.kernels.cache_clear()


def test_processes_that_build_at_once_share_one_library(tmp_path):
    code = "import torch; from tarflow.cpu.kernels import kernels; print(kernels(torch.float32))"
    environment = os.environ | {"TARFLOW_CACHE": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert all("Kernels" in process.communicate()[0] for process in started)
    assert len(list((tmp_path / "kernels").iterdir())) == 1
