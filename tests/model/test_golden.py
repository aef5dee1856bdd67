"""Every tensor of the reference files is reproduced; `--golden FILE` checks another file."""

import json

import pytest
import torch
from golden_files import TOLERANCE, built, compute, is_starflow, outputs, read, weights

from tarflow.model.patches import patchify
from tarflow.model_config import STARFLOW, ModelConfig


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def reference(golden, request):
    return read(golden, request.param)


@pytest.fixture(scope="module")
def flow(reference):
    return built(*reference)


def test_config_is_inferred_from_shapes(reference, flow):
    metadata, tensors = reference
    if is_starflow(metadata):
        assert flow.config.depths == tuple(json.loads(metadata["layers"]))
        assert {name: getattr(flow.config, name) for name in STARFLOW} == STARFLOW
        return
    stated = ModelConfig(
        image_size=int(metadata["img"]),
        image_channels=int(metadata["in_channels"]),
        classes=int(metadata["classes"]),
        patch=int(metadata["patch"]),
        channels=int(metadata["channels"]),
        blocks=int(metadata["blocks"]),
        layers=int(metadata["layers"]),
        volume_preserving=metadata["vp"] == "True",
    )
    assert flow.config == stated
    assert set(weights(tensors)) == set(flow.state_dict())


def test_every_output_is_reproduced(reference, flow):
    _, tensors = reference
    wrong = {}
    names = outputs(tensors)
    for name, expected in names.items():
        computed = compute(flow, tensors, name)
        if expected.ndim == 4 and computed.ndim == 3:  # STARFlow's tokens on their grid
            image = name == "forward.latents"
            expected = patchify(expected, flow.config) if image else expected.flatten(1, 2)
        difference = (computed - expected).abs().max().item()
        if not difference <= TOLERANCE * expected.abs().max().item():
            wrong[name] = difference
    assert names
    assert not wrong
