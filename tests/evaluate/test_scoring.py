"""Scores of single images: their parts, their ranks, the class they give; and the command."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
from tarflow.data.importing import import_folder
from tarflow.evaluate import held_out, scoring
from tarflow.model import likelihood
from tarflow.model.weights import save_model
from tarflow.model_config import ModelConfig
from tarflow.record import read_table
from tarflow.train.loop import train


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small conditional flow of digits, its config and its file."""
    folder = tmp_path_factory.mktemp("digits")
    config = RunConfig(
        model=ModelConfig(classes=10, patch=7, channels=32, head_dim=16, blocks=2, layers=1),
        data=data.hash_data(DataConfig()),
        noise=NoiseConfig(std=0.3),
        optim=OptimConfig(lr=5e-3, warmup_images=256),
        images=15_000,
        batch=50,
        precision="float32",
        evaluation=EvaluationConfig(decoder_images=100),
        execution=ExecutionConfig(threads=1),
    )
    state = train(config, folder)
    state.flow.load_state_dict(state.ema)
    path = folder / "model.safetensors"
    save_model(path, state.ema, config)
    return state.flow.eval().requires_grad_(False), config, path


def as_images(pixels, labels=None):
    if labels is None:
        labels = np.full(len(pixels), -1)
    return data.Images(pixels, labels, 0)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("volume_preserving", [False, True])
def test_parts_add_up_to_the_density_of_the_noisy_image(random_flow, kind, volume_preserving):
    flow = random_flow(classes=3, image_channels=1, volume_preserving=volume_preserving)
    config = RunConfig(model=flow.config, noise=NoiseConfig(type=kind))
    rng = np.random.default_rng(0)
    labels = np.array([2, -1, 0, 1, 1])
    images = as_images(rng.integers(0, 256, (5, 1, 8, 8), np.uint8), labels)
    scores = scoring.score(flow, config, images, draws=2, batch=2)
    expected = torch.zeros(5, dtype=torch.float64)
    for draw in range(2):
        use = [f"held-out {draw}"]
        ((*_, noised),) = held_out.noised_batches(images, np.arange(5), config, flow, use, 5)
        for row, label in enumerate(labels):  # one image at a time; None drops its label
            one = None if label < 0 else torch.tensor([label])
            expected[row] += likelihood.log_density(flow, noised[[row]], one)[0] / 2
    np.testing.assert_allclose(scores.log_likelihood, expected)
    assert scores.logdets.shape == (5, 3)
    assert (scores.logdets == 0).all() == volume_preserving
    assert scores.typicality is None
    if kind == "uniform":
        bits = 7 - expected / 64 / np.log(2)  # bins are 1/128 wide
        np.testing.assert_allclose(scores.bpd, bits)
    else:
        assert scores.bpd is None


def test_images_of_a_run_score_as_when_it_was_evaluated(digits):
    flow, config, _ = digits
    evaluated = held_out.held_out_likelihood(flow, config)
    reference = held_out.training_reference(flow, config)
    scores = scoring.score(flow, config, data.open_split(config.data, "validation"), reference)
    np.testing.assert_allclose(scores.bpd, evaluated.bpd, rtol=1e-5)
    np.testing.assert_allclose(
        scores.typicality, np.abs(evaluated.loss - evaluated.train_loss), atol=1e-5
    )


def test_the_likeliest_image_need_not_be_typical(digits):
    """A black image is likelier than any digit and far from all; noise is unlikely and far."""
    flow, config, _ = digits
    real = data.open_split(config.data, "validation").pixels[:200]
    black = np.zeros_like(real[:1])
    noise = np.random.default_rng(0).integers(0, 256, real[:1].shape, np.uint8)
    reference = held_out.training_reference(flow, config)
    images = as_images(np.concatenate([black, noise, real]))
    scores = scoring.score(flow, config, images, reference)
    by_likelihood = scores.worst_first().tolist()
    assert by_likelihood[0] == 1
    assert by_likelihood[-1] == 0
    assert set(scores.worst_first("typicality")[:5].tolist()) >= {0, 1}


def test_the_class_posterior_is_bayes_rule(random_flow, digits):
    flow = random_flow(classes=3, image_channels=1)
    config = RunConfig(model=flow.config, noise=NoiseConfig(std=0.1))
    images = as_images(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8))
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    posterior = scoring.score(flow, config, images, log_prior=prior.log(), batch=3).posterior
    joint = np.stack(
        [
            scoring.score(flow, config, replace(images, labels=np.full(4, c))).log_likelihood
            for c in range(3)
        ],
        1,
    ) + np.log(prior.numpy())
    shifted = np.exp(joint - joint.max(1, keepdims=True))
    np.testing.assert_allclose(
        np.exp(posterior.log_probability), shifted / shifted.sum(1, keepdims=True)
    )
    np.testing.assert_allclose(posterior.log_marginal, np.log(shifted.sum(1)) + joint.max(1))
    flow, config, _ = digits
    held_out = data.open_split(config.data, "validation")
    prior = scoring.class_log_prior(config, from_data=True)
    assert prior.exp().sum().item() == pytest.approx(1)
    scores = scoring.score(flow, config, held_out, log_prior=prior)
    assert scores.posterior.accuracy(held_out.labels) > 0.2  # chance is 0.1
    assert scores.posterior.accuracy(np.full(500, -1)) is None


def run(*arguments):
    return main(["score", *(str(argument) for argument in arguments)])


def test_the_command_leaves_out_broken_files_aloud(digits, tmp_path, capsys):
    _, config, model = digits
    for index, image in enumerate(data.open_split(config.data, "validation").pixels[:2]):
        Image.fromarray(image[0]).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert run(model, tmp_path) == 2
    assert "broken.png" in capsys.readouterr().err
    assert run(model, tmp_path, "--skip-broken") == 0
    printed = capsys.readouterr().out
    assert "2 images, worst first" in printed
    assert f"left out (1): cannot decode {tmp_path}/broken.png" in printed


def test_the_command_takes_files_folders_tables_and_archives_alike(digits, tmp_path, capsys):
    _, config, model = digits
    pixels = data.open_split(config.data, "validation").pixels[:6]
    folder = tmp_path / "folder"
    for index, image in enumerate(pixels):
        path = folder / "class" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    files = sorted(folder.rglob("*.png"))
    import_folder(folder, tmp_path / "table", 28, grey=True)
    np.savez(tmp_path / "first.npz", images=pixels.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "second.npz", arr_0=pixels[:, 0])
    sources = {
        "folder": [folder],
        "files": files,
        "table": [tmp_path / "table"],
        "shard": sorted((tmp_path / "table").glob("*")),
        "first": [tmp_path / "first.npz"],
        "second": [tmp_path / "second.npz"],
    }
    tables = {}
    for name, places in sources.items():
        assert run(model, *places, "--out", tmp_path / f"{name}.parquet") == 0
        tables[name] = read_table(tmp_path / f"{name}.parquet").to_pylist()
    first = tables.pop("folder")
    costs = [row["log_likelihood"] for row in first]
    assert costs == sorted(costs)
    assert sorted(row["image"] for row in first) == [str(path) for path in files]
    kept = ("rank", "index", "bpd", "logdets", "typicality")
    # A table of one class is labelled with it, and its images are scored given the label.
    labelled = {name: tables.pop(name) for name in ("table", "shard")}
    assert all(row["label"] == 0 for row in labelled["table"])
    assert [row["bpd"] for row in labelled["table"]] == [row["bpd"] for row in labelled["shard"]]
    for rows in tables.values():
        assert [[row[key] for key in kept] for row in rows] == [
            [row[key] for key in kept] for row in first
        ]
        assert all(row["label"] is None for row in rows)
    assert "6 images, worst first" in capsys.readouterr().out


def test_the_command_scores_the_data_of_the_run(digits, tmp_path, capsys):
    _, config, model = digits
    grid, out = tmp_path / "pictures" / "grid.png", tmp_path / "scores.parquet"
    assert run(model, "--posterior", "--by", "typicality", "--grid", grid, "--out", out) == 0
    rows = read_table(out).to_pylist()
    labels = data.open_split(config.data, "validation").labels
    assert [row["label"] for row in rows] == [int(labels[row["index"]]) for row in rows]
    distances = [row["typicality"] for row in rows]
    assert distances == sorted(distances, reverse=True)
    right = np.mean([row["predicted"] == row["label"] for row in rows])
    assert f"class by Bayes' rule: {right:.2%} right" in capsys.readouterr().out
    pictured = np.asarray(Image.open(grid))[::3, ::3]
    assert pictured.shape == (8 * 30 + 2, 8 * 30 + 2)
    pixels = data.open_split(config.data, "validation").pixels
    assert (pictured[2:30, 2:30] == pixels[rows[0]["index"], 0]).all()  # the worst comes first
    assert (pictured[-30:-2, -30:-2] == pixels[rows[-1]["index"], 0]).all()


def test_images_that_do_not_fit_are_refused_or_resized(digits, tmp_path, capsys):
    _, _, model = digits

    def refusal(*arguments):
        assert run(model, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    Image.new("L", (40, 30), 7).save(tmp_path / "wide.png")
    Image.new("RGB", (28, 28), (200, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("text")
    np.savez(tmp_path / "wrong.npz", images=np.zeros((2, 28, 28, 1)))
    assert "wide.png is 40x30 pixels, the model takes 28x28" in refusal(tmp_path / "wide.png")
    assert "red.png is in colour" in refusal(tmp_path / "red.png")
    assert "cannot decode" in refusal(tmp_path / "text.png")
    assert "No such file" in refusal(tmp_path / "absent.png")
    assert "holds no images" in refusal(tmp_path / "wrong.npz")
    (tmp_path / "empty").mkdir()
    assert "no images in" in refusal(tmp_path / "empty")
    assert run(model, tmp_path / "wide.png", tmp_path / "red.png", "--resize") == 0


def test_without_training_images_there_is_still_a_likelihood(digits, tmp_path, capsys):
    flow, config, _ = digits
    path = tmp_path / "model.safetensors"
    save_model(path, flow.state_dict(), replace(config, data=DataConfig(name="elsewhere")))
    assert run(path) == 2
    assert "name the images to score" in capsys.readouterr().err
    Image.new("L", (28, 28), 7).save(tmp_path / "grey.png")
    assert run(path, tmp_path / "grey.png", "--out", tmp_path / "scores.parquet") == 0
    (row,) = read_table(tmp_path / "scores.parquet").to_pylist()
    assert row["bpd"] is None
    assert row["typicality"] is None
    assert row["log_likelihood"] == pytest.approx(row["prior"] + sum(row["logdets"]))
    assert "no typicality" in capsys.readouterr().out


def test_the_example_names_the_images_that_lie_farthest_out(digits, monkeypatch, capsys):
    _, _, model = digits
    path = Path(__file__).parents[2] / "examples" / "score_images.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(model)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.count("nats") == 10
