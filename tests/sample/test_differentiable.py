"""Gradients through the inverse of a flow, against finite differences and against autograd."""

import pytest
import torch
from torch.func import functional_call

from tarflow.errors import UserError
from tarflow.sample import differentiable
from tarflow.sample.differentiable import differentiable_inverse
from tarflow.sample.inverse import invert

SIZES = {"image_size": 4, "image_channels": 1, "patch": 2, "channels": 8, "head_dim": 8}
CASES = [
    {"blocks": 1},
    {"blocks": 2, "classes": 3},  # both directions
    {"blocks": 2, "volume_preserving": True},
]


def latents_of(flow, count=2):
    rng = torch.Generator().manual_seed(1)
    shape = count, flow.config.tokens, flow.config.token_dim
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("changes", CASES)
def test_gradients_are_those_of_finite_differences(random_flow, changes):
    flow = random_flow(**SIZES, **changes)
    labels = torch.tensor([2, -1]) if flow.config.classes else None
    latents = latents_of(flow).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: differentiable_inverse(flow, v, labels), latents)
    names = ["blocks.0.proj_out.weight", "blocks.0.pos_embed"]
    names += ["blocks.1.class_embed"] if labels is not None else []
    chosen = [flow.get_parameter(name).detach().clone().requires_grad_() for name in names]

    class Inverse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow

        def forward(self, latents):
            return differentiable_inverse(self.flow, latents, labels)

    def inverse(*values):
        given = {f"flow.{name}": value for name, value in zip(names, values, strict=True)}
        return functional_call(Inverse(), given, (latents.detach(),))

    assert torch.autograd.gradcheck(inverse, chosen, fast_mode=True)


def test_values_are_those_of_the_inverse_and_gradients_undo_the_flow(random_flow):
    """The Jacobian of the inverse times that of the flow is the identity."""
    flow = random_flow(classes=3)
    labels = torch.tensor([0, 2])
    latents = latents_of(flow).requires_grad_()
    images = differentiable_inverse(flow, latents, labels)
    torch.testing.assert_close(images.detach(), invert(flow, latents.detach(), labels))
    gradient = torch.randn(images.shape, dtype=torch.float64)
    (pulled,) = torch.autograd.grad(images, latents, gradient)
    point = images.detach().requires_grad_()
    mapped, _ = flow(point, labels)
    (back,) = torch.autograd.grad(mapped, point, pulled)
    torch.testing.assert_close(back, gradient)


def test_few_passes_suffice_where_tokens_depend_weakly_on_each_other(random_flow, monkeypatch):
    flow = random_flow(image_size=16)  # 64 tokens
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight *= 0.1
    passes = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or grad(*a, **k))
    latents = latents_of(flow).requires_grad_()
    differentiable_inverse(flow, latents).square().sum().backward()
    assert latents.grad.isfinite().all()
    assert len(passes) < 3 * 25


def test_without_gradients_nothing_is_kept(random_flow):
    flow = random_flow()
    with torch.no_grad():
        assert not differentiable_inverse(flow, latents_of(flow)).requires_grad
    frozen = random_flow().requires_grad_(False)
    assert not differentiable_inverse(frozen, latents_of(frozen)).requires_grad


def test_second_derivatives_and_unknown_labels_are_refused(random_flow):
    flow = random_flow(**SIZES, classes=2)
    latents = latents_of(flow).requires_grad_()
    images = differentiable_inverse(flow, latents)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(images.sum(), latents, create_graph=True)
    with pytest.raises(UserError, match="label 2 is unknown"):
        differentiable_inverse(flow, latents, torch.tensor([0, 2]))


def test_a_wrong_scale_is_noticed(random_flow, monkeypatch, caplog):
    flow = random_flow(**SIZES)
    monkeypatch.setattr(differentiable, "_own_scale", lambda *_: torch.tensor(0.1))
    latents = latents_of(flow).requires_grad_()
    differentiable_inverse(flow, latents).sum().backward()
    assert "accurate to" in caplog.text
