"""The config of one run: frozen dataclasses."""

import re
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from tarflow.errors import ConfigError
from tarflow.fields import COUNT, SIZE, check_fields
from tarflow.model_config import ModelConfig

CLASSIFIER = "classifier"  # features learned from the labels of the data
FEWEST_IMAGES = 4  # samples, and held-out images, that KID, precision and recall need
NUMERICS_VERSION = 1  # raise it when the same config gives other numbers
GuidanceRule = Literal["log-scale", "sigma-linear", "gaussian-score"]
GuidedPart = Literal["both", "scale", "shift"]
Precision = Literal["float32", "bfloat16", "float64"]  # of the matrix products of training

SOLVERS = r"auto|sequential|jacobi|selective|segmented:0*[1-9]\d*"  # see `tarflow.sample.plan`
SHARE, DECAY = "it is a share, 0 to 1", "it is a decay, from 0 to below 1"


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
    rule: GuidanceRule = "log-scale"  # of guidance
    part: GuidedPart = "both"  # outputs of a block that guidance changes
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
