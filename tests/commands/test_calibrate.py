import re

import torch

from tarflow.__main__ import main
from tarflow.config import DataConfig, NoiseConfig, RunConfig
from tarflow.model.weights import save_model
from tarflow.record import read_json


def test_every_column_is_explained_below_the_table(tmp_path, random_flow, capsys):
    flow = random_flow(torch.float32, image_size=28, image_channels=1, patch=14)
    config = RunConfig(model=flow.config, data=DataConfig(), noise=NoiseConfig(std=0.1))
    save_model(tmp_path / "model.safetensors", flow.state_dict(), config)
    assert main(["calibrate", str(tmp_path), "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    [heads] = [line for line in printed.splitlines() if line.startswith("┃")]
    _block, *columns = [head.strip() for head in heads.strip("┃").split("┃")]
    explained = [
        name
        for names in re.findall(r"^(\w[\w.,% ]*): ", printed, re.M)
        for name in names.split(", ")
    ]
    assert columns == [name for name in explained if name in columns]
    assert read_json(tmp_path / "plan.json")
