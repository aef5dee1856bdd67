"""Costs against published sizes, against counting by hand, and against what they must obey."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tarflow import cost
from tarflow.config import DataConfig, ExecutionConfig, OptimConfig, RunConfig
from tarflow.config_files import to_dict
from tarflow.model_config import ModelConfig

AFHQ = ModelConfig(
    image_size=256, image_channels=3, classes=3, patch=8, channels=768, blocks=8, layers=8
)


def test_published_model_has_its_published_size():
    """AFHQ 256, patch 8, as released: 8 blocks of 8 layers, 768 channels."""
    assert (AFHQ.tokens, AFHQ.token_dim, AFHQ.dims) == (1024, 192, 3 * 256**2)
    assert cost.params_total(AFHQ) == 463_481_856


def test_volume_preserving_drops_the_scale_outputs():
    shift_only = replace(AFHQ, volume_preserving=True)
    per_block = (AFHQ.channels + 1) * AFHQ.token_dim
    assert cost.params_total(AFHQ) - cost.params_total(shift_only) == AFHQ.blocks * per_block
    assert cost.params(AFHQ) - cost.params(shift_only) == (
        AFHQ.blocks * AFHQ.channels * AFHQ.token_dim
    )


def test_flops_agree_with_a_list_of_matrix_products():
    """Every product (rows, inner, columns) of one image, written out for a small model."""
    model = ModelConfig(image_size=8, patch=4, channels=32, head_dim=16, blocks=3, layers=2)
    tokens, width, values = 4, 32, 16
    pairs = tokens * (tokens + 1) // 2  # causal: each token sees itself and those before it
    layer = [
        (tokens, width, 3 * width),  # query, key, value
        (tokens, width, width),  # attention output
        (tokens, width, 4 * width),
        (tokens, 4 * width, width),
    ]
    attention = 2 * (2 * pairs * width)  # scores, then weighted values, over all heads
    ends = [(tokens, values, width), (tokens, width, 2 * values)]
    products = 2 * layer + ends
    forward = 3 * (sum(2 * a * b * c for a, b, c in products) + 2 * attention)
    assert cost.forward_flops(model) == forward
    assert cost.training_flops(model) == 3 * forward
    assert cost.run_flops(RunConfig(model=model, images=640)) == 640 * 3 * forward


@pytest.mark.parametrize(("size", "channels", "printed"), [(64, 768, 1.10), (32, 256, 1.08)])
def test_counting_all_pairs_gives_the_ratio_of_decision_004(size, channels, printed):
    model = ModelConfig(image_size=size, image_channels=3, patch=2, channels=channels, layers=8)
    tokens = model.tokens
    masked = 4 * channels * tokens * (tokens - 1) // 2 * model.blocks * model.layers
    ratio = 1 + masked / cost.forward_flops(model)
    assert ratio == pytest.approx(1 + (tokens - 1) / (12 * channels + tokens + 1), abs=1e-3)
    assert ratio == pytest.approx(printed, abs=5e-3)


def test_label_table_and_positions_are_the_only_weights_outside_the_laws():
    """`params_total - params` is biases, norms, positions and classes: linear in the width."""
    small, large = (
        ModelConfig(channels=c, head_dim=16, classes=10, image_size=32) for c in (64, 128)
    )
    rest = [cost.params_total(m) - cost.params(m) for m in (small, large)]
    outputs = small.blocks * cost.outputs_per_token(small)  # the one bias without the width
    assert rest[1] - outputs == 2 * (rest[0] - outputs)


def test_memory_follows_precision_average_and_share_of_a_worker():
    run = RunConfig(model=AFHQ, batch=64, images=64, precision="float32")
    values = 4 * cost.params_total(AFHQ)
    assert cost.memory(run).state == 5 * values
    assert cost.memory(replace(run, optim=OptimConfig(ema=0.0))).state == 4 * values
    assert cost.memory(replace(run, precision="float64")).state == 10 * values
    one_moment = cost.memory(replace(run, optim=OptimConfig(optimizer="muon"))).state
    assert 4 * values < one_moment < 4.03 * values
    whole = cost.memory(run).activations
    half = cost.memory(with_execution(run, workers=2)).activations
    eighth = cost.memory(with_execution(run, micro_batch=8)).activations
    double = cost.memory(replace(run, precision="float64")).activations
    narrow = cost.memory(replace(run, precision="bfloat16"))
    again = cost.memory(with_execution(run, checkpoint_activations=True)).activations
    assert whole == 2 * half == 8 * eighth == double / 2
    assert whole / 2 < narrow.activations < whole / 1.7  # residuals stay in float32
    assert narrow.copies == 2 * cost.params(AFHQ)
    assert whole / 16 < again < whole / 9  # one of 16 values is kept, and a layer is at work
    assert cost.memory(run).total == 5 * values + whole


def test_state_is_sharded_when_one_device_cannot_hold_it_with_a_sensible_pass():
    run = RunConfig(model=AFHQ, batch=64, images=64, precision="bfloat16")
    run = with_execution(run, workers=8)
    one = cost.memory(with_execution(run, micro_batch=1))  # of 1024 tokens: a sensible pass
    enough = (one.total + 1) / cost.ROOM
    assert not cost.sharded(run, enough)
    assert cost.sharded(run, enough - 2)
    assert not cost.sharded(with_execution(run, workers=1), enough / 2)
    assert not cost.sharded(with_execution(run, sharding="replicate"), enough / 2)
    assert cost.sharded(with_execution(run, sharding="shard"), enough * 2)
    sharded = cost.memory(run, enough / 2)
    assert sharded.state == pytest.approx(one.state / 8, rel=1e-9)
    assert 0 < sharded.copies < one.state / 20  # two of 64 layers
    assert sharded.total <= cost.ROOM * enough / 2


def test_micro_batch_is_halved_until_it_fits_unless_it_is_asked_for():
    run = RunConfig(model=AFHQ, batch=64, images=64, precision="bfloat16")
    whole = cost.memory(run)
    room = (whole.state + whole.copies + whole.activations / 3) / cost.ROOM
    assert cost.memory(run, room).activations == whole.activations / 4
    asked = with_execution(run, micro_batch=64)
    assert cost.memory(asked, room) == whole


MEASURE = """
import json, sys, torch
from dataclasses import replace
from tarflow import config, config_files, cost, device, execution, model_config
from tarflow.train import state as states
from tarflow.train import step
run = config_files.from_dict(config.RunConfig, json.loads(sys.argv[1]))
torch.set_num_threads(1)
device.keep_freed_memory = lambda: None
def train(run):
    chosen = execution.resolve_execution(run)
    update = step.TrainStep(states.new_state(run, chosen), run, chosen)
    size, model = run.model.image_size, run.model
    pixels = torch.zeros(run.batch, model.image_channels, size, size, dtype=torch.uint8)
    for _ in range(2):
        update(pixels, None)
train(replace(run, model=model_config.ModelConfig(channels=64), batch=2))  # loads libraries
status = open("/proc/self/status").read()
before = int(status.split("VmRSS:")[1].split()[0])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
train(run)
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print((peak - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's peak")
@pytest.mark.parametrize(("precision", "again"), [("bfloat16", False), ("float32", True)])
def test_memory_is_that_of_a_process(precision, again):
    """With an allocator that gives freed memory back, so that fragments do not count."""
    model = ModelConfig(image_size=32, patch=2, channels=96, head_dim=32, blocks=4, layers=2)
    execution = ExecutionConfig(device="cpu", micro_batch=16, checkpoint_activations=again)
    run = RunConfig(model=model, batch=32, images=3200, precision=precision, execution=execution)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(to_dict(run))],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(measured.stdout) == pytest.approx(cost.memory(run).total, rel=0.25)


def with_execution(run, **changes):
    return replace(run, execution=replace(run.execution, **changes))


@pytest.mark.parametrize("name", sorted(cost.ACCELERATORS))
def test_accelerators_have_rates_in_a_believable_order(name):
    device = cost.ACCELERATORS[name]
    assert 1e12 < device.flops["float32"] <= device.flops["bfloat16"] < 1e16
    assert 8e9 < device.memory < 1e12
    assert 0.1 < cost.price_of(name).hourly < 20


def test_cost_ignores_everything_but_the_size_of_the_run():
    run = RunConfig(images=640)
    same = replace(run, seed=3, data=DataConfig(name="leaves"), optim=OptimConfig(lr=1e-4))
    assert cost.run_flops(run) == cost.run_flops(same)
