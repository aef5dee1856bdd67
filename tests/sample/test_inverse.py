"""Every solver finds the same tokens: the fixed point that going token by token finds.

Legend: `B` images, `T` tokens per image, `D` values per token.
"""

import math

import pytest
import torch
from graphs import run_and_replay

from tarflow.config import SamplerConfig
from tarflow.model.flow import patchify
from tarflow.sample import inverse as solvers
from tarflow.sample.coefficients import Coefficients, Memory
from tarflow.sample.inverse import (
    Inversion,
    invert,
    sequential,
    sequential_on_device,
    sweep,
    sweep_on_device,
)
from tarflow.sample.plan import Method, Plan, named_plan

GUIDED = SamplerConfig(guidance=1.5, temperature=0.7)
LABELS = torch.tensor([0, 2, -1])


def some_latents(flow, count=3, size=1.0):
    rng = torch.Generator().manual_seed(5)
    shape = (count, flow.config.tokens, flow.config.token_dim)
    return size * torch.randn(shape, generator=rng, dtype=flow.var.dtype)


def coefficients(flow, index, labels=LABELS, sampler=None):
    return Inversion(flow, some_latents(flow, len(labels)), labels, sampler).coefficients(index)


@pytest.mark.parametrize("sampler", [None, GUIDED])
@pytest.mark.parametrize("index", [0, 1])
def test_coefficients_do_not_depend_on_how_tokens_are_cut(random_flow, index, sampler):
    """One token, a window, or all at once, with few threads or many; and the training pass."""
    flow = random_flow(classes=3, layers=2)
    latents = some_latents(flow)
    block = flow.blocks[index]
    with torch.no_grad():
        tokens = sequential(coefficients(flow, index, sampler=sampler), latents)
        scale, shift = coefficients(flow, index, sampler=sampler)(tokens, 0)
        torch.testing.assert_close(tokens[:, 1:], latents[:, 1:] * scale[:, :-1] + shift[:, :-1])
        for window in (1, 5, 16):
            fresh = coefficients(flow, index, sampler=sampler)
            parts = [fresh(tokens[:, at : at + window], at) for at in range(0, 16, window)]
            torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), scale)
            torch.testing.assert_close(torch.cat([part[1] for part in parts], 1), shift)
        if sampler is None:
            log_scale, expected = block.coefficients(tokens, LABELS)
            torch.testing.assert_close(scale, log_scale.exp())
            torch.testing.assert_close(shift, expected)


@pytest.mark.parametrize("window", [3, 80])
def test_windows_with_a_past_attend_to_all_of_it(random_flow, window):
    """The fused kernel, which serves long windows, and plain products agree."""
    flow = random_flow(image_size=20, classes=3)  # 100 tokens
    tokens = some_latents(flow)
    with torch.no_grad():
        whole = coefficients(flow, 0)(tokens, 0)[1]
        fresh = coefficients(flow, 0)
        fresh(tokens[:, :10], 0)
        part = fresh(tokens[:, 10 : 10 + window], 10)[1]
    torch.testing.assert_close(part, whole[:, 10 : 10 + window])


def test_heads_in_parts_give_what_heads_together_give(random_flow, monkeypatch):
    flow = random_flow(classes=3, channels=32, head_dim=8)
    tokens = some_latents(flow)
    found = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        memory = Memory(flow, 3, torch.float64)
        assert memory.parts == threads
        with torch.no_grad():
            made = Coefficients(flow.blocks[0], memory, 3, LABELS)
            found.append(torch.cat([made(tokens[:, at : at + 1], at)[1] for at in range(16)], 1))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize("sampler", [None, GUIDED, SamplerConfig(guidance=1.0, annealed=False)])
@pytest.mark.parametrize("guess", ["latents", "zeros"])
@pytest.mark.parametrize("segments", [1, 2, 4, 15, 40])
def test_sweeps_find_the_sequential_fixed_point(random_flow, segments, guess, sampler):
    """15 tokens have successors, so windows of every size but one do not divide them."""
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    given = latents.clone()
    method = Method(segments=segments, guess=guess, tolerance=0.0)
    expected = invert(flow, latents, LABELS, sampler)
    found = invert(flow, latents, LABELS, sampler, Plan(methods=(method,) * 3))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(latents, given)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_settled_tokens_leave_the_window_for_good(random_flow, monkeypatch, tolerance):
    """Work shrinks, and keys and values of settled tokens are those of their final values."""
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    made = coefficients(flow, 0)
    calls = []
    original = Coefficients.__call__

    def counted(self, tokens, start):
        calls.append((start, start + tokens.shape[1]))
        return original(self, tokens, start)

    monkeypatch.setattr(Coefficients, "__call__", counted)
    with torch.no_grad():
        swept = sweep(made, latents, Method(segments=1, tolerance=tolerance))
        starts = [start for start, _ in calls]
        assert swept.done == 15
        assert swept.sweeps == len(calls) < 15
        assert starts == sorted(set(starts))
        assert all(end == 15 for _, end in calls)
        cached = [layer.cache[:, :, :15].clone() for layer in made.layers]
        made(swept.tokens, 0)
        for layer, kept in zip(made.layers, cached, strict=True):
            torch.testing.assert_close(kept, layer.cache[:, :, :15], atol=1e-12, rtol=1e-12)
        exact = sequential(coefficients(flow, 0), latents)
    assert (swept.tokens - exact).abs().max() < 20 * tolerance
    assert not torch.equal(swept.tokens, exact)


def test_only_guesses_are_bounded(random_flow):
    """The fixed point lies far outside the bound and is found all the same."""
    flow = random_flow(classes=3)
    latents = some_latents(flow, size=1.5)
    expected = invert(flow, latents, LABELS)
    assert expected.abs().max() > 3
    for segments in (1, 4):
        method = Method(segments=segments, tolerance=1e-12, bound=0.5)
        found = invert(flow, latents, LABELS, None, Plan(methods=(method,) * 3))
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_wild_guesses_do_not_spoil_the_solution(random_flow):
    """Guesses whose scale overflows: what is not a number never reaches a final token."""
    flow = random_flow(torch.float32, classes=3)
    block = flow.blocks[2]
    latents = some_latents(flow)
    with torch.no_grad():
        block.proj_in.weight *= 1e4
        first = block.permute(latents)[:, :1]
        block.proj_in.bias -= (first @ block.proj_in.weight.T).mean((0, 1))
        made = Inversion(flow, latents, LABELS, None).coefficients(2)
        wild = made(torch.full_like(latents, 9.0), 0)[0]
        method = Method(segments=1, tolerance=1e-6, bound=1e30)
        swept = sweep(made, latents, method)
        exact = sequential(Inversion(flow, latents, LABELS, None).coefficients(2), latents)
    assert not wild.isfinite().all() or wild.max() > 1e30
    finite = exact.isfinite()
    assert torch.equal(swept.tokens.isfinite(), finite)
    assert torch.allclose(swept.tokens[finite], exact[finite], rtol=1e-3)


def test_a_budget_that_runs_out_is_told_and_made_up_for(random_flow, caplog):
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    plan = Plan(methods=(Method(segments=1, tolerance=1e-12, sweeps=2),) * 3)
    found = invert(flow, latents, LABELS, None, plan)
    torch.testing.assert_close(found, invert(flow, latents, LABELS))
    assert caplog.text.count("have not settled after 2 sweeps; solved one by one") == 3


@pytest.mark.parametrize("sampler", [None, GUIDED])
def test_the_replayed_step_goes_where_the_plain_one_goes(random_flow, monkeypatch, sampler):
    monkeypatch.setattr(solvers, "BUCKET", 4)
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    with torch.no_grad():
        expected = sequential(coefficients(flow, 1, sampler=sampler), latents)
        for start in (0, 6):
            begun = expected.clone()
            begun[:, start + 1 :] = math.nan
            made = coefficients(flow, 1, sampler=sampler)
            made(expected[:, :start], 0) if start else None
            found = sequential_on_device(made, latents, begun, start)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("segments", [1, 3, 5])
def test_sweeps_that_find_their_window_on_the_device_give_the_same(
    random_flow, monkeypatch, segments
):
    """As CUDA devices run it, but for the replaying."""
    recordings = []

    def capture(work, *where):
        recordings.append(work)
        return run_and_replay(work, *where)

    monkeypatch.setattr(solvers, "capture", capture)
    monkeypatch.setattr(solvers, "SWEEP_BUCKET", 5)
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    method = Method(segments=segments, tolerance=1e-10)
    with torch.no_grad():
        expected = sweep(coefficients(flow, 1, sampler=GUIDED), latents, method)
        found = sweep_on_device(coefficients(flow, 1, sampler=GUIDED), latents, method)
    torch.testing.assert_close(found.tokens, expected.tokens)
    assert found.done == expected.done == 15
    assert found.sweeps <= expected.sweeps + 1
    assert len(recordings) == {1: 1, 3: 3, 5: 3}[segments]


def test_named_solvers(random_flow):
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    expected = invert(flow, latents, LABELS)
    for name in ("sequential", "jacobi", "selective", "segmented:4"):
        plan = named_plan(name, 3, tolerance=1e-10)
        torch.testing.assert_close(invert(flow, latents, LABELS, None, plan), expected)
    assert str(named_plan("selective", 3, 0.5)) == "sequential, 2 jacobi"


def test_bfloat16_sampling_stays_near_float32(random_flow):
    flow = random_flow(torch.float32, classes=3)
    latents = some_latents(flow)
    expected = invert(flow, latents, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = invert(flow, latents, LABELS)
        swept = invert(flow, latents, LABELS, None, named_plan("jacobi", 3, 1e-3))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - expected).abs().mean() < 0.03 * expected.abs().mean()
    assert (swept - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_unguided_blocks_cost_one_branch(random_flow, monkeypatch):
    flow = random_flow(classes=3)
    latents, labels = some_latents(flow), torch.tensor([0, 2, 1])
    rows = []
    original = Coefficients.__call__

    def counted(self, tokens, start):
        rows.append(len(tokens) * (2 if self.sampler else 1))
        return original(self, tokens, start)

    monkeypatch.setattr(Coefficients, "__call__", counted)
    top = SamplerConfig(guidance=1.5, guided_blocks="top:1")
    found = invert(flow, latents, labels, top)
    assert rows == [6] * 15 + [3] * 30
    with torch.no_grad():
        guided = Inversion(flow, latents, labels, SamplerConfig(guidance=1.5))
        tokens = guided.block(2, latents, Method())
        plain = Inversion(flow, latents, labels, None)
        for index in (1, 0):
            tokens = plain.block(index, tokens, Method())
    torch.testing.assert_close(patchify(found, flow.config.patch), tokens)
