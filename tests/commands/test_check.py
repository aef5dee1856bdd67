import torch

from tarflow.__main__ import main
from tarflow.config import DataConfig, NoiseConfig, RunConfig
from tarflow.model.weights import save_model


def test_it_prints_a_table_and_fails_on_a_weight_that_is_no_number(tmp_path, random_flow, capsys):
    flow = random_flow(torch.float32, classes=3)
    path = tmp_path / "[x]" / "model.safetensors"
    config = RunConfig(
        model=flow.config, noise=NoiseConfig(std=0.1), data=DataConfig(name="elsewhere")
    )
    save_model(path, flow.state_dict(), config)
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("pass") == 10
    assert "FAIL" not in printed
    assert "[x]/model.safetensors" in "".join(line.strip() for line in printed.splitlines())
    with torch.no_grad():
        flow.blocks[1].proj_out.bias[2] = float("nan")
    save_model(path, flow.state_dict(), config)
    assert main(["check", str(path)]) == 1
    assert "FAIL" in capsys.readouterr().out
