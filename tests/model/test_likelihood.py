import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tarflow import data
from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
)
from tarflow.evaluate.held_out import held_out_likelihood
from tarflow.model import likelihood, noise
from tarflow.model.decoder import Decoder
from tarflow.model.flow import TarFlow
from tarflow.model.likelihood import bound_bpd, log_density, negative_log_likelihood
from tarflow.model.patches import unpatchify
from tarflow.model_config import ModelConfig
from tarflow.train.loop import train

SMALL = ModelConfig(image_size=4, patch=2, channels=8, head_dim=8, blocks=2, layers=1)


def affine_flow(model, means, stds):
    """Set a flow by hand to a density that is N(mean, std^2) in each token, given (T,) values.

    Without layers' contributions the hidden state is the position table, so each token's scale
    and shift are free. The first block treats all tokens but the first, the second that one.
    """
    flow = TarFlow(model).double().eval().requires_grad_(False)
    for parameter in flow.parameters():
        parameter.zero_()
    tokens, dims = model.tokens, model.token_dim
    for index, treated in ((0, range(1, tokens)), (1, [0])):
        block = flow.blocks[index]
        for slot, token in enumerate(treated):
            source = token + 1 if block.backwards else token - 1
            block.pos_embed[source, slot] = 1
            block.proj_out.weight[:dims, slot] = math.log(stds[token])
            block.proj_out.weight[dims:, slot] = means[token]
    return flow


def test_a_density_of_known_entropy_costs_its_entropy():
    means, stds = [0.3, -0.5, 0.1, 0.7], [0.5, 0.05, 2.0, 0.3]
    flow = affine_flow(SMALL, means, stds)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, 4, 4, generator=rng, dtype=torch.float64)
    tokens = torch.tensor(means)[:, None] + torch.tensor(stds)[:, None] * drawn
    images = unpatchify(tokens, SMALL)
    cost = -log_density(flow, images)
    entropy = 4 * sum(math.log(std) for std in stds) + 8 * math.log(2 * math.pi * math.e)
    standard_error = cost.std().item() / math.sqrt(len(cost))
    assert cost.mean().item() == pytest.approx(entropy, abs=4 * standard_error)
    loss = negative_log_likelihood(*flow(images))
    constant = 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(loss + constant, cost / SMALL.dims)


def test_bits_of_uniform_noise_on_uniform_pixels():
    """A flow that ignores the data costs 8 bits and what a Gaussian wastes on a box."""
    flow = affine_flow(SMALL, [0.0] * 4, [1 / math.sqrt(3)] * 4)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3000, 1, 4, 4), generator=rng, dtype=torch.uint8)
    noised = noise.noisy(pixels, NoiseConfig(type="uniform"), rng, torch.float64)
    bpd = likelihood.dequantised_bpd(negative_log_likelihood(*flow(noised)))
    waste = 0.5 * math.log2(2 * math.pi * math.e / 12)
    standard_error = bpd.std().item() / math.sqrt(len(bpd))
    assert bpd.mean().item() == pytest.approx(8 + waste, abs=4 * standard_error)


def test_the_bound_is_never_below_the_exact_cost():
    """With p(y) standard normal the sum over everything the latent can be is in closed form."""
    model, std = replace(SMALL, image_size=2), 0.3
    flow = TarFlow(model).double().eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter.zero_()
    pixels = torch.randint(0, 256, (100_000, 1, 2, 2), generator=rng, dtype=torch.uint8)
    seen = noise.noisy(pixels, NoiseConfig(std=std), rng, torch.float64)
    decoder = Decoder.fit(seen * (1 - std**2), pixels, bins=64)
    pixels = pixels[:200]
    edges = decoder.edges / (1 - std**2)  # of y, since xhat = y (1 - std^2)
    below = torch.cat([torch.zeros(1), torch.special.ndtr(edges), torch.ones(1)]).double()
    level = (below.diff()[:, None] * decoder.log_probability.exp()).sum(0)
    assert level.sum().item() == pytest.approx(1)
    exact = -level[pixels.long()].log2().flatten(1).mean(1)
    draws = []
    for _ in range(400):
        noised = noise.noisy(pixels, NoiseConfig(std=std), rng, torch.float64)
        draws.append(bound_bpd(flow, decoder, pixels, noised, None, NoiseConfig(std=std))[0])
    cost = torch.stack(draws)
    standard_error = cost.std(0) / math.sqrt(len(draws))
    assert (cost.mean(0) > exact - 4 * standard_error).all()
    gap = (cost.mean(0) - exact).mean().item()
    assert 0 < gap < 2


def test_a_constant_image_costs_almost_nothing():
    std, level = 0.05, 90
    flow = affine_flow(SMALL, [level / 127.5 - 1] * 4, [std] * 4)
    pixels = torch.full((100, 1, 4, 4), level, dtype=torch.uint8)
    rng = torch.Generator().manual_seed(0)
    noised = [noise.noisy(pixels, NoiseConfig(std=std), rng, torch.float64) for _ in range(2)]
    xhat, _ = likelihood.denoised_mean(flow, noised[0], None, std)
    torch.testing.assert_close(xhat, noise.unit(pixels, torch.float64))
    decoder = Decoder.fit(xhat, pixels)
    cost, _ = bound_bpd(flow, decoder, pixels, noised[1], None, NoiseConfig(std=std))
    assert 0 <= cost.mean().item() < 0.05


@pytest.mark.parametrize("standard_prior", [False, True])
def test_scores_are_gradients_under_the_prior_asked_for(random_flow, monkeypatch, standard_prior):
    flow = random_flow(classes=3, volume_preserving=True)
    images = 0.5 * torch.randn(5, 2, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2, -1, 1, 0])
    point = images.clone().requires_grad_()
    latents, _ = flow(point, labels)
    std = torch.ones_like(flow.var) if standard_prior else flow.var.sqrt()
    density = torch.distributions.Normal(0.0, std).log_prob(latents).sum((1, 2))
    (expected,) = torch.autograd.grad(density.sum(), point)
    for memory in (likelihood.ACTIVATION_BYTES, 1):  # all images, then one at a time
        monkeypatch.setattr(likelihood, "ACTIVATION_BYTES", memory)
        found = likelihood.score_function(flow, images, labels, standard_prior=standard_prior)
        torch.testing.assert_close(found, (expected, density.detach()))


def test_decoder_rows_are_distributions():
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 1, 8, 8), generator=rng, dtype=torch.uint8)
    denoised = noise.unit(pixels) + 0.1 * torch.randn(pixels.shape, generator=rng)
    decoder = Decoder.fit(denoised, pixels)
    assert torch.isfinite(decoder.log_probability).all()
    torch.testing.assert_close(
        decoder.log_probability.exp().sum(1), torch.ones(len(decoder.edges) + 1)
    )
    far = torch.full((1, 1, 8, 8), 50.0)
    assert torch.isfinite(decoder.log_prob(far, pixels[:1])).all()


def trained(std, folder, **changes):
    config = RunConfig(
        model=ModelConfig(channels=16, head_dim=8, blocks=2, layers=1),
        data=data.hash_data(DataConfig()),
        noise=NoiseConfig(std=std),
        optim=OptimConfig(lr=1e-2, warmup_images=256),
        images=6400,
        batch=32,
        precision="float32",
        evaluation=EvaluationConfig(decoder_images=500),
        execution=ExecutionConfig(threads=1),
    )
    config = replace(config, **changes)
    state = train(config, folder)
    state.flow.load_state_dict(state.ema)
    return state.flow, config


def test_bits_over_noise_levels_have_an_interior_minimum_on_digits(tmp_path):
    bpd = {
        std: held_out_likelihood(*trained(std, tmp_path / str(std))).bpd.mean()
        for std in (0.02, 0.3, 2.0)
    }
    assert bpd[0.3] < bpd[0.02] - 0.05
    assert bpd[0.3] < bpd[2.0] - 0.05
    assert all(0.5 < value < 4 for value in bpd.values())


def test_values_do_not_depend_on_the_batch(tmp_path):
    flow, config = trained(0.2, tmp_path, images=640)
    a, b = (held_out_likelihood(flow, config, batch=batch) for batch in (500, 77))
    np.testing.assert_allclose(a.bpd, b.bpd, rtol=1e-4)
    assert a.kind == "bound"
