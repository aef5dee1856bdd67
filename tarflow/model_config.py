"""The architecture of a model, and the families of options that it may be named by in files.

Legend: `T` tokens per image, `D` values per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from tarflow.errors import ConfigError
from tarflow.fields import COUNT, SIZE, check_fields, merged


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture: TarFlow's (Zhai et al. 2025, section 3), or with other options STARFlow's.

    The options are those in which STARFlow (Gu et al. 2025, arXiv 2506.06276) differs; `STARFLOW`
    sets them all.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    image_size: int = 28  # pixels along one side of the square images
    image_channels: int = 1  # colour channels of the images: 1 is grey, 3 is RGB
    classes: int = 0  # number of labels to condition on; 0 is an unconditional model
    patch: int = 4  # pixels along one side of a patch; divides image_size
    channels: int = 64  # width of every Transformer layer
    blocks: int = 4  # autoregressive flow blocks, in alternating directions
    layers: int | tuple[int, ...] = (
        2  # Transformer layers in each block, or a list from the images
    )
    head_dim: int = 64  # channels of one attention head; divides channels
    volume_preserving: bool = False  # shift without scaling, an ablation
    first_block: Literal["forwards", "backwards"] = "forwards"  # its reading direction
    start_token: bool = False  # learn a start token, so that the first token is transformed too
    scale: Literal["exp", "softplus"] = "exp"  # map from a block's raw output to its scale
    soft_clip: float = 0.0  # bound c of raw outputs x, as c tanh(x / c); 0 is off
    final_norm: bool = False  # RMS norm before the output map of each block
    positions: Literal["learned", "rope"] = "learned"  # table of embeddings, or rotary ones
    token_order: Literal["channel-first", "channel-last"] = "channel-first"  # inside a token
    condition_tokens: int = 0  # vectors per image to condition on, instead of labels; 0 is none
    condition_dim: int = 0  # values of each of these vectors
    conditioned: Literal["all", "top"] = "all"  # blocks that see the condition; top: nearest noise

    def __post_init__(self) -> None:
        sizes = ("image_size", "image_channels", "patch", "channels", "blocks", "head_dim")
        rules = {name: (getattr(self, name) >= 1, SIZE) for name in sizes}
        vectors = self.condition_tokens, self.condition_dim
        depths = (self.layers,) if isinstance(self.layers, int) else self.layers
        fits = len(depths) == self.blocks or isinstance(self.layers, int)
        if fits and len(set(depths)) == 1:
            object.__setattr__(self, "layers", depths[0])  # equal models have equal configs
        check_fields(
            "model",
            self,
            **rules,
            layers=(
                fits and min(depths, default=0) >= 1,
                f"write one number of at least 1, or a list of {self.blocks}, one for each block",
            ),
            classes=(self.classes >= 0, COUNT),
            soft_clip=(self.soft_clip >= 0, "it must be positive, or 0 for off"),
            condition_tokens=(self.condition_tokens >= 0, COUNT),
            condition_dim=(
                min(vectors) >= 0 and bool(vectors[0]) == bool(vectors[1]),
                "set both condition_tokens and condition_dim, or neither",
            ),
        )
        if self.classes and self.condition_tokens:
            raise ConfigError(
                "model.classes and model.condition_tokens are both set: a model is conditioned on "
                "labels or on vectors"
            )
        if self.image_size % self.patch:
            raise ConfigError(
                f"model.patch {self.patch} does not divide model.image_size {self.image_size}"
            )
        if self.channels % self.head_dim:
            raise ConfigError(
                f"model.head_dim {self.head_dim} does not divide model.channels {self.channels}"
            )
        multiple = 16 if self.condition_tokens else 4  # see `tarflow.model.rotary`
        if self.positions == "rope" and self.head_dim % multiple:
            raise ConfigError(
                f"model.head_dim is {self.head_dim}: with rope it must be a multiple of {multiple}"
            )

    @model_validator(mode="before")
    @classmethod
    def _family(cls, plain: Any) -> Any:
        """Replace `family: starflow` in a file by `STARFLOW`, which other keys override."""
        if not isinstance(plain, Mapping) or "family" not in plain:
            return plain
        options = family_options(plain["family"])
        rest = {name: value for name, value in plain.items() if name != "family"}
        if options.keys() <= rest.keys() and any(rest[name] != options[name] for name in options):
            raise ValueError(
                f"family is {plain['family']}, but every option of it is set beside it: remove "
                f"family, or {', '.join(options)}"
            )
        return {**options, **rest}

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer layers of each block, the one nearest the images first."""
        return (self.layers,) * self.blocks if isinstance(self.layers, int) else self.layers

    @property
    def total_layers(self) -> int:
        """Transformer layers of all blocks."""
        return sum(self.depths)

    @property
    def mean_layers(self) -> int:
        """Transformer layers of a block, on average."""
        return round(self.total_layers / self.blocks)

    @property
    def layer_split(self) -> str:
        """Layers of each block, such as 1-1-1-13; empty if all have the same number."""
        return "" if isinstance(self.layers, int) else "-".join(map(str, self.layers))

    @property
    def conditional(self) -> bool:
        """Whether the model takes labels or vectors to condition on."""
        return bool(self.classes or self.condition_tokens)

    def prefix(self, block: int) -> int:
        """Return how many condition tokens stand before the image tokens of a block."""
        top = block == self.blocks - 1
        return self.condition_tokens if top or self.conditioned == "all" else 0

    @property
    def tokens(self) -> int:
        """Tokens per image, T."""
        return (self.image_size // self.patch) ** 2

    @property
    def token_dim(self) -> int:
        """Values per token, D."""
        return self.image_channels * self.patch**2

    @property
    def dims(self) -> int:
        """Values per image, T * D."""
        return self.tokens * self.token_dim


STARFLOW: Mapping[str, Any] = {  # the options of `ModelConfig` that make a STARFlow
    "first_block": "backwards",  # so that the deep block of an even stack reads forwards
    "start_token": True,
    "scale": "softplus",
    "soft_clip": 4.0,
    "final_norm": True,
    "positions": "rope",
    "token_order": "channel-last",
    "conditioned": "top",
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {  # in files and in changes
    "tarflow": {each.name: each.default for each in fields(ModelConfig) if each.name in STARFLOW},
    "starflow": STARFLOW,
}


def family_options(name: object) -> Mapping[str, Any]:
    """Return the options of `ModelConfig` that `family: NAME` stands for.

    Raises:
        ConfigError: If there is no such family.
    """
    if name not in list(FAMILIES):  # a list, as the name may be of any type
        raise ConfigError(f"model.family is {name!r}: write {' or '.join(FAMILIES)}")
    return FAMILIES[str(name)]


def changed(plain: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, given as nested dictionaries, with the values of others in their places.

    `family` among the changes of a model sets all options of that family, which its other keys
    override.

    Raises:
        ConfigError: If there is no such family.
    """
    return merged(plain, _without_families(change))


def _without_families(change: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for name, value in change.items():
        if isinstance(value, Mapping):
            inner = _without_families(value)
            if name == "model" and "family" in inner:
                inner = {**family_options(inner.pop("family")), **inner}
            result[name] = inner
        else:
            result[name] = value
    return result
