"""Published weights in: files of the official layout, written here, and forged ones."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tarflow.__main__ import main
from tarflow.config import NoiseConfig, SamplerConfig
from tarflow.model import noise
from tarflow.model.patches import patchify
from tarflow.model.weights import load_model
from tarflow.sample.inverse import invert

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("tarflow*.safetensors"))
STARFLOWS = sorted(GOLDEN.glob("starflow*.safetensors"))
COND = GOLDEN / "tarflow_cond.safetensors"
GREY = GOLDEN / "tarflow_uncond_gray.safetensors"


def read(golden):
    with safe_open(golden, "pt") as file:
        metadata = file.metadata()
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def official_state(golden):
    """A state dict as published: float32 weights, `var`, and the causal mask of every block."""
    metadata, tensors = read(golden)
    prefix = "weights."
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    tokens = len(state["var"])
    for block in range(int(metadata["blocks"])):
        state[f"blocks.{block}.attn_mask"] = torch.ones(tokens, tokens).tril()
    return metadata, state


def official_name(metadata, noise="0.07"):
    sizes = "_".join(metadata[key] for key in ("patch", "channels", "blocks", "layers"))
    return f"afhq_model_{sizes}_{noise}.pth"


def write(folder, golden, noise="0.07"):
    metadata, state = official_state(golden)
    path = folder / official_name(metadata, noise)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("published", FILES, ids=lambda path: path.stem)
def test_converted_weights_give_the_published_outputs(published, tmp_path):
    assert main(["convert", str(write(tmp_path, published)), str(tmp_path / "out")]) == 0
    flow, config = load_model(tmp_path / "out" / "model.safetensors")
    assert (config.noise.type, config.noise.std, config.data.name) == ("gaussian", 0.07, "afhq")
    metadata, tensors = read(published)
    assert flow.config.image_channels == int(metadata["in_channels"])
    labels = tensors.get("in.labels") if flow.config.classes else None
    mode = "cond" if flow.config.classes else "uncond"
    with torch.no_grad():
        latents, logdet = flow(tensors["in.images"], labels)
    torch.testing.assert_close(latents, tensors[f"forward_{mode}.latents"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        logdet, tensors[f"forward_{mode}.logdet_per_dim"], rtol=1e-4, atol=1e-5
    )
    images = invert(flow, tensors["in.noise"] * flow.var.sqrt(), labels, SamplerConfig())
    expected = tensors[f"sample_{mode}.images"]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("published", STARFLOWS, ids=lambda path: path.stem)
def test_converted_starflow_weights_give_the_published_outputs(published, tmp_path, capsys):
    metadata, tensors = read(published)
    path = tmp_path / "starflow.pth"
    prefix = "weights."
    torch.save({n.removeprefix(prefix): t for n, t in tensors.items() if prefix in n}, path)
    command = ["convert", str(path), str(tmp_path / "out"), "--noise-std", "0.3"]
    assert main(command) == 2
    assert "do not tell the size of its images: give --image-size" in capsys.readouterr().err
    command += ["--image-size", metadata["img"]]
    condition = tensors.get("in.condition")
    if condition is not None:
        assert main(command) == 2
        assert "how many text tokens the model takes" in capsys.readouterr().err
        command += ["--condition-tokens", str(condition.shape[1])]
    assert main(command) == 0
    flow, config = load_model(tmp_path / "out" / "model.safetensors")
    assert (config.noise.std, config.model.image_channels) == (0.3, 4)
    with torch.no_grad():
        latents, _ = flow(tensors["in.images"], condition)
    expected = patchify(tensors["forward.latents"], flow.config)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    if condition is not None:
        pq.write_table(pa.table({"condition": condition.tolist()}), tmp_path / "c.parquet")
        sample = ["sample", str(tmp_path / "out"), "--condition", str(tmp_path / "c.parquet")]
        sample += ["--grid", str(tmp_path / "grid.png"), "--count", "2"]
        assert main([*sample, "--guidance", "2"]) == 2
        assert "guidance needs what stands for a dropped condition" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "output", "flags"),
    [
        (GREY, "sample_uncond", ""),
        (GREY, "sample_uncond_temp1.4_g0.8", "--guidance 0.8 --temperature 1.4 --annealed False"),
        (COND, "sample_cond", "--labels "),
    ],
)
def test_the_sample_command_draws_the_published_samples(
    tmp_path, monkeypatch, file, output, flags
):
    """The noise of the reference goes in, its images come out as pixels of the picture."""
    assert main(["convert", str(write(tmp_path, file)), str(tmp_path / "out")]) == 0
    model, picture = tmp_path / "out" / "model.safetensors", tmp_path / "grid.png"
    _, tensors = read(file)
    given = tensors["in.noise"]
    if file == COND:
        flags += " ".join(str(label) for label in tensors["in.labels"].tolist())
    monkeypatch.setattr(
        "tarflow.sample.sampling.normal_per_image", lambda indices, *_: given[indices]
    )
    layout = ["--count", str(len(given)), "--columns", "1", "--grid", str(picture)]
    assert main(["sample", str(model), *layout, "--denoise", "0", *flags.split()]) == 0
    pixels = noise.to_pixels(tensors[f"{output}.images"]).permute(0, 2, 3, 1).numpy()
    assert pixels.std() > 40  # neither flat nor clipped away
    size, gap = pixels.shape[1], 2
    grid = Image.open(picture)
    scale = int(grid.text["scale"])
    drawn = np.atleast_3d(np.asarray(grid)[::scale, ::scale]).astype(int)
    for index, expected in enumerate(pixels):
        top = gap + index * (size + gap)
        assert np.abs(drawn[top : top + size, gap:-gap] - expected).max() <= 1


def test_uniform_noise_and_renamed_files(tmp_path, capsys):
    path = write(tmp_path, COND, noise="uniform")
    assert main(["convert", str(path), str(tmp_path / "a")]) == 0
    assert load_model(tmp_path / "a" / "model.safetensors")[1].noise == NoiseConfig(type="uniform")
    renamed = path.rename(tmp_path / "weights.pth")
    assert main(["convert", str(renamed), str(tmp_path / "b")]) == 2
    assert "give --noise-std" in capsys.readouterr().err
    for flags in (["--noise-std", "0.15"], ["--name", path.name.replace("uniform", "0.15")]):
        assert main(["convert", str(renamed), str(tmp_path / flags[0]), *flags]) == 0
        config = load_model(tmp_path / flags[0] / "model.safetensors")[1]
        assert config.noise == NoiseConfig(std=0.15)
        assert config.model == load_model(tmp_path / "a" / "model.safetensors")[1].model
    assert main(["convert", str(renamed), str(tmp_path / "a"), "--noise-std", "0.1"]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_names_that_wrappers_saved_are_read_without_their_prefix(tmp_path, prefix):
    path = write(tmp_path, COND)
    assert main(["convert", str(path), str(tmp_path / "plain")]) == 0
    _, state = official_state(COND)
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"n_averaged": torch.tensor(3), **wrapped}, path)
    assert main(["convert", str(path), str(tmp_path / "wrapped")]) == 0
    plain, read_back = (tmp_path / name / "model.safetensors" for name in ("plain", "wrapped"))
    assert plain.read_bytes() == read_back.read_bytes()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model"], "holds weights under model: choose with --key model"),
        (["ema"], "holds weights under ema: choose with --key ema"),
        (["model", "ema"], "holds weights under ema and model: choose with --key ema"),
    ],
)
def test_weights_under_a_key_are_offered_and_read(tmp_path, capsys, keys, words):
    path = write(tmp_path, COND)
    _, state = official_state(COND)
    torch.save({**dict.fromkeys(keys, state), "optimizer": {}, "step": 3}, path)
    out = tmp_path / "out"
    assert refusal(capsys, "convert", path, out) == f"error: {path} {words}"
    assert refusal(capsys, "convert", path, out, "--key", "emma") == f"error: {path} {words}"
    assert main(["convert", str(path), str(out), "--key", keys[-1]]) == 0
    torch.testing.assert_close(
        load_model(out / "model.safetensors")[0].blocks[0].proj_in.weight,
        state["blocks.0.proj_in.weight"],
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_file_given_to_another_command_names_convert(tmp_path, capsys, zipped):
    path = tmp_path / "my weights.pth"
    torch.save(official_state(COND)[1], path, _use_new_zipfile_serialization=zipped)
    line = refusal(capsys, "sample", path)
    assert line == (
        f"error: {path} was saved by torch.save: make a model of it with python -m tarflow "
        f"convert '{path}' FOLDER"
    )


def refusal(capsys, *arguments):
    """The one line that a command refuses with."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_names_and_flags_that_contradict_the_shapes_are_refused(tmp_path, capsys):
    path = write(tmp_path, COND)
    data, _, patch, channels, blocks, layers, std = path.stem.split("_")
    for sizes, reason in (
        ((patch, channels, "99", layers), "the name says 99 blocks"),
        ((patch, "512", blocks, layers), "the name says 512 channels"),
        (("5", channels, blocks, layers), "patches of 5 x 5"),
    ):
        name = "_".join([data, "model", *sizes, std])
        assert reason in refusal(capsys, "convert", path, tmp_path / "out", "--name", name)
    assert "not a published name" in refusal(capsys, "convert", path, tmp_path, "--name", "x.pth")
    assert not (tmp_path / "out").exists()


class Payload:
    """Pickles to a call that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, capsys, protocol):
    _, state = official_state(COND)
    made = tmp_path / "made-by-the-pickle"
    path = tmp_path / official_name(read(COND)[0])
    forged = {**state, "extra": Payload(made)}
    if protocol == "torch":
        torch.save(forged, path)
    else:
        path.write_bytes(pickle.dumps(Payload(made), protocol=2))
    line = refusal(capsys, "convert", path, tmp_path / "out")
    assert "is refused" in line
    assert "mkdir" in line
    assert not made.exists()
    assert not (tmp_path / "out").exists()
    if protocol == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert made.exists()  # the payload is real


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path, capsys):
    path = write(tmp_path, COND)
    whole = path.read_bytes()
    _, state = official_state(COND)
    torch.save({"optimizer": {}, "lr_schedule": {"counter": torch.tensor(1)}}, path)
    assert "bare" in refusal(capsys, "convert", path, tmp_path / "out")
    torch.save({"weight": torch.ones(1)}, path)
    assert "not the weights of a TarFlow" in refusal(capsys, "convert", path, tmp_path / "out")
    state["blocks.0.proj_out.bias"][1] = float("nan")
    torch.save(state, path)
    assert "blocks.0.proj_out.bias" in refusal(capsys, "convert", path, tmp_path / "out")
    for content in (whole[:-1000], b"text", b""):
        path.write_bytes(content)
        assert "weights" in refusal(capsys, "convert", path, tmp_path / "out")
    path.unlink()
    assert "cannot read" in refusal(capsys, "convert", path, tmp_path / "out")
