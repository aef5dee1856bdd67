"""Short training runs that several tests share, and ways to interrupt and compare them."""

from dataclasses import replace

import torch

from tarflow import data
from tarflow.config import DataConfig, EvaluationConfig, ExecutionConfig, OptimConfig, RunConfig
from tarflow.model_config import ModelConfig
from tarflow.train.schedule import shared_images
from tarflow.train.trunk import Trunk

CLOCKS = "seconds"  # a column that no two runs share


def config(**changes):
    plain = RunConfig(
        model=ModelConfig(patch=7, channels=16, head_dim=8, blocks=2, layers=1, classes=10),
        data=data.hash_data(DataConfig()),
        optim=OptimConfig(lr=5e-3, warmup_images=64),
        images=320,
        batch=16,
        precision="float64",
        evaluation=EvaluationConfig(decoder_images=50, samples=0),
        execution=ExecutionConfig(threads=1, checkpoint_seconds=0, report_seconds=0),
    )
    return replace(plain, **changes)


def losses(state):
    return [row["loss"] for row in state.curve]


class Stop(Exception):
    pass


def stop_at(images):
    def report(progress):
        if progress["images"] == images:
            raise Stop

    return report


SHORT, MIDDLE, LONG = (config(precision="float32", images=images) for images in (160, 320, 640))


def family(folder, *shorter):
    """Return where the longest run leaves its states for these."""
    return Trunk(folder / "trunk", "longest", frozenset(map(shared_images, shorter)))


def assert_same(one, other):
    """Compare two training states: weights, average, optimizer, loss curve."""
    assert one.images == other.images
    for name, tensor in other.flow.state_dict().items():
        assert torch.equal(one.flow.state_dict()[name], tensor), name
        assert torch.equal(one.ema[name], other.ema[name]), name
    assert rows(one.curve) == rows(other.curve)


def rows(curve):
    return [{name: value for name, value in row.items() if name != CLOCKS} for row in curve]
