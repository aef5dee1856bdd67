"""Latents instead of pixels: encoded, trained on, scored, decoded."""

import json
import math
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sweeps import scaling
from sweeps.design.presets import load
from sweeps.design.ranges import SearchRanges
from sweeps.design.study import Size, Study, resolve_study
from sweeps.searching.space import TrainingSpace
from tarflow import data
from tarflow.__main__ import main
from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
)
from tarflow.config_files import to_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.evaluate.held_out import noise_names, noised_batches
from tarflow.execution import resolve_execution
from tarflow.latent import autoencoder as autoencoder_module
from tarflow.latent import encoding
from tarflow.latent.autoencoder import load_autoencoder
from tarflow.latent_space import FILE
from tarflow.model.likelihood import log_density, negative_log_likelihood
from tarflow.model.noise import generator, noisy
from tarflow.model.weights import build, latents_of_model, load_model
from tarflow.model_config import STARFLOW, ModelConfig
from tarflow.run import resolve_config, run
from tarflow.train.state import new_state
from tarflow.train.step import TrainStep

SHAPE = (4, 8, 8)


def config(table, **changes):
    plain = RunConfig(
        model=ModelConfig(
            **STARFLOW
            | {"image_size": 8, "image_channels": 4, "classes": 10, "patch": 1, "channels": 32}
            | {"head_dim": 8, "blocks": 3, "layers": (1, 1, 2)}
        ),
        data=DataConfig(name=str(table)),
        noise=NoiseConfig(std=0.3),
        optim=OptimConfig(lr=3e-3, warmup_images=512),
        images=3200,
        batch=64,
        evaluation=EvaluationConfig(samples=32),
        execution=ExecutionConfig(threads=1),
    )
    return replace(plain, **changes)


def pixels_of(path):
    """The pixels of a picture before it was enlarged, (height, width, 3)."""
    with Image.open(path) as picture:
        scale = int(picture.text["scale"])
        return np.asarray(picture)[::scale, ::scale].astype(int)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, latents):
    """The folder and the row of a small STARFlow."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run(resolve_config(config(latents)), folder)


def test_a_table_of_latents_keeps_rows_labels_and_splits(pictures, autoencoder, latents):
    space = data.latent_space(DataConfig(name=str(latents)))
    assert (space.shape, space.source) == (SHAPE, str(pictures))
    encoder = load_autoencoder(autoencoder)
    for split in data.SPLITS:
        images = data.open_split(DataConfig(name=str(pictures)), split)
        encoded = data.open_split(DataConfig(name=str(latents)), split)
        assert encoded.pixels.dtype == np.float16
        assert not encoded.pixels.flags.writeable
        np.testing.assert_array_equal(encoded.labels, images.labels)
        expected = encoder.encode(torch.from_numpy(images.pixels / np.float32(127.5) - 1))
        np.testing.assert_allclose(encoded.pixels, expected.numpy(), atol=4e-3)
    train = data.open_split(DataConfig(name=str(latents)), "train").pixels.astype(float)
    assert (abs(train.mean()) < 0.05, abs(train.std() - 1) < 0.05) == (True, True)


def test_an_interrupted_encoding_resumes_after_its_last_shard(
    tmp_path, monkeypatch, pictures, autoencoder, latents
):
    monkeypatch.setattr(encoding, "SHARD_ROWS", 128)
    seen = []

    def stop(done, total, _seconds):
        seen.append((done, total))
        if len(seen) == 10:
            raise KeyboardInterrupt

    target, loaded = tmp_path / "latents", load_autoencoder(autoencoder)
    with pytest.raises(KeyboardInterrupt):
        encoding.encode_table(str(pictures), target, loaded, progress=stop)
    assert not target.exists()
    seen = [None] * 10
    encoding.encode_table(str(pictures), target, loaded, progress=stop)
    assert seen[10][0] == 16  # 128 of the 480 rows were kept
    assert seen[-1] == (480 - 128, 480 - 128)
    for split in data.SPLITS:
        whole, resumed = (
            data.open_split(DataConfig(name=str(folder)), split).pixels
            for folder in (latents, target)
        )
        np.testing.assert_array_equal(whole, resumed)


def test_other_columns_are_copied(tmp_path, pictures, autoencoder):
    source = tmp_path / "source"
    shutil.copytree(pictures, source)
    for path in source.glob("*.parquet"):
        table = pq.read_table(path)
        vectors = [[[float(row), 1.0]] for row in range(len(table))]
        pq.write_table(table.append_column("condition", [vectors]), path)
    loaded = load_autoencoder(autoencoder)
    encoding.encode_table(str(source), tmp_path / "target", loaded, "float32")
    copied = pq.read_table(tmp_path / "target" / "train-00000.parquet")
    assert copied["condition"].to_pylist() == [[[float(row), 1.0]] for row in range(384)]
    assert b"huggingface" in copied.schema.metadata


def test_a_run_reports_bits_of_latents_and_decodes_its_samples(trained, pictures, autoencoder):
    folder, row = trained
    assert (row["status"], row["bpd_kind"]) == ("done", "latent")
    flow, saved = load_model(folder / "model.safetensors")
    held_out = data.open_split(saved.data, "validation")
    indices = np.arange(len(held_out))
    _, _, labels, noised = next(
        noised_batches(held_out, indices, saved, flow, noise_names(1), len(indices))
    )
    with torch.no_grad():
        bits = -log_density(flow, noised, labels) / math.log(2) / math.prod(SHAPE)
    assert row["bpd"] == pytest.approx(bits.mean().item(), abs=1e-4)
    gaussian = 0.5 * math.log2(2 * math.pi * math.e * (1 + saved.noise.std**2))
    assert row["bpd"] < gaussian - 0.1  # better than a Gaussian of the same variance
    height, width, _ = pixels_of(folder / "samples.png").shape
    assert (height % 18, width % 18) == (2, 2)  # decoded to 16 pixels, 2 apart
    (scores,) = [
        row
        for row in json.loads((folder / "result.json").read_text())["evaluations"]
        if row["half"] == "all"
    ]
    assert scores["reference"] == f"{pictures}/validation"
    assert scores["autoencoder"].startswith("leaves-vae@")
    assert latents_of_model(folder / "model.safetensors").autoencoder == str(autoencoder)


def test_commands_decode(trained, tmp_path, capsys, pictures):
    model = str(trained[0] / "model.safetensors")
    picture = tmp_path / "samples.png"
    assert main(["sample", model, "--count", "8", "--grid", str(picture)]) == 0
    assert pixels_of(picture).shape == (20, 8 * 18 + 2, 3)
    assert main(["evaluate", model, "--count", "16"]) == 0
    assert "leaves-vae@" in capsys.readouterr().out

    photo = tmp_path / "leaf.png"
    pixels, other = data.open_split(DataConfig(name=str(pictures)), "validation").pixels[:2]
    Image.fromarray(pixels.transpose(1, 2, 0)).save(photo)
    assert main(["score", model, str(photo), "--grid", str(tmp_path / "scored.png")]) == 0
    assert "bits per latent dimension" in capsys.readouterr().out
    shown = pixels_of(tmp_path / "scored.png")[2:18, 2:18]
    errors = [abs(shown - image.transpose(1, 2, 0)).mean() for image in (pixels, other)]
    assert errors[0] < 0.6 * errors[1]
    assert main(["check", model]) == 0


def test_a_released_model_of_latents_says_what_its_numbers_are(trained, tmp_path):
    assert main(["release", str(trained[0]), str(tmp_path / "released")]) == 0
    card = (tmp_path / "released" / "README.md").read_text()
    assert "images of 16x16 pixels in 10 classes" in card
    assert "latents of the autoencoder `leaves-vae`" in card
    assert "bits per latent dimension (lower is better)" in card
    assert "its per dimension" not in card


def test_a_decoder_learns_noisy_latents(trained, tmp_path, capsys, latents):
    model, target = str(trained[0] / "model.safetensors"), tmp_path / "tuned"
    flags = ["--noise-std", "1", "--steps", "80", "--lr", "1e-3"]
    assert main(["finetune-decoder", model, str(target), *flags]) == 0
    printed = re.search(r"latents (\S+) before and (\S+) after", capsys.readouterr().out)
    before, after = map(float, printed.groups())
    assert after < 0.98 * before
    grid = ["--grid", str(tmp_path / "samples.png"), "--denoise", "0"]
    assert main(["sample", model, "--autoencoder", str(target), *grid]) == 0
    assert main(["finetune-decoder", str(latents), str(tmp_path / "other")]) == 2
    assert "--noise-std" in capsys.readouterr().err


def test_a_missing_autoencoder_is_said_before_any_training(tmp_path, capsys, autoencoder, latents):
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(to_yaml(config(latents)))
    size = Size(channels=32, blocks=3, layers=(1, 1, 2))
    study = tmp_path / "study.yaml"
    study.write_text(
        to_yaml(Study(name="latents", base=config(latents), sizes=(size,), budgets=(1e11,)))
    )
    options = scaling.Options(study=str(study), out=out)
    hidden = autoencoder.with_name("hidden")
    autoencoder.rename(hidden)
    try:
        assert main(["train", str(path), "--out", str(out)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"no autoencoder in {autoencoder}" in error
        assert "evaluation.autoencoder" in error
        assert not (out / "state").exists()
        assert scaling.scale(replace(options, dry_run=True)) == 0
        assert error.removeprefix("error: ") in capsys.readouterr().out
        with pytest.raises(UserError, match="no autoencoder in"):
            scaling.scale(options)
        named = ((f"evaluation.autoencoder={hidden}",),)
        assert scaling.scale(replace(options, dry_run=True, changes=named)) == 0
        assert "no autoencoder in" not in capsys.readouterr().out
    finally:
        hidden.rename(autoencoder)


def test_previews_read_the_autoencoder_once(tmp_path, monkeypatch, latents):
    read = []
    load = autoencoder_module.find_autoencoder
    monkeypatch.setattr(
        autoencoder_module, "find_autoencoder", lambda *given: read.append(given) or load(*given)
    )
    execution = ExecutionConfig(threads=1, preview_images=64)
    row = run(resolve_config(config(latents, images=128, execution=execution)), tmp_path / "run")
    assert row["status"] == "done"
    assert len(read) == 1
    rows = pq.read_table(tmp_path / "run" / "previews.parquet").to_pylist()
    assert [row["images"] for row in rows] == [64, 128]


def test_latents_are_the_same_data_wherever_their_autoencoder_is(
    tmp_path, pictures, autoencoder, latents
):
    moved, copied = tmp_path / "moved-vae", tmp_path / "pictures"
    shutil.copytree(autoencoder, moved)
    shutil.copytree(pictures, copied)
    target = tmp_path / "latents"
    encoding.encode_table(str(copied), target, load_autoencoder(moved))
    mine, first = (data.hash_data(DataConfig(name=str(path))) for path in (target, latents))
    assert mine.hash == first.hash
    assert data.latent_space(mine).autoencoder == str(moved)
    assert data.latent_space(first).autoencoder == str(autoencoder)
    places = target / FILE
    places.write_text(places.read_text().replace("moved-vae", "elsewhere"))
    again = data.hash_data(DataConfig(name=str(target)))
    assert again.hash == first.hash
    assert data.latent_space(again).autoencoder == str(tmp_path / "elsewhere")
    places.unlink()
    with pytest.raises(UserError, match="nothing says where the autoencoder of these latents is"):
        autoencoder_module.autoencoder_of(again)
    with pytest.raises(UserError, match="nothing says where the images of these latents are"):
        data.images_behind(again)
    assert autoencoder_module.autoencoder_of(again, str(moved)).folder == moved


def test_what_is_missing_is_said(trained, tmp_path, capsys, pictures, autoencoder):
    model = str(trained[0] / "model.safetensors")
    hidden = autoencoder.with_name("hidden")
    autoencoder.rename(hidden)
    try:
        assert main(["sample", model]) == 2
        assert "--autoencoder" in capsys.readouterr().err
        grid = ["--grid", str(tmp_path / "samples.png")]
        assert main(["sample", model, "--autoencoder", str(hidden), *grid]) == 0
    finally:
        hidden.rename(autoencoder)
    away = pictures.with_name("away")
    pictures.rename(away)
    try:
        assert main(["evaluate", model, "--count", "12"]) == 0
        kept = [json.loads(path.read_text()) for path in (trained[0] / "evaluations").glob("*")]
        named = {row["n"]: row["reference"] for (row,) in kept}
        assert named[12].endswith("validation, decoded")
    finally:
        away.rename(pictures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": NoiseConfig(type="uniform")}, "no grey levels"),
        ({"data.flip": True}, "data.flip"),
        ({"model.image_channels": 3}, "image_channels is 3"),
    ],
)
def test_what_makes_sense_for_pixels_only_is_refused(latents, changes, message):
    plain = config(latents)
    for name, value in changes.items():
        section, _, member = name.partition(".")
        inner = replace(getattr(plain, section), **{member: value}) if member else value
        plain = replace(plain, **{section: inner})
    with pytest.raises(ConfigError, match=message):
        resolve_config(plain)


def test_an_autoencoder_that_does_not_fit_is_refused(tmp_path, autoencoder, latents):
    with pytest.raises(UserError, match="holds latents already"):
        encoding.encode_table(str(latents), tmp_path / "twice", load_autoencoder(autoencoder))
    with pytest.raises(UserError, match=r"no config\.json"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="UNet2DModel"):
        load_autoencoder(tmp_path)


def test_example_prints_bits_of_latents(tmp_path, capsys, autoencoder, pictures):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "latents.py"))
    example["main"](autoencoder, tmp_path, str(pictures), seen=640)
    assert re.search(r"^\d\.\d+ ± 0\.\d+ bits per latent dimension", capsys.readouterr().out, re.M)
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_the_penalty_reaches_gradients_but_not_the_loss(latents):
    plain = resolve_config(config(latents, precision="float64"))
    penalised = replace(plain, optim=replace(plain.optim, output_penalty=10.0))
    execution = resolve_execution(plain)
    images = torch.from_numpy(data.open_split(plain.data, "train").pixels[:64].copy())
    results = []
    for chosen in (plain, penalised):
        state = new_state(chosen, execution)
        initial = {name: p.detach().clone() for name, p in state.flow.named_parameters()}
        loss, norm = TrainStep(state, chosen, execution)(images, None)
        results.append((loss.item(), norm.item()))
    assert results[0][0] == results[1][0]
    flow = build(plain.model, {**state.flow.state_dict(), **initial}).requires_grad_()
    noised = noisy(images, plain.noise, generator(plain.seed, "step"), torch.float64)
    tokens, logdets = zip(*flow.trace(noised), strict=True)
    penalty = 10 * sum(passed.square().mean() for passed in tokens[:-1])
    (negative_log_likelihood(tokens[-1], sum(logdets)).mean() + penalty).backward()
    expected = torch.stack([p.grad.square().sum() for p in flow.parameters()]).sum().sqrt()
    assert results[1][1] == pytest.approx(expected.item())
    assert results[1][1] != pytest.approx(results[0][1], rel=1e-3)


def test_a_search_keeps_the_noise_of_latents(latents):
    study = load("tiny")
    images = replace(study.base.data, name=str(latents))
    model = replace(study.base.model, image_size=8, image_channels=4, patch=2)
    study = resolve_study(replace(study, base=replace(study.base, data=images, model=model)))
    assert TrainingSpace(study, 1e9).noises is None
    with pytest.raises(ConfigError, match="latents at different noise"):
        TrainingSpace(replace(study, search=SearchRanges(noise_std=(0.1, 0.2))), 1e9)
