"""How a run is executed is chosen once, and every choice says why."""

import platform
from dataclasses import replace

import pytest
import torch
from training_runs import config

from tarflow import execution
from tarflow.__main__ import main
from tarflow.config import EvaluationConfig, ExecutionConfig, NoiseConfig, RunConfig
from tarflow.config_files import to_yaml
from tarflow.errors import UserError
from tarflow.execution import choose_precision, resolve_execution
from tarflow.model_config import ModelConfig
from tarflow.record import read_result

CHOICES = ("device", "precision", "state", "micro-batch", "kernels", "residuals", "threads")


@pytest.mark.parametrize(
    ("instructions", "channels", "chosen"),
    [
        ({"avx512_bf16": True}, 64, "bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": True}, 256, "bfloat16"),
        ({"avx512_bf16": True}, 48, "float32"),  # too narrow
        ({"avx512_f": True}, 256, "float32"),
        ({}, 256, "float32"),  # not of this family of processors
    ],
)
def test_a_cpu_trains_in_the_faster_precision(instructions, channels, chosen, monkeypatch):
    if platform.machine() == "x86_64":
        assert instructions.keys() <= torch.cpu.get_capabilities().keys()  # spelt as there
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    run = RunConfig(model=ModelConfig(channels=channels, head_dim=16))
    assert choose_precision(torch.device("cpu"), run)[0] == chosen


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_uniform_noise_is_never_rounded_unasked(device, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    gaussian = RunConfig(model=ModelConfig(channels=256))
    assert choose_precision(torch.device(device), gaussian)[0] == "bfloat16"
    uniform = replace(gaussian, noise=NoiseConfig(type="uniform"))
    precision, why = choose_precision(torch.device(device), uniform)
    assert precision == "float32"
    assert "uniform noise" in why


def test_asking_for_bfloat16_with_uniform_noise_is_warned_of_in_one_line(tmp_path, capsys):
    run = config(
        execution=ExecutionConfig(device="cpu"),
        images=16,
        noise=NoiseConfig(type="uniform"),
        evaluation=EvaluationConfig(samples=0, decoder_images=4),
    )
    for precision, warned in (("bfloat16", 1), ("float32", 0)):
        file = tmp_path / f"{precision}.yaml"
        file.write_text(to_yaml(replace(run, precision=precision)))
        assert main(["train", str(file), "--out", str(tmp_path / precision)]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert sum("can cost about 0.06 bits per dimension" in line for line in lines) == warned


def test_every_choice_has_a_reason():
    chosen = resolve_execution(config(execution=ExecutionConfig()))
    assert chosen.reasons.keys() == set(CHOICES)
    assert all(chosen.reasons.values())
    assert (chosen.workers, chosen.micro_batch, chosen.first) == (1, 16, True)
    assert not chosen.sharded
    assert not chosen.cuda_graphs


def test_what_the_config_sets_is_taken_and_said():
    asked = ExecutionConfig(device="cpu", threads=1, micro_batch=5, fused=False)
    chosen = resolve_execution(config(execution=asked))
    assert (chosen.device.type, chosen.threads, chosen.micro_batch) == ("cpu", 1, 5)
    assert chosen.kernels == "eager"
    reasons = {chosen.reasons[name] for name in ("device", "threads", "micro-batch", "precision")}
    assert reasons == {"set in the config"}
    with pytest.raises(UserError, match="no CUDA device"):
        resolve_execution(config(execution=ExecutionConfig(device="cuda")))


def test_without_kernels_the_row_and_the_reason_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(execution, "compiled_kernels", lambda _: None)
    short = replace(config(precision="float32"), images=32)
    (tmp_path / "run.yaml").write_text(to_yaml(short))
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().err
    for name in CHOICES:
        assert f"\n{name} " in f"\n{printed}", name
    assert "g++ is missing or failed" in printed
    assert (tmp_path / "run/execution.txt").read_text() in printed
    assert read_result(tmp_path / "run")["run"]["kernels"] == "eager"


@pytest.mark.parametrize(
    ("precision", "changes", "kernels", "residuals"),
    [
        ("bfloat16", {}, "fused", "bfloat16"),
        ("bfloat16", {"residuals": "float32"}, "fused", "float32"),
        ("float32", {}, "fused", "float32"),
        ("float64", {}, "eager", "float64"),
        ("bfloat16", {"fused": False}, "eager", "float32"),
    ],
)
def test_a_gpu_trains_by_its_own_kernels(precision, changes, kernels, residuals, monkeypatch):
    gpu, asked = torch.device("cuda", 0), ExecutionConfig(device="cuda", **changes)
    monkeypatch.setattr(execution, "supports_triton", lambda _: True)
    monkeypatch.setattr(execution, "choose_device", lambda _: gpu)
    monkeypatch.setattr(execution, "memory_bytes", lambda *_: 80e9)
    monkeypatch.setattr(execution, "describe_device", lambda _: "H100")
    chosen = resolve_execution(config(precision=precision, execution=asked))
    assert (chosen.kernels, chosen.residuals) == (kernels, residuals)
    monkeypatch.setattr(execution, "supports_triton", lambda _: False)
    old = resolve_execution(config(precision=precision, execution=asked))
    assert (old.kernels, old.residuals == "bfloat16") == ("eager", False)
