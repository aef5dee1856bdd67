"""Every method finds the same tokens: the fixed point that sequential decoding finds.

Legend: `B` images, `T` tokens per image, `D` values per token.
"""

import math
from dataclasses import replace

import pytest
import torch
from graphs import run_and_replay

from tarflow.config import SamplerConfig
from tarflow.device import autocast
from tarflow.model.patches import patchify
from tarflow.sample import inverse
from tarflow.sample.incremental import IncrementalBlock
from tarflow.sample.inverse import Inversion, invert, jacobi, sequential
from tarflow.sample.kv_cache import KVCache, Window
from tarflow.sample.plan import Method, Plan, named_plan

GUIDED = SamplerConfig(guidance=1.5, temperature=0.7)
LABELS = torch.tensor([0, 2, -1])


def some_latents(flow, count=3, size=1.0):
    rng = torch.Generator().manual_seed(5)
    shape = (count, flow.config.tokens, flow.config.token_dim)
    return size * torch.randn(shape, generator=rng, dtype=flow.var.dtype)


def incremental_block(flow, index, labels=LABELS, sampler=None):
    latents = some_latents(flow, len(labels))
    return Inversion(flow, latents, labels, sampler).incremental_block(index)


def use_captures(monkeypatch):
    """Run as CUDA devices do, except that replays run the work again; return what is captured."""
    works = []

    def capture(work, *arguments):
        works.append(work)
        return run_and_replay(work, *arguments)

    monkeypatch.setattr(inverse, "capture", capture)
    monkeypatch.setattr(inverse, "supports_cuda_graphs", lambda _device: True)
    return works


@pytest.mark.parametrize("sampler", [None, GUIDED])
@pytest.mark.parametrize("index", [0, 1])
def test_scale_and_shift_do_not_depend_on_how_tokens_are_cut(random_flow, index, sampler):
    """One token, a window, or all at once, with few threads or many; and the training pass."""
    flow = random_flow(classes=3, layers=2)
    latents = some_latents(flow)
    block = flow.blocks[index]
    with torch.no_grad():
        tokens = sequential(incremental_block(flow, index, sampler=sampler), latents)
        everything = Window(0, 16)
        scale, shift = incremental_block(flow, index, sampler=sampler)(tokens, everything)
        torch.testing.assert_close(tokens[:, 1:], latents[:, 1:] * scale[:, :-1] + shift[:, :-1])
        for count in (1, 5, 16):
            fresh = incremental_block(flow, index, sampler=sampler)
            windows = [Window(at, min(count, 16 - at)) for at in range(0, 16, count)]
            parts = [fresh(window.read(tokens), window) for window in windows]
            torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), scale)
            torch.testing.assert_close(torch.cat([part[1] for part in parts], 1), shift)
        if sampler is None:
            log_scale, expected = block.coefficients(tokens, LABELS)
            torch.testing.assert_close(scale[:, :-1], log_scale.exp())
            torch.testing.assert_close(shift[:, :-1], expected)


@pytest.mark.parametrize("count", [3, 80])
def test_windows_with_a_past_attend_to_all_of_it(random_flow, count):
    """The fused kernel, which serves long windows, and plain products agree."""
    flow = random_flow(image_size=20, classes=3)  # 100 tokens
    tokens = some_latents(flow)
    with torch.no_grad():
        whole = incremental_block(flow, 0)(tokens, Window(0, 100))[1]
        fresh = incremental_block(flow, 0)
        fresh(tokens[:, :10], Window(0, 10))
        part = fresh(tokens[:, 10 : 10 + count], Window(10, count))[1]
    torch.testing.assert_close(part, whole[:, 10 : 10 + count])


def test_heads_in_parts_give_what_heads_together_give(random_flow, monkeypatch):
    flow = random_flow(classes=3, channels=32, head_dim=8)
    tokens = some_latents(flow)
    shifts = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        cache = KVCache(flow, 3, torch.float64)
        assert cache.parts == threads
        with torch.no_grad():
            block = IncrementalBlock(flow.blocks[0], cache, 3, LABELS)
            windows = [Window(at, 1) for at in range(16)]
            shifts.append(torch.cat([block(each.read(tokens), each)[1] for each in windows], 1))
    torch.testing.assert_close(shifts[0], shifts[1])
    torch.testing.assert_close(shifts[0], shifts[2])


@pytest.mark.parametrize("sampler", [None, GUIDED, SamplerConfig(guidance=1.0, annealed=False)])
@pytest.mark.parametrize("guess", ["latents", "zeros"])
@pytest.mark.parametrize("segments", [1, 2, 4, 15, 40])
def test_jacobi_iteration_finds_the_sequential_fixed_point(random_flow, segments, guess, sampler):
    """15 tokens have successors, so windows of every size but one do not divide them."""
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    given = latents.clone()
    method = Method(segments=segments, guess=guess, tolerance=0.0)
    expected = invert(flow, latents, LABELS, sampler)
    inverted = invert(flow, latents, LABELS, sampler, Plan(methods=(method,) * 3))
    torch.testing.assert_close(inverted, expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(latents, given)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("vectors", [False, True])
def test_every_method_inverts_a_starflow(random_flow, monkeypatch, vectors, captured):
    """With a start token all 16 tokens have predecessors, and condition tokens before them."""
    if captured:
        use_captures(monkeypatch)
    options = {"condition_tokens": 3, "condition_dim": 5} if vectors else {"classes": 3}
    flow = random_flow(family="starflow", layers=(1, 2, 1), head_dim=16, **options)
    latents, condition = some_latents(flow), torch.randn(3, 3, 5).double() if vectors else LABELS
    with torch.no_grad():
        for sampler in (None, replace(GUIDED, rule="gaussian-score")):
            expected = invert(flow, latents, condition, sampler)
            for segments in (1, 4, 16):
                plan = Plan(methods=(Method(segments=segments, tolerance=0.0),) * 3)
                inverted = invert(flow, latents, condition, sampler, plan)
                torch.testing.assert_close(inverted, expected, atol=1e-9, rtol=1e-9)
            if sampler is None:
                torch.testing.assert_close(flow(expected, condition)[0], latents)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_converged_tokens_leave_the_window_for_good(random_flow, monkeypatch, tolerance):
    """Work shrinks, and keys and values of converged tokens are those of their final values."""
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    block = incremental_block(flow, 0)
    windows = []
    original = IncrementalBlock.__call__

    def counted(self, tokens, window):
        assert tokens.shape[1] == window.count
        windows.append(window)
        return original(self, tokens, window)

    monkeypatch.setattr(IncrementalBlock, "__call__", counted)
    with torch.no_grad():
        result = jacobi(block, latents, Method(segments=1, tolerance=tolerance))
        starts = [window.start for window in windows]
        assert result.converged == 15
        assert result.iterations == len(windows) < 15
        assert starts == sorted(set(starts))
        assert all(window.start + window.count == 15 for window in windows)
        cached = [layer.cache[:, :, :15].clone() for layer in block.layers]
        block(result.tokens, Window(0, 16))
        for layer, kept in zip(block.layers, cached, strict=True):
            torch.testing.assert_close(kept, layer.cache[:, :, :15], atol=1e-12, rtol=1e-12)
        exact = sequential(incremental_block(flow, 0), latents)
    assert (result.tokens - exact).abs().max() < 20 * tolerance
    assert not torch.equal(result.tokens, exact)


def test_only_guesses_are_bounded(random_flow):
    """The fixed point lies far outside the bound and is reached all the same."""
    flow = random_flow(classes=3)
    latents = some_latents(flow, size=1.5)
    expected = invert(flow, latents, LABELS)
    assert expected.abs().max() > 3
    for segments in (1, 4):
        method = Method(segments=segments, tolerance=1e-12, bound=0.5)
        inverted = invert(flow, latents, LABELS, None, Plan(methods=(method,) * 3))
        torch.testing.assert_close(inverted, expected, atol=1e-9, rtol=1e-9)


def test_wild_guesses_do_not_spoil_the_solution(random_flow):
    """Guesses whose scale overflows: what is not a number never reaches a final token."""
    flow = random_flow(torch.float32, classes=3)
    block = flow.blocks[2]
    latents = some_latents(flow)
    with torch.no_grad():
        block.proj_in.weight *= 1e4
        first = block.permute(latents)[:, :1]
        block.proj_in.bias -= (first @ block.proj_in.weight.T).mean((0, 1))
        incremental = Inversion(flow, latents, LABELS, None).incremental_block(2)
        wild = incremental(torch.full_like(latents, 9.0), Window(0, 16))[0]
        method = Method(segments=1, tolerance=1e-6, bound=1e30)
        result = jacobi(incremental, latents, method)
        exact = sequential(Inversion(flow, latents, LABELS, None).incremental_block(2), latents)
    assert not wild.isfinite().all() or wild.max() > 1e30
    finite = exact.isfinite()
    assert torch.equal(result.tokens.isfinite(), finite)
    assert torch.allclose(result.tokens[finite], exact[finite], rtol=1e-3)


def test_tokens_left_when_iterations_run_out_are_solved_sequentially(random_flow, caplog):
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    plan = Plan(methods=(Method(segments=1, tolerance=1e-12, sweeps=2),) * 3)
    inverted = invert(flow, latents, LABELS, None, plan)
    torch.testing.assert_close(inverted, invert(flow, latents, LABELS))
    message = "have not converged after 2 Jacobi iterations; solving them sequentially"
    assert caplog.text.count(message) == 3


@pytest.mark.parametrize("sampler", [None, GUIDED])
def test_captured_steps_give_what_plain_steps_give(random_flow, monkeypatch, sampler):
    monkeypatch.setattr(inverse, "STEP_BUCKET", 4)
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    with torch.no_grad():
        expected = sequential(incremental_block(flow, 1, sampler=sampler), latents)
        captures = use_captures(monkeypatch)
        for start, graphs in ((0, 4), (6, 3)):
            begun = expected.clone()
            begun[:, start + 1 :] = math.nan
            block = incremental_block(flow, 1, sampler=sampler)
            block(expected[:, :start], Window(0, start)) if start else None
            inverted = sequential(block, latents, begun, start)
            torch.testing.assert_close(inverted, expected)
            assert len(captures) == graphs
            captures.clear()


@pytest.mark.parametrize("segments", [1, 3, 5])
def test_captured_iterations_give_what_plain_iterations_give(random_flow, monkeypatch, segments):
    monkeypatch.setattr(inverse, "JACOBI_BUCKET", 5)
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    method = Method(segments=segments, tolerance=1e-10)
    with torch.no_grad():
        expected = jacobi(incremental_block(flow, 1, sampler=GUIDED), latents, method)
        captures = use_captures(monkeypatch)
        inverted = jacobi(incremental_block(flow, 1, sampler=GUIDED), latents, method)
    torch.testing.assert_close(inverted.tokens, expected.tokens)
    assert inverted.converged == expected.converged == 15
    assert inverted.iterations <= expected.iterations + 1
    assert len(captures) == {1: 1, 3: 3, 5: 3}[segments]


def test_named_solvers(random_flow):
    flow = random_flow(classes=3)
    latents = some_latents(flow)
    expected = invert(flow, latents, LABELS)
    for name in ("sequential", "jacobi", "selective", "segmented:4"):
        plan = named_plan(name, 3, tolerance=1e-10)
        torch.testing.assert_close(invert(flow, latents, LABELS, None, plan), expected)
    assert str(named_plan("selective", 3, 0.5)) == "sequential, 2 jacobi"


@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_16_bit_sampling_stays_near_float32(random_flow, precision, most):
    flow = random_flow(torch.float32, classes=3)
    latents = some_latents(flow)
    expected = invert(flow, latents, LABELS)
    with autocast(precision, latents.device):
        rounded = invert(flow, latents, LABELS)
        iterated = invert(flow, latents, LABELS, None, named_plan("jacobi", 3, 1e-3))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - expected).abs().mean() < most * expected.abs().mean()
    assert (iterated - expected).abs().mean() < most * expected.abs().mean()


def test_unguided_blocks_cost_one_branch(random_flow, monkeypatch):
    flow = random_flow(classes=3)
    latents, labels = some_latents(flow), torch.tensor([0, 2, 1])
    rows = []
    original = IncrementalBlock.__call__

    def counted(self, tokens, window):
        rows.append(len(tokens) * (2 if self.sampler else 1))
        return original(self, tokens, window)

    monkeypatch.setattr(IncrementalBlock, "__call__", counted)
    top = SamplerConfig(guidance=1.5, guided_blocks="top:1")
    inverted = invert(flow, latents, labels, top)
    assert rows == [6] * 15 + [3] * 30
    with torch.no_grad():
        guided = Inversion(flow, latents, labels, SamplerConfig(guidance=1.5))
        tokens = guided.invert_block(2, latents, Method())
        plain = Inversion(flow, latents, labels, None)
        for index in (1, 0):
            tokens = plain.invert_block(index, tokens, Method())
    torch.testing.assert_close(patchify(inverted, flow.config), tokens)


def test_iteration_stops_where_only_rounding_is_left(random_flow):
    """bfloat16 rounds by more than the tolerance: iterations could only solve one token each."""
    flow = random_flow(torch.float32, image_size=20, classes=3)  # 100 tokens
    latents = some_latents(flow)
    method = Method(segments=1, tolerance=1e-4)
    with torch.inference_mode():
        exact = jacobi(incremental_block(flow, 0), latents, method)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = jacobi(incremental_block(flow, 0), latents, method)
    assert exact.converged == 99
    assert rounded.converged < 99
    assert rounded.iterations < 2 * exact.iterations


def test_iteration_goes_through_a_rising_change(random_flow, monkeypatch):
    """A large change is not rounding, however long it has not fallen."""
    monkeypatch.setattr(inverse, "PATIENCE", 0)
    flow = random_flow(torch.float32, image_size=20, classes=3)
    latents = some_latents(flow, size=2.0)
    with torch.inference_mode():
        result = jacobi(incremental_block(flow, 0), latents, Method(segments=1, tolerance=1e-4))
    assert result.converged == 99
