"""Triton's interpreter runs the kernels on the CPU: the fused blocks are the plain ones.

That compiled kernels do the same on a GPU is shown by `tests/test_cuda.py`.
"""

from dataclasses import replace

import pytest
import torch

from sweeps.hardware import has_gpu
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.model_config import ModelConfig

pytest.importorskip("triton", reason="there is no Triton for this system")
if has_gpu():
    pytest.skip("a GPU compiles the kernels", allow_module_level=True)
from tarflow.cuda import attention, layers, short_attention


def flows(config, block_type):
    """Return a plain flow and a fused one with the same weights, none of them zero."""
    plain = TarFlow(config)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fused = TarFlow(config, block_type, layers.FusedLayer)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def gradients(flow, images, labels):
    latents, logdet = flow(images, labels)
    loss = negative_log_likelihood(latents, logdet).mean() + latents.sum() / 100
    loss.backward()
    return {"loss": loss.detach(), "latents": latents.detach(), "images": images.grad} | {
        name: parameter.grad for name, parameter in flow.named_parameters()
    }


def largest_error(found, expected):
    """Return the largest error of any tensor, relative to its norm."""
    return max(
        float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in expected.items()
    )


CONFIG = ModelConfig(
    image_size=8, image_channels=3, patch=2, channels=24, head_dim=8, blocks=2, layers=2, classes=3
)


def compare(block_type, config=CONFIG):
    torch.manual_seed(0)
    plain, fused = flows(config, block_type)
    images = torch.randn(2, config.image_channels, config.image_size, config.image_size)
    labels = torch.tensor([2, -1]) if config.classes else None
    if config.condition_tokens:
        labels = torch.randn(2, config.condition_tokens, config.condition_dim)
    given = images.clone().requires_grad_(), images.clone().requires_grad_()
    return largest_error(gradients(fused, given[0], labels), gradients(plain, given[1], labels))


def test_a_fused_block_is_the_plain_one():
    assert compare(layers.FusedBlock) < 1e-4


OPTIONS = (
    {"start_token": True, "scale": "softplus", "soft_clip": 4.0, "final_norm": True},
    {"positions": "rope"},
    {"condition_tokens": 3, "condition_dim": 5, "classes": 0},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_fused_block_with_other_options_is_the_plain_one(options):
    assert compare(layers.FusedBlock, replace(CONFIG, **options)) < 1e-4


@pytest.mark.parametrize(
    ("block_type", "dtype", "least", "most"),
    [
        ("FusedBlock", torch.float16, 1e-5, 0.01),
        ("FusedBlock", torch.bfloat16, 1e-4, 0.05),
        ("NarrowBlock", torch.bfloat16, 1e-4, 0.2),
    ],
)
def test_a_fused_block_in_16_bits_is_near_the_plain_one(
    block_type, dtype, least, most, monkeypatch
):
    def narrow_linear(self, inputs):
        """Project as autocast does."""
        parts = (inputs, self.weight, self.bias)
        return torch.nn.functional.linear(*(part.to(dtype) for part in parts))

    monkeypatch.setattr(layers, "product_dtype", lambda: dtype)
    monkeypatch.setattr(torch.nn.Linear, "forward", narrow_linear)
    if dtype == torch.float16:  # Triton's interpreter cannot multiply bfloat16
        monkeypatch.setattr(layers, "attend", attention.by_short_kernels)
    assert least < compare(getattr(layers, block_type)) < most


@pytest.mark.parametrize(("tokens", "head_dim"), [(64, 16), (49, 8), (100, 32)])
def test_both_ways_of_attention_are_plain_attention(tokens, head_dim, monkeypatch):
    monkeypatch.setattr(short_attention, "BLOCK", 32)
    images, heads = 2, 3
    joined = torch.randn(images * tokens, 3 * heads * head_dim, requires_grad=True)
    parts = joined.view(images, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
    expected = expected.transpose(1, 2).reshape(images * tokens, -1)
    bias, gradient = torch.zeros(joined.shape[1]).requires_grad_(), torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad(expected, joined, gradient)
    for way in (attention.by_pytorch, attention.by_short_kernels):
        mixed = way(joined, bias, tokens, head_dim)
        found, sums = torch.autograd.grad(mixed, (joined, bias), gradient)
        torch.testing.assert_close(mixed, expected)
        torch.testing.assert_close(found, expected_gradient, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums, expected_gradient.sum(0), rtol=1e-4, atol=1e-4)
