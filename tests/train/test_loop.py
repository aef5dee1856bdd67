import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from training_runs import Stop, config, losses, stop_at

from tarflow.config import ExecutionConfig, OptimConfig
from tarflow.errors import UserError
from tarflow.identity import run_id
from tarflow.model.flow import TarFlow
from tarflow.record import CURVE, RUNS, read_result, read_table
from tarflow.run import run
from tarflow.train import optim
from tarflow.train.checkpoint import load_checkpoint
from tarflow.train.loop import train
from tarflow.train.schedule import learning_rate
from tarflow.train.step import Diverged, TrainStep

FROZEN = [0.5277317599358383, 0.1798776064813063, 0.05658603548699295, -0.01013602491922055]


def test_twenty_steps_give_the_losses_they_gave_before(tmp_path):
    """A change that should not alter the numbers must not alter these."""
    found = losses(train(config(), tmp_path))
    assert len(found) == 20
    assert found[::5] == pytest.approx(FROZEN, rel=1e-7)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    whole = train(config(), tmp_path / "whole")
    with pytest.raises(Stop):
        train(config(), tmp_path / "cut", stop_at(160))
    reached = load_checkpoint(tmp_path / "cut/state")[1]["images"]
    assert 0 < reached < 320
    resumed = train(config(), tmp_path / "cut")
    assert losses(resumed) == losses(whole)
    for name, tensor in whole.ema.items():
        assert torch.equal(resumed.ema[name], tensor), name


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path):
    with pytest.raises(Stop):
        train(config(), tmp_path, stop_at(160))
    states = sorted((tmp_path / "state").glob("*.safetensors"))
    assert len(states) == 2
    before = load_checkpoint(tmp_path / "state")[1]["images"]
    states[-1].write_bytes(states[-1].read_bytes()[:-1000])
    assert load_checkpoint(tmp_path / "state")[1]["images"] < before
    states[0].write_bytes(b"x")
    assert load_checkpoint(tmp_path / "state") is None


def test_micro_batches_change_nothing(tmp_path):
    small = config(execution=ExecutionConfig(threads=1, micro_batch=5))
    expected = losses(train(config(), tmp_path / "a"))
    assert losses(train(small, tmp_path / "b")) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("limit", [1, 3, 16])
def test_a_pass_that_does_not_fit_in_memory_is_halved_and_remembered(tmp_path, monkeypatch, limit):
    forward, tried = TarFlow.forward, []

    def bounded(flow, images, labels=None):
        tried.append(len(images))
        if len(images) > limit:
            torch.empty(2**60, dtype=torch.uint8)  # more than any allocator has
        return forward(flow, images, labels)

    expected = losses(train(config(), tmp_path / "whole"))
    monkeypatch.setattr(TarFlow, "forward", bounded)
    with pytest.raises(Stop):
        train(config(), tmp_path / "small", stop_at(160))
    fitting = {1: 1, 3: 2, 16: 16}[limit]
    halves = [batch for batch in (16, 8, 4, 2, 1) if batch >= fitting]
    assert tried[: len(halves)] == halves
    assert load_checkpoint(tmp_path / "small/state")[1]["micro_batch"] == fitting
    tried.clear()
    resumed = train(config(), tmp_path / "small")
    assert set(tried) == {fitting}  # larger ones are not tried again
    assert losses(resumed) == pytest.approx(expected, rel=1e-11)


def test_one_image_too_many_for_the_memory_is_a_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(TarFlow, "forward", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(UserError, match="one image does not fit"):
        train(config(), tmp_path)


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(TarFlow, "forward", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        train(config(), tmp_path)


def test_computing_activations_again_changes_nothing(tmp_path):
    again = config(execution=ExecutionConfig(threads=1, checkpoint_activations=True))
    calls = []

    def kept(tensor):
        calls.append(tensor.numel())
        return tensor

    sums = []
    for number, choice in enumerate((config(), again)):
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            state = train(replace(choice, images=32), tmp_path / str(number))
        sums.append((sum(calls), losses(state)))
        calls.clear()
    assert sums[1][1] == sums[0][1]
    assert sums[1][0] < 0.7 * sums[0][0]


def test_muon_learns_resumes_and_owns_the_hidden_matrices(tmp_path):
    muon = config(precision="float32", optim=OptimConfig(optimizer="muon", warmup_images=64))
    adam = replace(muon, optim=replace(muon.optim, optimizer="adamw"))
    assert run_id(muon) != run_id(adam)
    whole = train(muon, tmp_path / "whole")
    assert losses(whole)[-1] < losses(whole)[0] - 0.2
    adamw, second = whole.optimizers
    names = {parameter: name for name, parameter in whole.flow.named_parameters()}
    hidden = {names[p] for p in second.param_groups[0]["params"]}
    ends = ("qkv.weight", "proj.weight", "main.0.weight", "main.2.weight")
    assert hidden == {n for n in names.values() if n.endswith(ends)}
    assert hidden | {names[p] for p in adamw.param_groups[0]["params"]} == set(names.values())
    with pytest.raises(Stop):
        train(muon, tmp_path / "cut", stop_at(160))
    resumed = train(muon, tmp_path / "cut")
    assert losses(resumed) == losses(whole)
    for name, tensor in whole.ema.items():
        assert torch.equal(resumed.ema[name], tensor), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler itself warns
def test_compiled_layers_give_the_same_losses(tmp_path):
    compiled = config(execution=ExecutionConfig(threads=1, compile=True))
    expected = losses(train(config(), tmp_path / "plain"))
    assert losses(train(compiled, tmp_path / "compiled")) == pytest.approx(expected, rel=1e-9)


def test_a_machine_without_a_compiler_is_told_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match="needs a C compiler on this machine"):
        train(config(execution=ExecutionConfig(threads=1, compile=True)), tmp_path / "run")


def test_nothing_depends_on_the_budget_before_the_cooldown(tmp_path):
    short, long = config(), config(images=640)
    both = [train(c, tmp_path / str(c.images)) for c in (short, long)]
    rows = [{row["images"]: row["lr"] for row in state.curve} for state in both]
    shared = [images for images in rows[0] if images in rows[1] and images <= 0.8 * 320]
    assert len(shared) > 5
    assert all(rows[0][images] == rows[1][images] for images in shared)
    assert both[0].curve[-1]["lr"] < 0.2 * short.optim.lr


def test_divergence_is_a_failed_row_that_names_the_block(tmp_path, monkeypatch):
    update = TrainStep.__call__

    def poisoned(step, *batch):
        if step.state.images == 160:
            step.state.flow.blocks[1].proj_out.bias.data.fill_(-1e5)
        return update(step, *batch)

    monkeypatch.setattr(TrainStep, "__call__", poisoned)
    with pytest.raises(Diverged, match=r"block 1 .* after 160 images"):
        train(config(), tmp_path / "a")
    row = run(config(), tmp_path / "b", label="poisoned")
    assert row["status"] == "failed"
    assert "block 1" in row["error"]
    assert "block 1" in (tmp_path / "b/error.txt").read_text()
    monkeypatch.undo()
    assert run(config(), tmp_path / "b")["status"] == "done"


def test_a_last_step_that_diverges_is_a_failed_row_as_well(tmp_path):
    """Only the scores show it."""
    wild = replace(config().optim, lr=1e30, warmup_images=0)
    row = run(config(optim=wild, images=16), tmp_path)
    assert row["status"] == "failed"
    assert row["error"] == "Diverged: held-out images have no finite score after 16 images"


def test_a_run_leaves_a_complete_folder_and_is_not_trained_twice(tmp_path):
    row = run(config(precision="float32"), tmp_path, label="c16")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "config.yaml",
        "curve.parquet",
        "execution.txt",
        "images.parquet",
        "model.safetensors",
        "result.json",
    }
    assert set(row) <= set(RUNS.names)
    missing = set(RUNS.names) - set(row) - {"parent_id", "error"}
    assert not missing
    assert read_table(tmp_path / "curve.parquet").schema.equals(CURVE)
    pixels = read_table(tmp_path / "images.parquet").to_pandas()
    assert len(pixels) == 500
    assert pixels.bpd.mean() == pytest.approx(row["bpd"])
    written = (tmp_path / "result.json").stat().st_mtime_ns
    assert json.dumps(run(config(precision="float32"), tmp_path)) == json.dumps(
        read_result(tmp_path)["run"]
    )
    assert (tmp_path / "result.json").stat().st_mtime_ns == written


def test_the_average_weighs_the_past_by_a_power_of_the_images_seen():
    width, batch, steps = 0.1, 8, 4000
    exponent = optim.ema_exponent(width)
    average = torch.zeros(1, dtype=torch.float64)
    square = torch.zeros(1, dtype=torch.float64)
    for step in range(1, steps + 1):
        decay = optim.ema_decay(exponent, step * batch, batch)
        now = torch.tensor([step / steps], dtype=torch.float64)
        optim.update_ema([average, square], [now, now**2], decay)
    spread = (square - average**2).sqrt().item()
    assert spread == pytest.approx(width, rel=0.01)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_rates_rise_to_the_peak_and_end_near_zero(schedule):
    choice = OptimConfig(lr=1.0, schedule=schedule, warmup_images=100)
    rates = [learning_rate(choice, images, 1000) for images in range(0, 1001, 10)]
    assert rates[0] == 0
    assert max(rates) == rates[10] == 1
    assert rates[-1] <= 0.01
    assert all(a <= b for a, b in pairwise(rates[:11]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
