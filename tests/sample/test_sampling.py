"""Sampling and denoising against closed forms, autograd and what callers rely on.

Legend: `N` images, `T` tokens per image, `D` values per token.
"""

import pytest
import torch

from tarflow.config import NoiseConfig, SamplerConfig
from tarflow.errors import UserError
from tarflow.model import likelihood
from tarflow.model.flow import TarFlow
from tarflow.model.noise import normal_per_image
from tarflow.model.patches import patchify, unpatchify
from tarflow.model_config import ModelConfig
from tarflow.sample import sampling
from tarflow.sample.inverse import invert
from tarflow.sample.sampling import denoise, sample

GAUSSIAN = NoiseConfig(std=0.1)
UNIFORM = NoiseConfig(type="uniform")
PLAIN = SamplerConfig(denoise=0.0)


def test_denoising_is_exact_for_gaussian_data():
    """Constant log-scales make every token Gaussian: E[clean | noisy] = (1 - std^2 / var) noisy.

    The first block leaves the first token alone and the second block the last one.
    """
    config = ModelConfig(image_size=8, patch=2, channels=16, head_dim=8, blocks=2, layers=1)
    flow = TarFlow(config).double().eval()
    log_scale, std = -0.4, 0.3
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.bias.copy_(torch.tensor([log_scale] * 4 + [0.0] * 4))
    times = torch.full((16, 1), 2.0, dtype=torch.float64)
    times[[0, 15]] = 1.0
    variance = torch.exp(2 * log_scale * times)  # of data plus noise
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    for multiplier in (1.0, 0.7):
        factor = 1 - multiplier * std**2 / variance
        expected = unpatchify(patchify(images, flow.config) * factor, flow.config)
        torch.testing.assert_close(denoise(flow, images, None, std, multiplier), expected)


@pytest.mark.parametrize("count", [1, 5])
def test_denoising_adds_the_score_whatever_the_memory(random_flow, monkeypatch, count):
    flow = random_flow(classes=3)
    images = 0.5 * torch.randn(count, 2, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2, -1, 1, 0])[:count]
    before = images.clone()
    point = images.clone().requires_grad_()
    latents, logdet = flow(point, labels)
    normal = torch.distributions.Normal(0.0, 1.0)
    nats = normal.log_prob(latents).sum() + logdet.sum() * flow.config.dims
    expected = images + 0.05**2 * torch.autograd.grad(nats, point)[0]
    torch.testing.assert_close(denoise(flow, images, labels, 0.05), expected)
    monkeypatch.setattr(likelihood, "ACTIVATION_BYTES", 1)  # one image at a time
    torch.testing.assert_close(denoise(flow, images, labels, 0.05), expected)
    assert torch.equal(images, before)
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())


def test_an_image_depends_on_seed_index_and_label_only(random_flow):
    flow = random_flow(classes=3)
    sampler = SamplerConfig(guidance=1.0)
    many = sample(flow, 7, sampler, GAUSSIAN, seed=5, batch=7)
    torch.testing.assert_close(
        sample(flow, 7, sampler, GAUSSIAN, seed=5, batch=2).images, many.images
    )
    few = sample(flow, 4, sampler, GAUSSIAN, seed=5)
    torch.testing.assert_close(few.images, many.images[:4])
    other = sample(flow, 4, sampler, GAUSSIAN, seed=6)
    assert (other.images - few.images).abs().mean() > 0.05
    relabelled = sample(flow, 2, sampler, GAUSSIAN, torch.tensor([0, 0]), seed=5)
    torch.testing.assert_close(relabelled.images[0], few.images[0])
    assert not torch.allclose(relabelled.images[1], few.images[1])
    assert many.condition.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert many.images.abs().max() <= 1
    assert many.images.dtype == torch.float32


@pytest.mark.parametrize("volume_preserving", [False, True])
def test_samples_are_inverted_scaled_noise(random_flow, volume_preserving):
    flow = random_flow(volume_preserving=volume_preserving)
    noise = normal_per_image(torch.arange(3), (16, 8), 0, "sample 0", torch.float64)
    raw = invert(flow, noise * flow.var.sqrt())
    drawn = sample(flow, 3, PLAIN, GAUSSIAN).images
    torch.testing.assert_close(drawn, raw.clamp(-1, 1).float())
    denoised = denoise(flow, raw, None, GAUSSIAN.std, 0.9)
    drawn = sample(flow, 3, SamplerConfig(denoise=0.9), GAUSSIAN).images
    torch.testing.assert_close(drawn, denoised.clamp(-1, 1).float())
    assert not torch.allclose(denoised.clamp(-1, 1), raw.clamp(-1, 1), atol=1e-4)
    undenoisable = sample(flow, 3, SamplerConfig(denoise=0.9), UNIFORM).images
    torch.testing.assert_close(undenoisable, raw.clamp(-1, 1).float())


def test_images_that_are_not_finite_are_redrawn_then_given_up(random_flow, monkeypatch):
    """Image 1 fails at its first draw, image 3 at every draw."""
    flow = random_flow(classes=2)
    good = sample(flow, 6, PLAIN, GAUSSIAN)
    attempts = []

    def spoilt(indices, shape, seed, purpose, dtype):
        noise = normal_per_image(indices, shape, seed, purpose, dtype)
        attempts.append((purpose, indices.tolist()))
        noise[(indices == 3) | ((indices == 1) & (purpose == "sample 0"))] = torch.nan
        return noise

    monkeypatch.setattr(sampling, "normal_per_image", spoilt)
    drawn = sample(flow, 6, PLAIN, GAUSSIAN, batch=4)
    assert attempts == [
        ("sample 0", [0, 1, 2, 3]),
        ("sample 0", [4, 5]),
        ("sample 1", [1, 3]),
        ("sample 2", [3]),
        ("sample 3", [3]),
    ]
    assert (drawn.redrawn, drawn.lost) == (4, 1)
    assert drawn.condition.tolist() == [0, 1, 0, 0, 1]
    torch.testing.assert_close(drawn.images[[0, 2, 3, 4]], good.images[[0, 2, 4, 5]])
    assert drawn.images.isfinite().all()
    assert (drawn.images[1] - good.images[1]).abs().mean() > 0.05
    assert (good.redrawn, good.lost) == (0, 0)


def test_wrong_requests_are_refused(random_flow):
    flow = random_flow(classes=2)
    with pytest.raises(UserError, match="ask for at least 1"):
        sample(flow, 0, PLAIN, GAUSSIAN)
    with pytest.raises(UserError, match="give one per image"):
        sample(flow, 2, PLAIN, GAUSSIAN, torch.tensor([0]))
    with pytest.raises(UserError, match="label 2 is unknown"):
        sample(flow, 1, PLAIN, GAUSSIAN, torch.tensor([2]))
    with pytest.raises(UserError, match="label 2 is unknown"):
        denoise(flow, torch.zeros(1, 2, 8, 8, dtype=torch.float64), torch.tensor([2]), 0.1)
