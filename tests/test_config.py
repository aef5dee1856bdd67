"""A config is a value with a name: it survives YAML, and a mistake in it costs one clear line."""

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
    round_images,
)
from tarflow.config_files import from_dict, read_yaml, to_dict, to_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.identity import run_id, with_hash
from tarflow.model_config import ModelConfig

PLAIN = RunConfig(data=DataConfig(hash="0123456789abcdef"), precision="float32")


def test_plain_config_keeps_its_frozen_name():
    """If this fails, every finished run would be trained again: see `run_id` before editing."""
    assert run_id(PLAIN) == "9c7353c205"


@given(
    lr=st.floats(1e-9, 10, allow_nan=False),
    std=st.floats(1e-6, 9.9),
    heads=st.integers(1, 8),
    steps=st.integers(1, 10**6),
    schedule=st.sampled_from(["wsd", "cosine"]),
    precision=st.sampled_from(["float32", "bfloat16", "float64"]),
)
def test_yaml_round_trip_keeps_config_and_name(lr, std, heads, steps, schedule, precision):
    config = replace(
        PLAIN,
        model=ModelConfig(channels=16 * heads, head_dim=16),
        noise=NoiseConfig(std=std),
        optim=OptimConfig(lr=lr, schedule=schedule),
        images=64 * steps,
        precision=precision,
    )
    back = from_dict(RunConfig, yaml.safe_load(to_yaml(config, comment="what this is\nand why")))
    assert back == config
    assert run_id(back) == run_id(config)


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": SamplerConfig(guidance=2.0, part="shift", temperature=0.9, denoise=0.5)},
        {"execution": ExecutionConfig(device="cpu", workers=4, threads=3, micro_batch=8)},
        {"evaluation": EvaluationConfig(split="test", draws=4, samples=0)},
        {"execution": ExecutionConfig(checkpoint_seconds=1.0, report_seconds=9.0)},
    ],
)
def test_how_a_run_is_carried_out_leaves_its_name_alone(change):
    assert run_id(replace(PLAIN, **change)) == run_id(PLAIN)


def variants():
    """Every hashed field, moved off its value in PLAIN by the smallest valid change."""
    others = {
        "image_size": 32,
        "image_channels": 3,
        "classes": 10,
        "patch": 7,
        "channels": 128,
        "blocks": 5,
        "layers": 3,
        "head_dim": 32,
        "volume_preserving": True,
        "first_block": "backwards",
        "start_token": True,
        "scale": "softplus",
        "soft_clip": 4.0,
        "final_norm": True,
        "positions": "rope",
        "token_order": "channel-last",
        "condition_tokens": 2,
        "condition_dim": 3,
        "conditioned": "top",
        "hash": "f" * 16,
        "flip": True,
        "type": "uniform",
        "std": 0.2,
        "lr": 2e-3,
        "base_channels": 32,
        "optimizer": "muon",
        "beta1": 0.8,
        "beta2": 0.99,
        "weight_decay": 0.0,
        "clip": 2.0,
        "schedule": "cosine",
        "warmup_images": 2048,
        "cooldown": 0.3,
        "ema": 0.1,
        "label_drop": 0.2,
        "output_penalty": 1e-4,
        "images": 8192,
        "batch": 32,
        "seed": 1,
        "precision": "float64",
        "numerics_version": 99,
    }
    for key, value in to_dict(PLAIN).items():
        if key in ("sampler", "evaluation", "execution"):
            continue
        if not isinstance(value, dict):
            yield key, replace(PLAIN, **{key: others[key]})
            continue
        for name in value.keys() - {"name"}:  # a path of the data names no numbers
            changed = {name: others[name]}
            if name.startswith("condition_"):  # they come together
                changed = {"condition_tokens": 2, "condition_dim": 3, "classes": 0, **changed}
            part = replace(getattr(PLAIN, key), **changed)
            yield f"{key}.{name}", replace(PLAIN, **{key: part})


def test_every_field_that_changes_the_numbers_changes_the_name():
    names = {path: run_id(config) for path, config in variants()}
    assert len(names) == 41
    assert len({*names.values(), run_id(PLAIN)}) == 41, names  # two are the same change


def test_data_that_moved_are_the_same_data():
    moved = replace(PLAIN, data=replace(PLAIN.data, name="/elsewhere/digits"))
    assert run_id(moved) == run_id(PLAIN)


def test_a_whole_number_names_the_same_run_as_its_float():
    whole, point = (replace(PLAIN, optim=OptimConfig(lr=lr)) for lr in (1, 1.0))
    assert run_id(whole) == run_id(point)


def test_width_of_noise_that_is_not_used_leaves_the_name_alone():
    first, second = (replace(PLAIN, noise=NoiseConfig(type="uniform", std=s)) for s in (0.1, 0.2))
    assert run_id(first) == run_id(second)


def test_a_run_has_no_name_before_it_is_resolved():
    for config in (replace(PLAIN, precision="auto"), RunConfig(precision="float32")):
        with pytest.raises(ConfigError, match="resolved"):
            run_id(config)
    assert run_id(with_hash(RunConfig(precision="float32"), PLAIN.data.hash)) == run_id(PLAIN)


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"modle": {}}, ["unknown key 'modle'", "did you mean 'model'?"]),
        ({"model": {"chanels": 64}}, ["'model.chanels'", "did you mean 'model.channels'?"]),
        ({"optim": {"learning_rate": 1}}, ["'optim.learning_rate'", "did you mean 'optim.lr'?"]),
        ({"model": {"channels": "wide"}}, ["model.channels", "integer"]),
        ({"model": {"channels": 0}}, ["model.channels is 0", "at least 1"]),
        ({"model": {"channels": 96}}, ["head_dim 64 does not divide", "96"]),
        ({"model": {"patch": 5}}, ["model.patch 5 does not divide model.image_size 28"]),
        ({"noise": {"type": "gauss"}}, ["noise.type is 'gauss': it must be gaussian or uniform"]),
        ({"noise": {"std": 0}}, ["noise.std is 0", "(0, 10)"]),
        ({"optim": {"cooldown": 1.5}}, ["optim.cooldown is 1.5", "share"]),
        ({"images": 1000}, ["images 1000 is not a multiple of batch 64", "write 1024"]),
        ({"images": 0}, ["images and batch must be at least 1"]),
        ([1, 2], ["no mapping of fields"]),
    ],
)
def test_a_mistake_is_one_clear_line(plain, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(RunConfig, plain, where="run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "content", [None, b"\xff\xd8", "batch: 64".encode("utf-16"), "# Maß".encode("latin-1")]
)
def test_an_unreadable_file_is_one_clear_line(tmp_path: Path, content):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    reason = "No such file" if content is None else "it is not text in UTF-8"
    with pytest.raises(UserError, match=reason) as caught:
        read_yaml(RunConfig, path)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [1", "not YAML"),
        ("images: ten", "images"),
        ("3", "run.yaml"),
        ("[]", "no mapping of fields"),
        ("no", "no mapping of fields"),
        ("seed: 2026-13-45", "not YAML"),
        ("\0", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_file_that_is_not_a_config_is_one_clear_line(tmp_path: Path, text, word):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        read_yaml(RunConfig, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("batch: 8\nimages: 16\nbatch: 8\n", "batch", 3),
        ("optim:\n  lr: 1e-3\n  clip: 1\n  'lr': 2e-3\n", "lr", 4),
        ("execution: {threads: 1, threads: 2}\n", "threads", 1),
        ("model: {}\noptim: {}\nmodel: {}\n", "model", 3),
    ],
)
def test_a_repeated_key_is_refused_with_its_line(tmp_path: Path, text, key, line):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(RunConfig, path)
    assert str(caught.value) == f"{path}: line {line} repeats the key '{key}': keep one of them"


def test_a_merged_mapping_may_be_overridden(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("sampler: &a {guidance: 1, denoise: 0}\nsampler2: {}\n")
    with pytest.raises(ConfigError, match="sampler2"):
        read_yaml(RunConfig, path)
    path.write_text("optim:\n  <<: {lr: 1, clip: 2}\n  lr: 3\n")
    assert read_yaml(RunConfig, path).optim == OptimConfig(lr=3.0, clip=2.0)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("batch: yes", "batch is true or false"),
        ("batch: On", "batch is true or false"),
        ("seed: false", "seed is true or false"),
        ("optim: {clip: no}", "optim.clip is true or false"),
        ("batch: 0100", "line 1: batch is 0100, which YAML reads in base 8"),
        ("images: 64\nbatch: 064", "line 2: batch is 064"),
        ("seed: -010", "line 1: seed is -010"),
        ("batch: 1:04", "line 1: batch is 1:04"),
        ("optim: {lr: 1:30.5}", "line 1: lr is 1:30.5"),
    ],
)
def test_a_number_is_written_as_a_number(tmp_path: Path, text, field):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(RunConfig, path)
    assert str(caught.value).startswith(f"{path}: {field}")
    assert "\n" not in str(caught.value)


def test_a_name_of_digits_survives_yaml(tmp_path: Path):
    path = tmp_path / "run.yaml"
    for name in ("0123456701234567", "0123456789012345", "12345e6789012345", "1:30", "yes"):
        config = with_hash(RunConfig(), name)
        path.write_text(to_yaml(config))
        assert read_yaml(RunConfig, path) == config


def numbers(kind, path=""):
    """Every numeric field of a config, with its type."""
    for member in fields(kind):
        if is_dataclass(member.type):
            yield from numbers(member.type, f"{path}{member.name}.")
        elif member.type in (int, float):
            yield f"{path}{member.name}", member.type


def test_every_number_of_a_config_has_a_range(tmp_path: Path):
    named = dict(numbers(RunConfig))
    assert len(named) == 39
    for name, kind in named.items():
        wrong = ["-1", "true", "1" + 30 * "0" if kind is int else ".inf"]
        wrong += [".nan", ".inf"] if kind is float else []
        for value in wrong:
            plain = value
            for part in reversed(name.split(".")):
                plain = f"{{{part}: {plain}}}"
            path = tmp_path / "run.yaml"
            path.write_text(plain)
            with pytest.raises(ConfigError, match=name.split(".")[-1]) as caught:
                read_yaml(RunConfig, path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optim": {"beta2": 1.5}}, "optim.beta2 is 1.5: it is a decay, from 0 to below 1"),
        ({"optim": {"beta1": 1}}, "optim.beta1 is 1.0: it is a decay, from 0 to below 1"),
        ({"optim": {"clip": "nan"}}, "optim.clip is nan: it must be a finite number"),
        ({"seed": -1}, "seed is -1: it must be 0 or more"),
        ({"execution": {"workers": 0}}, "execution.workers is 0: it must be at least 1"),
        (
            {"evaluation": {"samples": 3}},
            "evaluation.samples is 3: write 0 for none, or at least 4",
        ),
        ({"evaluation": {"draws": 0}}, "evaluation.draws is 0: it must be at least 1"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_rule(change, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(RunConfig, change, where="run.yaml")
    assert str(caught.value) == f"run.yaml: {words}"


def test_files_are_utf_8_whatever_the_locale(tmp_path: Path):
    program = (
        "import locale, pathlib, sys; from tarflow import config, config_files, record\n"
        "assert locale.getpreferredencoding() != 'UTF-8', 'the locale should be another'\n"
        "path = pathlib.Path('run.yaml')\n"
        "record.write_text(path, config_files.to_yaml(config.RunConfig(), 'Ma\\xdf \\xb1 1'))\n"
        "assert config_files.read_yaml(config.RunConfig, path) == config.RunConfig()\n"
    )
    root = str(Path(__file__).parents[1])
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": root}
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path, env=os.environ | ascii_only
    )
    assert (tmp_path / "run.yaml").read_bytes().startswith("# Maß ± 1".encode())


def test_yaml_numbers_written_without_a_point_are_read(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("optim:\n  lr: 1e-4\n")  # YAML itself reads 1e-4 as text
    assert read_yaml(RunConfig, path).optim.lr == 1e-4
    path.write_text("")
    assert read_yaml(RunConfig, path) == RunConfig()


def test_images_round_to_whole_steps_and_never_to_none():
    assert [round_images(n, 64) for n in (1, 64, 95, 97, 1e4)] == [64, 64, 64, 128, 9984]


def test_yaml_files_explain_every_field_in_the_words_of_the_source():
    lines = to_yaml(PLAIN).splitlines()
    assert "  lr: 0.001  # peak learning rate" in lines
    assert (
        "precision: float32  # arithmetic of training (auto, float32, bfloat16, float64)" in lines
    )
    assert all("  # " in line for line in lines)
