"""The config of one run: frozen dataclasses, read from and written to YAML.

Legend: `T` tokens per image, `D` values per token.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator

from tarflow.errors import ConfigError, UserError
from tarflow.fields import explained, leaves, merged, must_be, unknown
from tarflow.strict_yaml import parse

Config = TypeVar("Config")

CLASSIFIER = "classifier"  # features learned from the labels of the data
FEWEST_IMAGES = 4  # samples, and held-out images, that KID, precision and recall need
NUMERICS_VERSION = 1  # raise it when the same config gives other numbers
Precision = Literal["float32", "bfloat16", "float64"]  # of the matrix products of training


COUNT, SIZE = "it must be 0 or more", "it must be at least 1"
UNION = ("int", "tuple[int, ...]")  # parts of the paths by which pydantic names what it tried
SOLVERS = r"auto|sequential|jacobi|selective|segmented:0*[1-9]\d*"  # see `tarflow.sample.plan`
SHARE, DECAY = "it is a share, 0 to 1", "it is a decay, from 0 to below 1"


def check_fields(section: str, config: object, **rules: tuple[bool, str]) -> None:
    """Refuse the first field that breaks its rule, or is a number that no table can hold.

    Args:
        section: Name of the config inside that of the run; empty for the outermost one.
        config: Config to check.
        **rules: For each field, whether its value is right, and what to write.

    Raises:
        ConfigError: If a value is wrong, naming the field.
    """
    fit = {
        name: (math.isfinite(value), "it must be a finite number")
        if isinstance(value, float)
        else (abs(value) < 2**63, "it must be below 2**63")
        for name, value in vars(config).items()
        if isinstance(value, int | float)
    }
    for name, (holds, rule) in [*fit.items(), *rules.items()]:
        if not holds:
            path = f"{section}.{name}" if section else name
            raise ConfigError(f"{path} is {getattr(config, name)!r}: {rule}")


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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a run; the data fixes their split, not the run."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str = "digits"  # digits, leaves, markov, or the path or URI of Parquet images
    hash: str = ""  # hash of the content; filled in when the config is resolved
    flip: bool = False  # mirror training images at random; not for digits


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The noise added to training images (Zhai et al. 2025, section 3.3)."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    type: Literal["gaussian", "uniform"] = "gaussian"  # uniform: one grey level, dequantisation
    std: float = 0.1  # standard deviation of Gaussian noise; images are in [-1, 1]

    def __post_init__(self) -> None:
        valid = self.type == "uniform" or 0 < self.std < 10
        check_fields("noise", self, std=(valid, "Gaussian noise needs a value in (0, 10)"))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and schedule; every horizon counts images seen."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices; AdamW for the rest
    lr: float = 1e-3  # peak learning rate
    base_channels: int = 0  # width at which lr was tuned, to scale it for others; 0 is off
    beta1: float = 0.9  # decay of the running mean of gradients
    beta2: float = 0.95  # decay of the running mean of squared gradients
    weight_decay: float = 1e-4  # applies to all parameters, as published
    clip: float = 1.0  # largest gradient norm; longer gradients are scaled down to it
    schedule: Literal["wsd", "cosine"] = "wsd"  # warm-up, stable, linear decay; or cosine
    warmup_images: int = 1024  # images over which the learning rate rises linearly
    cooldown: float = 0.2  # share of the images in the linear decay of wsd, 0 to 1
    ema: float = 0.05  # width of the weight average, as a share of the images seen; 0 is off
    label_drop: float = 0.1  # share of conditions dropped in training, 0 to 1
    output_penalty: float = 0.0  # weight of the mean squares between blocks in the loss; 0 is off

    def __post_init__(self) -> None:
        check_fields(
            "optim",
            self,
            lr=(self.lr > 0, "it must be positive"),
            base_channels=(self.base_channels >= 0, "it is a width, or 0 for off"),
            beta1=(0 <= self.beta1 < 1, DECAY),
            beta2=(0 <= self.beta2 < 1, DECAY),
            weight_decay=(self.weight_decay >= 0, COUNT),
            clip=(self.clip > 0, "it must be positive"),
            warmup_images=(self.warmup_images >= 0, COUNT),
            cooldown=(0 <= self.cooldown <= 1, SHARE),
            label_drop=(0 <= self.label_drop <= 1, SHARE),
            output_penalty=(self.output_penalty >= 0, COUNT),
            ema=(0 <= self.ema < 0.25, "it is a share, from 0 to below 0.25"),
        )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How to draw samples from a trained model; needs no new training."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    guidance: float = 0.0  # guidance weight; 0 is off
    rule: Literal["log-scale", "sigma-linear", "gaussian-score"] = "log-scale"  # of guidance
    part: Literal["both", "scale", "shift"] = "both"  # outputs of a block that guidance changes
    guided_blocks: str = "all"  # all, or top:N for the N blocks nearest the noise
    annealed: bool = True  # let the guidance weight grow linearly along the tokens
    temperature: float = 1.0  # attention temperature of the unguided prediction
    denoise: float = 1.0  # multiplier of the final denoising step (Gaussian noise only); 0 is off

    def __post_init__(self) -> None:
        named = re.fullmatch(r"all|top:[1-9]\d*", self.guided_blocks) is not None
        check_fields(
            "sampler",
            self,
            guided_blocks=(named, "write all, or top:3 for the three blocks nearest the noise"),
            guidance=(self.guidance >= 0, COUNT),
            temperature=(self.temperature > 0, "it must be positive"),
            denoise=(self.denoise >= 0, COUNT),
        )

    def guides(self, block: int, blocks: int) -> bool:
        """Tell whether guidance acts on a block.

        Args:
            block: Index of the block, counted from the images.
            blocks: Number of blocks.

        >>> [SamplerConfig(guidance=1.0, guided_blocks="top:1").guides(i, 3) for i in range(3)]
        [False, False, True]
        """
        top = blocks if self.guided_blocks == "all" else int(self.guided_blocks.split(":")[1])
        return self.guidance > 0 and block >= blocks - top


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to measure after training; never changes the model."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    split: Literal["validation", "test"] = "validation"  # held-out images; test: final run only
    draws: int = 1  # noise draws per held-out image
    decoder_images: int = 1000  # training images to fit the decoder of the BPD bound on
    samples: int = 500  # images to generate and compare with the held-out ones; 0 skips it
    features: str = "efficientnet-lite0"  # feature extractor of KID, FD, precision and recall
    autoencoder: str = ""  # folder that decodes latents, if not the one that encoded them

    def __post_init__(self) -> None:
        check_fields(
            "evaluation",
            self,
            draws=(self.draws >= 1, SIZE),
            decoder_images=(self.decoder_images >= 1, SIZE),
            samples=(
                self.samples == 0 or self.samples >= FEWEST_IMAGES,
                f"write 0 for none, or at least {FEWEST_IMAGES}",
            ),
        )

    def check_held_out(self, images: int) -> None:
        """Make sure that a split has enough images to score, and to compare samples with.

        Args:
            images: Number of images in `split`.

        Raises:
            ConfigError: If they are too few.
        """
        needed = FEWEST_IMAGES if self.samples else 1
        if images < needed:
            advice = ", or 0 for evaluation.samples" if images > 0 else ""
            raise ConfigError(
                f"evaluation.split is {self.split}, which has {images} images: "
                f"take data with at least {needed}{advice}"
            )


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How to execute a run: changes its cost, not its results, so it is not hashed."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where to train; auto prefers a GPU
    workers: int = 1  # data-parallel processes
    min_workers: int = 0  # fewest to continue with after losing machines; 0 waits for all
    sharding: Literal["auto", "replicate", "shard"] = "auto"  # shard splits the state (FSDP)
    threads: int = 0  # CPU threads per worker; 0 leaves the choice to torch
    micro_batch: int = 0  # images per forward pass of a worker; 0: as many as fit in memory
    fused: bool = True  # fused kernels; g++ or Triton compiles them once, in seconds
    compile: bool = False  # torch.compile layers that have no fused kernels: 10 to 20 s
    residuals: Literal["auto", "float32", "bfloat16"] = "auto"  # hidden states of fused GPU layers
    checkpoint_activations: bool = False  # recompute activations backward to save memory
    solver: str = "auto"  # how to invert the blocks; see `tarflow.sample.plan`
    checkpoint_seconds: float = 30.0  # between checkpoints; more if they cost 2% of training
    report_seconds: float = 1.0  # between progress reports
    preview_images: int = 0  # between samples while training; 0: four times, if that costs 2%

    def __post_init__(self) -> None:
        counts = ["min_workers", "threads", "micro_batch", "checkpoint_seconds", "report_seconds"]
        counts.append("preview_images")
        rules = {name: (getattr(self, name) >= 0, COUNT) for name in counts}
        known = re.fullmatch(SOLVERS, self.solver) is not None
        rules["solver"] = known, "write auto, sequential, jacobi, selective or segmented:8"
        check_fields("execution", self, workers=(self.workers >= 1, SIZE), **rules)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run and its evaluation."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    images: int = 4096  # training images to see, a multiple of batch
    batch: int = 64  # images per optimizer step over all workers
    seed: int = 0  # seeds weights, order of images and noise
    precision: Literal["auto"] | Precision = "auto"  # arithmetic of training
    numerics_version: int = NUMERICS_VERSION  # version of the code that gives the numbers
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise ConfigError("images and batch must be at least 1")
        if self.images % self.batch:
            raise ConfigError(
                f"images {self.images} is not a multiple of batch {self.batch}; "
                f"write {round_images(self.images, self.batch)}"
            )
        check_fields(
            "",
            self,
            seed=(self.seed >= 0, COUNT),
            numerics_version=(self.numerics_version >= 1, SIZE),
        )

    @property
    def accelerator_precision(self) -> Precision:
        """The precision that `auto` stands for on an accelerator.

        Matrix units are fastest in bfloat16, but uniform noise is one grey level wide, and what
        bfloat16 rounds away can cost bits per dimension (`benchmarks/README.md`).
        """
        return "float32" if self.noise.type == "uniform" else "bfloat16"

    @property
    def precision_warning(self) -> str:
        """What the chosen precision costs, in one line; empty if it costs nothing."""
        if self.precision != "bfloat16" or self.accelerator_precision == "bfloat16":
            return ""
        return (
            "precision: bfloat16 with uniform noise can cost about 0.06 bits per dimension, as "
            "measured on digits: set it to float32 or auto"
        )


def round_images(images: float, batch: int) -> int:
    """Round a number of images to whole optimizer steps, at least one."""
    return max(1, round(images / batch)) * batch


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # built on first use


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain nested dictionaries."""
    plain: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json")
    return plain


def from_dict(kind: type[Config], plain: Any, where: str = "config") -> Config:
    """Build a config from nested dictionaries, refusing unknown keys and wrong types.

    Raises:
        ConfigError: If a field is wrong; names the first one, after `where`, and the nearest
            valid name for an unknown one.
    """
    if not isinstance(plain, Mapping):
        words = " ".join(str(plain).split())
        raise ConfigError(f"{where}: {words[:40]!r} is no mapping of fields, such as batch: 64")
    for path in sorted(_truths(kind, plain)):
        raise ConfigError(
            f"{where}: {path} is true or false (or yes, no, on, off): write a number"
        )
    try:
        built: Config = _adapter(kind).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_line(kind, error)}") from None
    return built


def _truths(kind: Any, plain: Any, path: str = "") -> Iterator[str]:
    """Name the numbers that are written as true or false, which pydantic takes for 1 and 0."""
    if kind in (int, float) and isinstance(plain, bool):
        yield path
    elif is_dataclass(kind) and isinstance(plain, Mapping):
        for member in fields(kind):
            inner = f"{path}.{member.name}".lstrip(".")
            yield from _truths(member.type, plain.get(member.name), inner)
    elif isinstance(plain, list | tuple):
        for index, value in enumerate(plain):
            yield from _truths(next(iter(get_args(kind)), None), value, f"{path}.{index}")
    else:
        for option in get_args(kind):
            yield from _truths(option, plain, path)


def _first_line(kind: type[Any], error: ValidationError) -> str:
    typos = ("unexpected_keyword_argument", "extra_forbidden")
    mistake = min(error.errors(), key=lambda error: error["type"] not in typos)  # typos first
    path = ".".join(str(part) for part in mistake["loc"] if part not in UNION)
    if mistake["type"] in typos:
        return unknown(path, leaves(kind))
    if mistake["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{path} is missing: add it"
    if rule := must_be(kind, path, mistake["type"]):
        name, words = rule
        return f"{name} is {mistake['input']!r}: it must be {words}"
    message = mistake["msg"].removeprefix("Value error, ")
    return message if not path or message.startswith(path) else f"{path}: {message}"


def read_yaml(kind: type[Config], path: Path) -> Config:
    """Read a config from a YAML file.

    Raises:
        UserError: If the file cannot be read.
        ConfigError: If it is not YAML or does not describe a config.
    """
    return from_dict(kind, read_plain(path), where=str(path))


def read_plain(path: Path) -> Any:
    """Return the content of a YAML file, which is {} if it is empty.

    Raises:
        UserError: If the file cannot be read.
        ConfigError: If it is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UserError(f"cannot read {path}: {reason}") from None
    plain = parse(text, str(path))
    return {} if plain is None else plain


def to_yaml(config: Any, comment: str = "") -> str:
    """Return a config as YAML whose fields say what they mean.

    Args:
        config: Config.
        comment: Leading comment lines.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + explained(type(config), to_dict(config))
