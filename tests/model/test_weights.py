"""Models survive the disk; files that are not models are refused in one line."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tarflow.config import RunConfig
from tarflow.config_files import to_dict
from tarflow.errors import UserError
from tarflow.model.weights import build, config_from_state, load_model, save_model
from tarflow.model_config import ModelConfig


@pytest.fixture
def saved(tmp_path, random_flow):
    flow = random_flow(torch.float32, classes=3, volume_preserving=True)
    path = tmp_path / "run" / "model.safetensors"
    config = RunConfig(model=flow.config, seed=7)
    save_model(path, flow.state_dict(), config)
    return path, flow, config


def test_model_comes_back_as_it_was(saved):
    path, flow, config = saved
    before = torch.get_rng_state()
    loaded, found = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == config
    assert not loaded.training
    for name, tensor in flow.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    images = torch.randn(2, 2, 8, 8)
    assert torch.equal(loaded(images)[0], flow(images)[0])
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_broken_files_are_refused_by_name(saved, tmp_path):
    path, flow, config = saved
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        load_model(tmp_path / "absent.safetensors")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"text", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a whole safetensors file"):
            load_model(path)
    save_file({"weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match="no run config"):
        load_model(path)
    save_file({"weight": torch.ones(1)}, path, metadata={"config": json.dumps(to_dict(config))})
    with pytest.raises(UserError, match=r"does not fit its config: Missing key"):
        load_model(path)
    save_model(path, flow.state_dict(), RunConfig(model=ModelConfig(channels=64)))
    with pytest.raises(UserError, match="does not fit its config"):
        load_model(path)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("volume_preserving", [False, True])
def test_config_is_inferred_from_published_names_and_shapes(
    random_flow, classes, volume_preserving
):
    flow = random_flow(
        classes=classes, volume_preserving=volume_preserving, layers=2, patch=4, blocks=11
    )
    masks = {f"blocks.{i}.attn_mask": torch.ones(4, 4).tril() for i in range(11)}
    state = {**flow.state_dict(), **masks}
    assert config_from_state(state, image_channels=2, head_dim=8) == flow.config
    assert build(flow.config, state).config == flow.config
    with pytest.raises(UserError, match="give the right image_channels"):
        config_from_state(state, image_channels=3, head_dim=8)
    with pytest.raises(UserError, match="not the weights of a TarFlow"):
        config_from_state(masks)
