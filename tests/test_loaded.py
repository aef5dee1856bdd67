"""A trained model in Python and in a notebook."""

import base64
import io
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import config

import tarflow
from tarflow import data
from tarflow.__main__ import main
from tarflow.config import EvaluationConfig, ExecutionConfig, NoiseConfig
from tarflow.config_files import to_yaml
from tarflow.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of digits, trained for a moment from a file."""
    folder = tmp_path_factory.mktemp("loaded")
    chosen = config(
        precision="float32",
        execution=ExecutionConfig(device="cpu"),
        evaluation=EvaluationConfig(samples=0, decoder_images=50),
    )
    (folder / "config.yaml").write_text(to_yaml(chosen))
    return tarflow.train(folder / "config.yaml", out=folder / "run")


def test_importing_the_package_imports_no_torch():
    code = "import sys, tarflow; sys.exit('torch' in sys.modules or 'load' not in tarflow.__all__)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bits_are_those_of_the_run_and_of_the_command(model, capsys):
    split = data.open_split(model.config.data, "validation")
    bits = model.bits(split)
    assert bits.mean() == pytest.approx(model.row["bpd"])
    assert f"{bits.mean():.3f}" in repr(model)
    assert main(["score", str(model.path.parent), "--show", "1"]) == 0
    assert f"bits per dimension: {bits.mean():.4f} ({model.bits_kind})" in capsys.readouterr().out


def test_images_may_come_in_any_shape(model):
    pixels = data.open_split(model.config.data, "validation").pixels[:3]
    expected = model.bits(pixels)
    floats = torch.tensor(pixels) / 127.5 - 1
    shapes = pixels[:, 0], pixels[:, 0, :, :, None], floats, pixels.astype(int)
    pictures = [Image.fromarray(image[0]) for image in pixels]
    for images in (*shapes, pictures):
        np.testing.assert_array_equal(model.bits(images), expected)
    for single in (pixels[0], pixels[0, 0], pictures[0]):
        np.testing.assert_array_equal(model.bits(single), expected[:1])
    labelled = model.bits(pixels, labels=[3, -1, 5])
    assert labelled[1] == expected[1]
    assert labelled[0] != expected[0]


def test_samples_show_themselves(model):
    drawn = model.sample(4, labels=[3, 8], guidance=1.0)
    assert drawn.labels.tolist() == [3, 8, 3, 8]
    assert (drawn.pixels.shape, drawn.pixels.dtype) == ((4, 28, 28), np.uint8)
    with Image.open(io.BytesIO(drawn._repr_png_())) as shown:
        scale = int(drawn.grid().info["scale"])
        first = np.asarray(shown)[::scale, ::scale][2:30, 2:30]
    np.testing.assert_array_equal(first, drawn.pixels[0])
    assert not torch.equal(drawn.images, model.sample(4, labels=[3, 8]).images)
    assert len(model.sample().images) == 60  # 6 of each class


def test_log_prob_is_the_density_that_a_gradient_climbs(model):
    images = torch.zeros(2, 1, 28, 28, requires_grad=True)
    before = model.log_prob(images, [1, -1])
    (slope,) = torch.autograd.grad(before.sum(), images)
    with torch.no_grad():
        assert (model.log_prob(images + 1e-3 * slope / slope.abs().max(), [1, -1]) > before).all()
    latents, logdet = model.flow(images, torch.tensor([1, -1]))
    normal = torch.distributions.Normal(0.0, 1.0)
    nats = normal.log_prob(latents).sum((1, 2)) + logdet * 784
    torch.testing.assert_close(before, nats)


def test_the_inverse_undoes_the_flow_with_and_without_gradients(model):
    latents = torch.randn(2, *model.flow.var.shape, requires_grad=True)
    images = model.inverse(latents, [1, -1], differentiable=True)
    plain = model.inverse(latents.detach(), [1, -1])
    torch.testing.assert_close(images.detach(), plain, rtol=1e-4, atol=1e-4)
    back, _ = model.flow(plain, torch.tensor([1, -1]))
    torch.testing.assert_close(back, latents.detach(), rtol=1e-3, atol=1e-3)
    assert torch.autograd.grad(images.sum(), latents)[0].isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: model.bits(np.zeros((2, 20, 20))), r"takes \(N, 1, 28, 28\)"),
        (lambda model: model.bits(np.ones((2, 28, 28))), "look like images in \\[0, 1\\]"),
        (lambda model: model.bits(np.full((2, 28, 28), 300)), "integers from 0 to 255"),
        (lambda model: model.bits(np.zeros((2, 28, 28), int), [1]), "1 labels for 2 images"),
        (lambda model: model.sample(2, guidence=1), "did you mean 'guidance'"),
        (lambda model: model.sample(2, labels=[10]), "labels are 0 to 9"),
        (lambda model: tarflow.load(model.path.parents[1]), "holds no model.safetensors"),
        (lambda _: tarflow.load("nowhere"), "cannot read nowhere"),
    ],
)
def test_mistakes_say_what_to_do(model, wrong, message):
    with pytest.raises(UserError, match=message):
        wrong(model)


def test_without_training_images_there_are_bits_under_uniform_noise_only(model):
    absent = replace(model.config, data=replace(model.config.data, name="nowhere"))
    with pytest.raises(UserError, match=r"bits need training images: .*nowhere"):
        replace(model, config=absent).bits(np.zeros((1, 28, 28), np.uint8))
    uniform = replace(absent, noise=NoiseConfig(type="uniform"))
    assert replace(model, config=uniform).bits(np.zeros((1, 28, 28), np.uint8)).shape == (1,)


def test_the_posterior_example_completes_digits(model, tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "posterior.py"))
    picture = tmp_path / "completed.png"
    example["main"](str(model.path), str(picture), count=2, steps=5)
    losses = [float(word) for word in re.findall(r": (\S+) nats", capsys.readouterr().out)]
    assert losses[-1] < losses[0]
    with Image.open(picture) as shown:
        assert shown.width >= 512 or shown.height >= 512


def test_the_notebook_runs_and_its_pictures_are_not_black(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "model.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 1
    with Image.open(io.BytesIO(base64.b64decode(shown[0]))) as picture:
        pixels = np.asarray(picture)
    assert max(picture.size) >= 512
    assert 0.1 < (pixels > 100).mean() < 0.6  # strokes and gaps on a dark ground
