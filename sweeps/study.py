"""A study as data: sizes, budgets and seeds, from which its runs follow.

Nothing here trains or touches a disk but to read a study file. The presets at the end hold every
number one may want to change: the noise, the rate rule, the sizes and the budgets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import ConfigDict

from tarflow import config as configs
from tarflow import cost, data
from tarflow.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model size of a study; the rest of the model comes from the base."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    channels: int  # width of every Transformer layer
    blocks: int  # autoregressive flow blocks
    layers: int  # Transformer layers inside each flow block

    @property
    def label(self) -> str:
        """The size in short, such as c64-b4-l2."""
        return f"c{self.channels}-b{self.blocks}-l{self.layers}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A size at a budget."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    size: str  # label of one of the sizes, such as c64-b4-l2
    budget: float  # training FLOPs


@dataclass(frozen=True, kw_only=True)
class Study:
    """Every size at every budget (IsoFLOP), replicates at one point, and one larger run.

    The larger run is what the law, fitted on smaller budgets, has to predict.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str  # also the default folder, studies/<name>
    base: RunConfig = field(default_factory=RunConfig)  # all that sizes and budgets do not set
    sizes: tuple[Size, ...]
    budgets: tuple[float, ...]  # training FLOPs
    seeds: int = 1  # runs of every point, seeds 0, 1, ...
    replicated: Point | None = None  # where run-to-run noise is measured
    replicates: int = 3  # seeds at that point
    held_out: Point | None = None  # the larger run
    lr_power: float = 0.0  # lr = base.optim.lr * (channels / base.model.channels) ** lr_power
    min_images: int = 1024  # points with fewer images are left out
    max_images: int = 10**12  # points with more images are left out
    train_images: int = 4000  # unique training images; read from the data when they are there
    validation_images: int = 500  # scored of every run; read from the data likewise
    accelerator: str = ""  # what the plan is priced on; empty is this machine's cores

    def __post_init__(self) -> None:
        """Refuse a study whose points name no size, or that has no runs."""
        if not self.sizes or not self.budgets:
            raise ConfigError("a study needs at least one size and one budget")
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}: it must be at least 1")
        if min(self.budgets) <= 0:
            raise ConfigError("budgets are training FLOPs and must be positive")
        labels = [size.label for size in self.sizes]
        for name in ("replicated", "held_out"):
            point: Point | None = getattr(self, name)
            if point and point.size not in labels:
                raise ConfigError(f"{name}.size {unknown(point.size, labels)}")
        if self.accelerator and self.accelerator not in cost.ACCELERATORS:
            raise ConfigError(f"accelerator {unknown(self.accelerator, cost.ACCELERATORS)}")
        for size in self.sizes:
            sized_model(self.base.model, size)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run that is to be: its config and what people call it."""

    config: RunConfig  # resolved, so that it has a name
    label: str  # such as c64-b4-l2-3e11-s0
    budget: float  # training FLOPs asked for; those of the config are rounded to the batch
    role: str = "grid"  # grid, search or final

    @property
    def run_id(self) -> str:
        """The hash that names the run and its folder."""
        return configs.run_id(self.config)


def grid(study: Study) -> list[Planned]:
    """List the runs of a study, without repeats, in the order in which they were declared.

    Points outside `min_images` to `max_images` are left out; so the list may be shorter than
    sizes x budgets x seeds.
    """
    runs = dict.fromkeys(planned(study, point, seed) for point, seed in _points(study))
    return [run for run in runs if study.min_images <= run.config.images <= study.max_images]


def left_out(study: Study) -> int:
    """Count the runs that fall outside `min_images` to `max_images`."""
    return len(set(_points(study))) - len(grid(study))


def _points(study: Study) -> Iterator[tuple[Point, int]]:
    for budget in study.budgets:
        for size in study.sizes:
            for seed in range(study.seeds):
                yield Point(size=size.label, budget=budget), seed
    if study.replicated:
        for seed in range(study.replicates):
            yield study.replicated, seed
    if study.held_out:
        yield study.held_out, 0


def planned(study: Study, point: Point, seed: int) -> Planned:
    """Return the run of a study at a size, a budget and a seed."""
    size = next(size for size in study.sizes if size.label == point.size)
    model = sized_model(study.base.model, size)
    wanted = point.budget / cost.training_flops(model)
    config = replace(
        study.base,
        model=model,
        optim=replace(study.base.optim, lr=learning_rate(study, size.channels)),
        images=configs.round_images(wanted, study.base.batch),
        seed=seed,
    )
    label = f"{size.label}-{short(point.budget)}-s{seed}"
    return Planned(config=config, label=label, budget=point.budget)


def learning_rate(study: Study, channels: int) -> float:
    """Return the peak learning rate of a width: a power law through the base's, 3 digits."""
    ratio = channels / study.base.model.channels
    return float(f"{study.base.optim.lr * ratio**study.lr_power:.3g}")


def sized_model(base: ModelConfig, size: Size) -> ModelConfig:
    """Return the base model at a size."""
    return replace(base, channels=size.channels, blocks=size.blocks, layers=size.layers)


def short(number: float) -> str:
    """Write a number as people name budgets.

    >>> short(3e11), short(1.5e18)
    ('3e11', '1.5e18')
    """
    return f"{number:.3g}".replace("e+", "e")


def load(name: str) -> Study:
    """Return a preset by name, or the study in a YAML file or in the folder of a study.

    Raises:
        ConfigError: if there is neither, naming the nearest; or if the file is no study.
    """
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name).expanduser()
    path = path / "study.yaml" if path.is_dir() else path
    if path.is_file():
        return configs.read_yaml(Study, path)
    if path.suffix in (".yaml", ".yml"):
        files = [str(file) for file in path.parent.glob("*.y*ml")]
        raise ConfigError(f"study {unknown(name, files)}")
    raise ConfigError(f"study {unknown(name, PRESETS)} (or give a YAML file)")


def resolve(study: Study) -> Study:
    """Fill in what the data and the device decide, so that every run has a name.

    Raises:
        ConfigError: if there is no such data set, or its images do not fit the model.
    """
    model, found = study.base.model, data.describe(study.base.data)
    for name, wanted, there in (
        ("image_size", model.image_size, found.image_size),
        ("image_channels", model.image_channels, found.channels),
        ("classes", model.classes, model.classes and found.classes),
    ):
        if wanted != there:
            raise ConfigError(
                f"base.model.{name} is {wanted}, but the data set {study.base.data.name} has "
                f"{there}; write {there}"
            )
    base = replace(study.base, data=data.resolve(study.base.data))
    if base.precision == "auto":
        cuda = base.execution.device != "cpu" and Path("/dev/nvidia0").exists()
        base = replace(base, precision="bfloat16" if cuda else "float32")
    return replace(study, base=base, train_images=found.train, validation_images=found.validation)


def unknown(name: str, valid: object) -> str:
    """Say that a name is not among the valid ones, and which comes nearest.

    >>> unknown("digts", ["digits", "tiny"])
    "'digts' is not known; did you mean 'digits'?"
    """
    near = get_close_matches(name, list(valid), n=1, cutoff=0.0)  # type: ignore[call-overload]
    return f"'{name}' is not known" + (f"; did you mean '{near[0]}'?" if near else "")


# ---------------------------------------------------------------------------------------- presets

DIGITS_NOISE = 0.25  # standard deviation in [-1, 1] units
DIGITS_LR = 1e-2  # at 32 channels
DIGITS_LR_POWER = -0.6
DIGITS_CHANNELS = (8, 16, 24, 32, 48, 64)
DIGITS_BUDGETS = (4e10, 1.26e11, 4e11)  # training FLOPs
DIGITS_REPLICATED = Point(size="c24-b4-l1", budget=1.26e11)
DIGITS_HELD_OUT = Point(size="c32-b4-l1", budget=1.2e12)


def _sizes(channels: tuple[int, ...], blocks: int, layers: int) -> tuple[Size, ...]:
    return tuple(Size(channels=width, blocks=blocks, layers=layers) for width in channels)


def digits() -> Study:
    """5,000 real MNIST digits on two cores in minutes: the study that runs by default."""
    return Study(
        name="digits",
        base=RunConfig(
            model=ModelConfig(image_size=28, patch=4, channels=32, classes=10, head_dim=8),
            data=DataConfig(name="digits"),
            noise=NoiseConfig(std=DIGITS_NOISE),
            optim=OptimConfig(lr=DIGITS_LR, warmup_images=256),
            batch=16,
            precision="float32",
            evaluation=EvaluationConfig(decoder_images=500),
        ),
        sizes=_sizes(DIGITS_CHANNELS, blocks=4, layers=1),
        budgets=DIGITS_BUDGETS,
        replicated=DIGITS_REPLICATED,
        held_out=DIGITS_HELD_OUT,
        lr_power=DIGITS_LR_POWER,
        min_images=256,
        max_images=50 * 4000,
        train_images=4000,
    )


def tiny() -> Study:
    """Half a minute in all: what tests and examples run. Its numbers mean nothing."""
    return Study(
        name="tiny",
        base=RunConfig(
            model=ModelConfig(image_size=28, patch=7, channels=16, head_dim=8),
            data=DataConfig(name="digits"),
            noise=NoiseConfig(std=DIGITS_NOISE),
            optim=OptimConfig(lr=5e-3, warmup_images=128),
            batch=32,
            precision="float32",
            evaluation=EvaluationConfig(decoder_images=200, samples=64),
        ),
        sizes=_sizes((8, 16, 32), blocks=2, layers=1),
        budgets=(1e9, 3e9),
        replicates=2,
        held_out=Point(size="c16-b2-l1", budget=9e9),
        lr_power=-0.5,
        min_images=64,
        train_images=4000,
    )


def cifar10() -> Study:
    """Class-conditional CIFAR-10 on one data-centre accelerator.

    Import the data first, as data/cifar10. Expected: no likelihood of this model on CIFAR-10 has
    been published; FID 9.71 for 2-256-6-6 (patch, channels, blocks, layers) with sequential
    sampling, by the authors of selective Jacobi decoding.
    """
    return Study(
        name="cifar10",
        base=RunConfig(
            model=ModelConfig(
                image_size=32, image_channels=3, classes=10, patch=2, channels=256, head_dim=64
            ),
            data=DataConfig(name="data/cifar10", flip=True),
            noise=NoiseConfig(std=0.05),
            optim=OptimConfig(lr=3e-4, warmup_images=20_000),
            batch=256,
            precision="bfloat16",
            execution=ExecutionConfig(micro_batch=64),
        ),
        sizes=_sizes((64, 128, 192, 256, 384, 512), blocks=6, layers=6),
        budgets=(1e16, 3e16, 1e17),
        replicated=Point(size="c192-b6-l6", budget=1e16),
        held_out=Point(size="c256-b6-l6", budget=3e17),
        lr_power=-0.5,
        min_images=50_000,
        max_images=400 * 50_000,
        train_images=50_000,
        validation_images=10_000,
        accelerator="A100",
    )


def imagenet64() -> Study:
    """Unconditional ImageNet 64x64 with uniform dequantisation, eight accelerators a run.

    Import the official 64x64 release first, as data/imagenet64. Expected: 2.99 bits per dimension
    for 2-768-8-8 (patch, channels, blocks, layers) after 60 epochs (Zhai et al. 2025, table 1),
    about 2.4e20 FLOPs: beyond this study, within reach of its law.
    """
    return Study(
        name="imagenet64",
        base=RunConfig(
            model=ModelConfig(
                image_size=64, image_channels=3, classes=0, patch=2, channels=768, head_dim=64
            ),
            data=DataConfig(name="data/imagenet64", flip=True),
            noise=NoiseConfig(type="uniform"),
            optim=OptimConfig(lr=1e-4, warmup_images=256_000),
            batch=256,
            precision="bfloat16",
            execution=ExecutionConfig(workers=8, micro_batch=8),
        ),
        sizes=_sizes((128, 192, 256, 384, 512, 768), blocks=8, layers=8),
        budgets=(3e18, 1e19, 3e19),
        replicated=Point(size="c256-b8-l8", budget=3e18),
        held_out=Point(size="c512-b8-l8", budget=1e20),
        lr_power=-0.5,
        min_images=500_000,
        max_images=200 * 1_281_149,
        train_images=1_281_149,
        validation_images=50_000,
        accelerator="H100",
    )


PRESETS: dict[str, Callable[[], Study]] = {
    "digits": digits,
    "tiny": tiny,
    "cifar10": cifar10,
    "imagenet64": imagenet64,
}
