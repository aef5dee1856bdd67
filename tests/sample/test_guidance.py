"""Guidance rules against what they are derived from."""

import pytest
import torch
from torch.distributions import Normal

from tarflow.config import SamplerConfig
from tarflow.errors import UserError
from tarflow.sample.guidance import combine, weights

RULES = ["log-scale", "sigma-linear", "gaussian-score"]


def branches(seed=0):
    rng = torch.Generator().manual_seed(seed)
    log_scale, shift = torch.randn(2, 4, 3, 2, generator=rng, dtype=torch.float64)
    return log_scale, shift


@pytest.mark.parametrize("rule", RULES)
def test_no_weight_is_the_good_branch(rule):
    log_scale, shift = branches()
    sampler = SamplerConfig(guidance=1.0, rule=rule)
    scale, moved = combine(log_scale, shift, torch.zeros(3, 1), sampler)
    torch.testing.assert_close(scale, log_scale[:2].exp())
    torch.testing.assert_close(moved, shift[:2])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("part", ["scale", "shift"])
def test_a_part_leaves_the_other_alone(rule, part):
    log_scale, shift = branches()
    weight = torch.full((3, 1), 1.5, dtype=torch.float64)
    both = combine(log_scale, shift, weight, SamplerConfig(guidance=1.5, rule=rule))
    partial = combine(log_scale, shift, weight, SamplerConfig(guidance=1.5, rule=rule, part=part))
    good = log_scale[:2].exp(), shift[:2]
    for index, name in enumerate(("scale", "shift")):
        torch.testing.assert_close(partial[index], (both if part == name else good)[index])


def test_gaussian_score_is_the_score_of_the_extrapolated_density():
    """Where the worse branch is the wider: score = (1 + w) score of the good - w of the worse."""
    weight = 0.8
    log_scale = torch.tensor([[-0.5, -0.2], [0.1, 0.4]], dtype=torch.float64)[:, None]
    shift = torch.tensor([[0.3, -0.7], [0.9, 0.2]], dtype=torch.float64)[:, None]
    sampler = SamplerConfig(guidance=weight, rule="gaussian-score")
    scale, moved = combine(log_scale, shift, torch.full((1, 1), weight).double(), sampler)
    point = torch.tensor([0.25, -1.5], dtype=torch.float64).requires_grad_()

    def score(mean, std):
        return torch.autograd.grad(Normal(mean, std).log_prob(point).sum(), point)[0]

    good, worse = (score(shift[i, 0], log_scale[i, 0].exp()) for i in range(2))
    expected = (1 + weight) * good - weight * worse
    torch.testing.assert_close(score(moved[0, 0], scale[0, 0]), expected)


def test_rules_differ_in_what_they_extrapolate():
    log_scale = torch.tensor([[[0.0]], [[0.5]]], dtype=torch.float64)
    shift = torch.zeros_like(log_scale)
    weight = torch.tensor([[2.0]], dtype=torch.float64)

    def scale(rule):
        return float(combine(log_scale, shift, weight, SamplerConfig(guidance=2, rule=rule))[0])

    e = torch.tensor(0.5, dtype=torch.float64).exp()
    assert scale("log-scale") == pytest.approx(float(e**-2))
    assert scale("sigma-linear") == pytest.approx(float(1 + 2 * (1 - e)))
    assert scale("gaussian-score") == pytest.approx(float((3 - 2 * e**-2) ** -0.5))


def test_annealing_ends_at_the_full_weight():
    annealed = weights(SamplerConfig(guidance=3.0), torch.arange(7), last=7)
    torch.testing.assert_close(annealed[:, 0], 3.0 * torch.arange(1, 8) / 7)
    constant = weights(SamplerConfig(guidance=3.0, annealed=False), torch.arange(7), last=7)
    assert constant.eq(3.0).all()


@pytest.mark.parametrize("wrong", [{"guided_blocks": "top"}, {"guided_blocks": "top:0"}])
def test_blocks_are_all_or_a_number(wrong):
    with pytest.raises(UserError, match="top:3"):
        SamplerConfig(**wrong)
