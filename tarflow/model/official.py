"""Published weights, such as `afhq_model_8_768_8_8_0.07.pth`, read without running their code.

Such a file is a bare state dict saved by `torch.save`, or holds several under keys. Its name says
the rest: data set, patch, channels, blocks, layers and the standard deviation of the training
noise (or `uniform`).

Legend: `T` tokens per image, `D` values per token.
"""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from tarflow.config import DataConfig, NoiseConfig, RunConfig
from tarflow.errors import UserError
from tarflow.model.flow import TarFlow
from tarflow.model.weights import START, build, config_from_state
from tarflow.model_config import ModelConfig

_NAME = re.compile(
    r"(?P<data>.+)_model_(?P<patch>\d+)_(?P<channels>\d+)_(?P<blocks>\d+)_(?P<layers>\d+)"
    r"_(?P<noise>uniform|\d*\.\d+)(\.\w+)?"
)
_WRAPPERS = ("module", "_orig_mod")  # in the names that DataParallel and torch.compile save
_EXAMPLE = "afhq_model_8_768_8_8_0.07.pth"


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the name of a published file says."""

    data: str
    patch: int
    channels: int
    blocks: int
    layers: int
    noise_std: float  # in [-1, 1] units; 0 is uniform noise


def parse_name(name: str) -> Named | None:
    """Read the name of a published file; None if it is not of that form.

    >>> parse_name("imagenet64_model_2_768_8_8_uniform.pth")
    Named(data='imagenet64', patch=2, channels=768, blocks=8, layers=8, noise_std=0.0)
    """
    parts = _NAME.fullmatch(Path(name).name)
    if not parts:
        return None
    noise = parts["noise"]
    return Named(
        data=parts["data"],
        patch=int(parts["patch"]),
        channels=int(parts["channels"]),
        blocks=int(parts["blocks"]),
        layers=int(parts["layers"]),
        noise_std=0.0 if noise == "uniform" else float(noise),
    )


def read_official(
    source: Path,
    name: str = "",
    patch: int | None = None,
    noise_std: float | None = None,
    data: str = "",
    key: str = "",
    image_size: int = 0,
    condition_tokens: int = 0,
) -> tuple[TarFlow, RunConfig]:
    """Read published weights as a flow, and infer the config of its run.

    Weights with a start token are STARFlow's.

    How the weights were trained is unknown except for the noise: the optimizer, the number of
    images and the seed of the config are defaults.

    Args:
        source: Published file.
        name: Published name, if the file has been renamed.
        patch: Pixels along one side of a patch; overrides the name. By default the largest that
            the shapes allow for colour images, or else for grey ones; 1 for STARFlow.
        noise_std: Standard deviation of the training noise, 0 for uniform noise; overrides the
            name.
        data: Images to score the model on; by default the data set in the file's name, which may
            not be the name of images here.
        key: Key of the state dict in the file; empty if the file is a bare one.
        image_size: Pixels along one side, for STARFlow, whose shapes do not tell them.
        condition_tokens: Vectors of a condition, for STARFlow with text.

    Raises:
        UserError: If the file does not hold plain finite weights; if name, flags and shapes
            disagree; or if neither name nor flag tells the noise.
    """
    if not source.is_file():
        raise UserError(f"cannot read {source}: no such file")
    named = parse_name(name or source.name)
    if name and named is None:
        raise UserError(f"'{name}' is not a published name like {_EXAMPLE}")
    if noise_std is None:
        if named is None:
            raise UserError(
                f"the name {source.name} does not tell the training noise, as {_EXAMPLE} does; "
                "give --noise-std (0 for uniform noise), or --name with the published name"
            )
        noise_std = named.noise_std
    state = read_state(source, key)
    patch = patch or (named.patch if named else None)
    model = _model(state, patch, image_size, condition_tokens)
    if named:
        for field in ("channels", "blocks", "layers"):
            expected, found = getattr(named, field), getattr(model, field)
            if expected != found:
                raise UserError(f"the name says {expected} {field}, the weights have {found}")
    config = RunConfig(
        model=model,
        data=DataConfig(name=data or (named.data if named else "unknown")),
        noise=NoiseConfig(std=noise_std) if noise_std else NoiseConfig(type="uniform"),
        precision="float32",
    )
    return build(model, state, where=str(source)), config


def read_state(path: Path, key: str = "") -> dict[str, Tensor]:
    """Read the float tensors of a state dict as float32, refusing a file that would run code.

    Args:
        path: File that `torch.save` wrote.
        key: Key of the state dict in the file; empty if the file is a bare one.

    Returns:
        Tensors by name, without the prefixes that DataParallel and torch.compile add.

    Raises:
        UserError: if the file cannot be read, holds anything but tensors, or values that are
            not finite.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise UserError(
                f"{path} is refused: it holds more than weights, and loading it would call "
                f"{code[1]}"
            ) from None
        raise UserError(f"{path} is not a file of weights saved by torch.save") from None
    except Exception:  # a damaged file can raise anything
        raise UserError(f"{path} is not a whole file of weights saved by torch.save") from None
    found = loaded.get(key) if key and isinstance(loaded, Mapping) else loaded
    if not _is_state(found):
        inner = loaded.items() if isinstance(loaded, Mapping) else ()
        keys = sorted(str(name) for name, value in inner if _is_state(value) and _is_flow(value))
        raise UserError(
            f"{path} holds weights under {' and '.join(keys)}: choose with --key {keys[0]}"
            if keys
            else f"{path} holds no state dict: published weights are a bare state dict"
        )
    state = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): tensor.float()
        for name, tensor in found.items()
        if name != "n_averaged"  # the counter of torch's AveragedModel
    }
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite")
    return state


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Tell whether a value is a state dict."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _is_flow(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the names of a TarFlow, perhaps with prefixes."""
    return any(name.endswith("blocks.0.proj_in.weight") for name in state)


def _model(
    state: Mapping[str, Tensor], patch: int | None, image_size: int, condition_tokens: int
) -> ModelConfig:
    """Infer the architecture; without patch, D = 3 patch^2 or patch^2, which are never both."""
    projection = state.get("blocks.0.proj_in.weight")
    image_channels = 3
    if projection is not None and START in state:
        image_channels, rest = divmod(projection.shape[1], (patch or 1) ** 2)
        if rest:
            raise UserError(f"{projection.shape[1]} values a token are no patch of side {patch}")
    elif projection is not None and projection.ndim == 2:
        token_dim = projection.shape[1]
        if patch:
            image_channels, rest = divmod(token_dim, patch**2)
            if rest or image_channels not in (1, 3):
                raise UserError(
                    f"the weights have {token_dim} values a token, which patches of "
                    f"{patch} x {patch} grey or colour pixels do not give"
                )
        elif math.isqrt(token_dim) ** 2 == token_dim:
            image_channels = 1
    return config_from_state(
        state, image_channels, image_size=image_size, condition_tokens=condition_tokens
    )
