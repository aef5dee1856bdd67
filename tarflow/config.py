"""What one run is: frozen dataclasses, read from and written to YAML.

Legend: `T` tokens per image, `D` values per token.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tarflow.errors import ConfigError

Config = TypeVar("Config")

NUMERICS_VERSION = 1  # raised when the same config would give other numbers


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """TarFlow architecture (Zhai et al. 2025, section 3)."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    image_size: int = 28  # pixels along one side of the square image
    image_channels: int = 1  # colour channels of the image
    classes: int = 0  # labels the model is conditioned on; 0 is unconditional
    patch: int = 4  # pixels along one side of a patch
    channels: int = 64  # width of every Transformer layer
    blocks: int = 4  # autoregressive flow blocks, alternating direction
    layers: int = 2  # Transformer layers inside each flow block
    head_dim: int = 64  # channels of one attention head
    volume_preserving: bool = False  # shift only, no scale (an ablation)

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in (
            "image_size",
            "image_channels",
            "patch",
            "channels",
            "blocks",
            "layers",
            "head_dim",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.classes < 0:
            raise ConfigError(f"model.classes is {self.classes}: it must be 0 or more")
        if self.image_size % self.patch:
            raise ConfigError(
                f"model.patch {self.patch} does not divide model.image_size {self.image_size}"
            )
        if self.channels % self.head_dim:
            raise ConfigError(
                f"model.head_dim {self.head_dim} does not divide model.channels {self.channels}"
            )

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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images; the split is fixed by the data, never by the run."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str = "digits"  # digits, leaves, markov, or a Parquet file or folder
    hash: str = ""  # content hash; filled in when the config is resolved
    flip: bool = False  # mirror images at random (not for digits)


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The noise added to training images (Zhai et al. 2025, section 3.3)."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    type: Literal["gaussian", "uniform"] = "gaussian"  # uniform is dequantisation
    std: float = 0.1  # standard deviation in [-1, 1] units; unused by uniform

    def __post_init__(self) -> None:
        """Refuse a Gaussian without width."""
        if self.type == "gaussian" and not 0 < self.std < 10:
            raise ConfigError(f"noise.std is {self.std}: Gaussian noise needs a value in (0, 10)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule; every horizon is counted in images seen."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of hidden matrices, AdamW of the rest
    lr: float = 1e-3  # peak learning rate
    base_channels: int = 0  # width that lr was tuned at: matrices of others are scaled; 0 is off
    beta1: float = 0.9  # decay of the gradient average
    beta2: float = 0.95  # decay of the squared-gradient average
    weight_decay: float = 1e-4  # on all parameters, as published
    clip: float = 1.0  # largest gradient norm
    schedule: Literal["wsd", "cosine"] = "wsd"  # warm-up, stable, linear decay; or cosine
    warmup_images: int = 1024  # linear warm-up
    cooldown: float = 0.2  # share of the images spent in the linear decay (wsd)
    ema: float = 0.05  # width of the weight average as a share of the images seen; 0 is off
    label_drop: float = 0.1  # share of labels dropped in training of conditional models

    def __post_init__(self) -> None:
        """Refuse rates and shares outside their range."""
        if self.lr <= 0:
            raise ConfigError(f"optim.lr is {self.lr}: it must be positive")
        if self.base_channels < 0:
            raise ConfigError(
                f"optim.base_channels is {self.base_channels}: it is a width, or 0 for off"
            )
        if self.clip <= 0:
            raise ConfigError(f"optim.clip is {self.clip}: it must be positive")
        for name in ("cooldown", "label_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: it is a share, 0 to 1")
        if not 0 <= self.ema < 0.25:
            raise ConfigError(f"optim.ema is {self.ema}: it is a share, 0 to below 0.25")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How samples are drawn from a trained model; costs no training."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    guidance: float = 0.0  # weight of the guided extrapolation; 0 is off
    rule: Literal["log-scale", "sigma-linear", "gaussian-score"] = "log-scale"  # of guidance
    part: Literal["both", "scale", "shift"] = "both"  # what guidance acts on
    guided_blocks: str = "all"  # or top:N, the N blocks nearest the noise
    annealed: bool = True  # grow the weight linearly along the tokens
    temperature: float = 1.0  # attention temperature of the unguided branch
    denoise: float = 1.0  # multiplier of the score step (Gaussian noise only); 0 is off

    def __post_init__(self) -> None:
        """Refuse settings that no sampler can follow."""
        if not re.fullmatch(r"all|top:[1-9]\d*", self.guided_blocks):
            raise ConfigError(
                f"sampler.guided_blocks is {self.guided_blocks!r}: write all, or top:3 for the "
                "three blocks nearest the noise"
            )
        if self.guidance < 0:
            raise ConfigError(f"sampler.guidance is {self.guidance}: it must be 0 or more")
        if self.temperature <= 0:
            raise ConfigError(f"sampler.temperature is {self.temperature}: it must be positive")

    def guides(self, block: int, blocks: int) -> bool:
        """Tell whether the block of this index, counted from the images, is guided.

        >>> [SamplerConfig(guidance=1.0, guided_blocks="top:1").guides(i, 3) for i in range(3)]
        [False, False, True]
        """
        top = blocks if self.guided_blocks == "all" else int(self.guided_blocks.split(":")[1])
        return self.guidance > 0 and block >= blocks - top


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured of a finished run; reads the model, never changes it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    split: Literal["validation", "test"] = "validation"  # test is read once, by the final run
    draws: int = 1  # noise draws per held-out image
    decoder_images: int = 1000  # training images that fit the decoder of the BPD bound
    samples: int = 500  # generated images to compare with the held-out ones; 0 is none
    features: str = "efficientnet-lite0"  # feature extractor of KID and its kin


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a run is carried out: changes its cost, never its meaning, so it is not hashed."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where to train
    workers: int = 1  # data-parallel processes
    min_workers: int = 0  # go on with as few when machines are lost; 0 waits for all
    sharding: Literal["auto", "replicate", "shard"] = "auto"  # shard: divide the state by workers
    threads: int = 0  # CPU threads per worker; 0 leaves torch's choice
    micro_batch: int = 0  # images per forward pass and worker; 0 is the most that fit in memory
    fused: bool = True  # on a CPU, layers by kernels that g++ compiles in 3 s, once
    compile: bool = False  # torch.compile of layers that are not fused: 10 to 20 s, pays on a GPU
    checkpoint_activations: bool = False  # keep less for the backward pass, compute it again
    solver: str = "auto"  # how blocks are inverted: see `tarflow.sample.plan.named_plan`
    checkpoint_seconds: float = 30.0  # between saved states; more if that costs 2% of training
    report_seconds: float = 1.0  # between progress reports


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run and what is measured of it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    images: int = 4096  # training images seen, the unit of progress
    batch: int = 64  # images per optimizer step over all workers
    seed: int = 0  # of weights, order and noise
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # arithmetic of training
    numerics_version: int = NUMERICS_VERSION  # of the code that gives the numbers
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        """Refuse a run without images."""
        if self.images < 1 or self.batch < 1:
            raise ConfigError("images and batch must be at least 1")
        if self.images % self.batch:
            raise ConfigError(
                f"images {self.images} is not a multiple of batch {self.batch}; "
                f"write {round_images(self.images, self.batch)}"
            )


def round_images(images: float, batch: int) -> int:
    """Round a number of images to whole optimizer steps, at least one."""
    return max(1, round(images / batch)) * batch


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the validator of a config class, built once."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain nested dictionaries."""
    plain: dict[str, Any] = adapter(type(config)).dump_python(config, mode="json")
    return plain


def from_dict(kind: type[Config], plain: Any, where: str = "config") -> Config:
    """Build a config from nested dictionaries, refusing unknown keys and wrong types.

    Raises:
        ConfigError: naming the first wrong field, and the nearest valid name for an unknown one.
    """
    try:
        built: Config = adapter(kind).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_line(kind, error)}") from None
    return built


def _first_line(kind: type[Any], error: ValidationError) -> str:
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    first = min(error.errors(), key=lambda each: each["type"] not in unknown)  # a typo comes first
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] in unknown:
        owner: Any = kind
        for part in first["loc"][:-1]:
            if is_dataclass(owner):
                owner = next((f.type for f in fields(owner) if f.name == part), owner)
            owner = next((each for each in get_args(owner) if is_dataclass(each)), owner)
        names = [f.name for f in fields(owner)] if is_dataclass(owner) else []
        near = get_close_matches(str(first["loc"][-1]), names, n=1, cutoff=0.0)
        return f"unknown key '{path}'" + (f"; did you mean '{near[0]}'?" if near else "")
    message = first["msg"].removeprefix("Value error, ")
    return message if not path or message.startswith(path) else f"{path}: {message}"


def read_yaml(kind: type[Config], path: Path) -> Config:
    """Read a config from a YAML file.

    Raises:
        ConfigError: if the file is missing, is not YAML, or does not describe the config.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return from_dict(kind, plain or {}, where=str(path))


def to_yaml(config: Any, comment: str = "") -> str:
    """Return a config as YAML, with `comment` as leading comment lines."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + yaml.safe_dump(to_dict(config), sort_keys=False)
