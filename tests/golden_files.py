"""Reference files of the official models: reading them, and computing what they hold.

Layout of a file: `weights.*` the state dict; `in.*` images, labels, dropped labels and noise;
`forward_{cond,dropped,uncond}.*`, `sample_{cond,uncond}[_tempX][_gX][_a|_b][_annealed].images`
and `denoise_sigmaX.images` the outputs. Metadata: img, in_channels, classes, patch, channels,
blocks, layers, vp.

Files of STARFlow instead have `in.condition` and `in.condition_dropped`, the output `blockN` of
each block, `sample[_gX].images`, latents in image layout, and metadata layers (a list), text,
txt_size, txt_dim.
"""

import re

import torch
from safetensors import safe_open

from tarflow.config import SamplerConfig
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.model.patches import patchify
from tarflow.model.weights import build, config_from_state
from tarflow.sample.inverse import invert
from tarflow.sample.sampling import denoise

TOLERANCE = 1e-5  # of the largest absolute reference value


def read(golden, dtype):
    """Return the metadata and the tensors of a file."""
    with safe_open(golden, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return metadata, {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def built(metadata, tensors):
    """Return the flow with the weights of a file."""
    state = weights(tensors)
    if "in.condition_dropped" in tensors:
        state["null_condition"] = tensors["in.condition_dropped"][0]
    given = {"image_channels": int(metadata["in_channels"])}
    if is_starflow(metadata):
        given["image_size"] = int(metadata["img"])
        given["condition_tokens"] = len(state.get("null_condition", ()))
    return build(config_from_state(state, **given), state)


def is_starflow(metadata):
    return "sos" in metadata.get("options", "")


def weights(tensors):
    prefix = "weights."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def outputs(tensors):
    return {n: t for n, t in tensors.items() if not n.startswith(("weights.", "in."))}


def compute(flow, tensors, name):
    """Compute the output called `name` from the inputs."""
    call, result = name.rsplit(".", 1)
    condition = tensors.get("in.condition")
    if "in.labels" in tensors:
        condition = tensors["in.labels"] if "_cond" in call else None
    if call.startswith("forward"):
        if "_dropped" in call:
            condition = tensors["in.labels_dropped"]
        with torch.no_grad():
            steps = flow.trace(tensors["in.images"], condition)
            latents, logdet = flow(tensors["in.images"], condition)
        if result.startswith("block"):
            return steps[int(result.removeprefix("block"))][0]
        loss = negative_log_likelihood(latents, logdet).mean()
        return {"latents": latents, "logdet_per_dim": logdet, "loss": loss}[result]
    if call.startswith("sample"):
        noise = tensors["in.noise"]
        if noise.ndim == 4:
            noise = patchify(noise, flow.config)
        return invert(flow, noise * flow.var.sqrt(), condition, sampler(call, flow))
    std = float(re.fullmatch(r"denoise_sigma([\d.]+)", call)[1])
    return denoise(flow, tensors["in.images"], tensors.get("in.labels"), std)


def sampler(call, flow):
    guidance = re.search(r"_g([\d.]+)", call)
    temperature = re.search(r"_temp([\d.]+)", call)
    part = re.search(r"_([ab])(?=_|$)", call)
    return SamplerConfig(
        guidance=float(guidance[1]) if guidance else 0.0,
        temperature=float(temperature[1]) if temperature else 1.0,
        part={"a": "scale", "b": "shift"}[part[1]] if part else "both",
        annealed="_annealed" in call,
        rule="gaussian-score" if flow.config.start_token else "log-scale",
    )
