"""Models on disk: safetensors with the config in the metadata.

Legend: `T` tokens per image, `D` values per token, `C` channels.
"""

import json
import math
import re
import shlex
import zlib
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tarflow.config import RunConfig
from tarflow.config_files import from_dict, to_dict
from tarflow.errors import UserError
from tarflow.latent_space import KEY, LatentSpace, read_latent_space
from tarflow.model.flow import TarFlow
from tarflow.model.transformer import Layer
from tarflow.model_config import STARFLOW, ModelConfig
from tarflow.record import replacing
from tarflow.storage import local_copy, locate, locate_model

START = "blocks.0.sos_embed"  # its start token tells a STARFlow from a TarFlow
_TORCH_FILES = (b"PK", b"\x80\x02")  # first bytes: a zip file, or before torch 1.6 a pickle


def save_model(
    path: Path,
    state: Mapping[str, Tensor],
    config: RunConfig,
    latents: LatentSpace | None = None,
) -> None:
    """Write the state dict of a flow and the config of its run, whole or not at all.

    Args:
        path: File to write.
        state: State dict of the flow.
        config: Configuration of its run.
        latents: Where its latents come from, if it was trained on latents instead of images.
    """
    metadata = {"config": json.dumps(to_dict(config))}
    if latents:
        metadata[KEY] = latents.to_json()
    write_tensors(path, state, metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> int:
    """Write a safetensors file, whole or not at all, and return its CRC-32.

    Raises:
        UserError: If it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None  # usually a full disk
        with temporary.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return zlib.crc32(content)


def latents_of_model(path: Path) -> LatentSpace | None:
    """Return where the latents of a model come from, given its file or folder; None for pixels."""
    with local_copy(locate_model(path)) as local, safe_open(local, "pt") as file:
        return read_latent_space(file.metadata() or {}, str(path))


def load_model(path: Path, layer_type: type[Layer] = Layer) -> tuple[TarFlow, RunConfig]:
    """Read a model that `save_model` wrote: the flow on the CPU in eval mode, and its config.

    Raises:
        UserError: If the file is missing, damaged, has no config, or holds another model.
    """
    path = locate(path)
    try:
        with local_copy(path) as local, safe_open(local, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'no such file'}") from None
    except SafetensorError as error:
        with path.open("rb") as file:
            if file.read(2) in _TORCH_FILES:
                raise UserError(
                    f"{path} was saved by torch.save: make a model of it with python -m tarflow "
                    f"convert {shlex.quote(str(path))} FOLDER"
                ) from None
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    if "config" not in metadata:
        raise UserError(f"{path} has no run config in its metadata; import foreign weights first")
    try:
        plain = json.loads(metadata["config"])
    except json.JSONDecodeError:
        raise UserError(f"the run config in the metadata of {path} is not JSON") from None
    config = from_dict(RunConfig, plain, where=str(path))
    return build(config.model, state, str(path), layer_type), config


def build(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    where: str = "weights",
    layer_type: type[Layer] = Layer,
) -> TarFlow:
    """Build a flow in eval mode from the tensors of a state dict, without copying them.

    Attention masks, which published files hold, are ignored. Buffers that STARFlow's files lack
    (the variance of the prior, and what a dropped condition is replaced by) keep their defaults.

    Raises:
        UserError: If names or shapes are not those of the config.
    """
    with torch.device("meta"):
        flow = TarFlow(config, layer_type=layer_type)
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(".attn_mask")}
    like = next(iter(weights.values()), torch.empty(0))
    if config.start_token:
        weights.setdefault("var", like.new_ones(config.tokens, config.token_dim))
    if config.condition_tokens:
        shape = config.condition_tokens, config.condition_dim
        weights.setdefault("null_condition", like.new_zeros(shape))
    try:
        flow.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{where} does not fit its config: {first}") from None
    return flow.eval()


def config_from_state(
    state: Mapping[str, Tensor],
    image_channels: int = 3,
    head_dim: int = 64,
    image_size: int = 0,
    condition_tokens: int = 0,
) -> ModelConfig:
    """Infer the architecture from the shapes of a state dict with the published names.

    A state dict with start tokens is taken for a STARFlow.

    Args:
        state: State dict of a flow; it may hold attention masks.
        image_channels: Colour channels; shapes only tell channels times patch area.
        head_dim: Channels of a head, which shapes do not tell; 64 in all published weights.
        image_size: Pixels along one side, which only learned positions tell.
        condition_tokens: Vectors of a condition, which shapes do not tell.

    Raises:
        UserError: If the names are not those of a TarFlow, the shapes contradict each other, or
            something is not told.
    """
    try:
        channels, token_dim = state["blocks.0.proj_in.weight"].shape
        outputs = state["blocks.0.proj_out.weight"].shape[0]
        if START not in state:
            tokens = len(state["blocks.0.pos_embed"])
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"these are not the weights of a TarFlow: no usable {error}") from None
    layers: dict[str, set[str]] = {}
    for block, layer in re.findall(r"blocks\.(\d+)\.attn_blocks\.(\d+)\.", " ".join(state)):
        layers.setdefault(block, set()).add(layer)
    depths = tuple(len(layers[block]) for block in sorted(layers, key=int))
    top = len(depths) - 1
    options: dict[str, Any] = {}
    if START in state:
        if not image_size:
            raise UserError(
                "the weights of a STARFlow do not tell the size of its images: give --image-size"
            )
        text = state.get(f"blocks.{top}.proj_txt.weight")
        if text is not None and not condition_tokens:
            raise UserError(
                "the weights do not tell how many text tokens the model takes: "
                "give --condition-tokens"
            )
        options = dict(STARFLOW)
        if text is not None:
            options |= {"condition_tokens": condition_tokens, "condition_dim": text.shape[1]}
            if "blocks.0.proj_txt.weight" in state and top:
                options["conditioned"] = "all"
        patch = math.isqrt(token_dim // image_channels)
        tokens = (image_size // patch) ** 2 if patch else 0
    side, patch = math.isqrt(tokens), math.isqrt(token_dim // image_channels)
    if side**2 != tokens or image_channels * patch**2 != token_dim:
        raise UserError(
            f"{tokens} tokens of {token_dim} values are no square image with {image_channels} "
            "channels; give the right image_channels"
        )
    table = state.get(f"blocks.{top}.class_embed")
    return ModelConfig(
        image_size=image_size or side * patch,
        image_channels=image_channels,
        classes=0 if table is None else len(table),
        patch=patch,
        channels=channels,
        blocks=len(depths),
        layers=depths,
        head_dim=head_dim,
        volume_preserving=outputs == token_dim,
        **options,
    )
