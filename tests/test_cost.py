"""Costs against published sizes, against counting by hand, and against what they must obey."""

from dataclasses import replace

import pytest

from tarflow import cost
from tarflow.config import DataConfig, ExecutionConfig, ModelConfig, OptimConfig, RunConfig

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
    whole = cost.memory(run).activations
    half = cost.memory(replace(run, execution=ExecutionConfig(workers=2))).activations
    eighth = cost.memory(replace(run, execution=ExecutionConfig(micro_batch=8))).activations
    narrow = cost.memory(replace(run, precision="bfloat16")).activations
    assert whole == 2 * half == 8 * eighth == 2 * narrow
    assert cost.memory(run).total == cost.memory(run).state + whole


@pytest.mark.parametrize("name", sorted(cost.ACCELERATORS))
def test_accelerators_have_rates_in_a_believable_order(name):
    device = cost.ACCELERATORS[name]
    assert 1e12 < device.flops["float32"] <= device.flops["bfloat16"] < 1e16
    assert 8e9 < device.memory < 1e12
    assert 0.1 < device.price < 20


def test_cost_ignores_everything_but_the_size_of_the_run():
    run = RunConfig(images=640)
    same = replace(run, seed=3, data=DataConfig(name="leaves"), optim=OptimConfig(lr=1e-4))
    assert cost.run_flops(run) == cost.run_flops(same)
