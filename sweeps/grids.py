"""The scaling studies that have a name: sizes x budgets around one base.

Every number one may want to change stands here: the noise, the rate rule, sizes and budgets.
"""

from sweeps.study import Point, Size, Study
from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    ModelConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
)

DIGITS_NOISE = 0.25  # standard deviation in [-1, 1] units
DIGITS_LR = 1e-2  # at 32 channels
DIGITS_LR_POWER = -0.6
DIGITS_CHANNELS = (8, 16, 24, 32, 48, 64)
DIGITS_BUDGETS = (4e10, 1.26e11, 4e11)  # training FLOPs
DIGITS_REPLICATED = Point(size="c24-b4-l1", budget=1.26e11)
DIGITS_HELD_OUT = Point(size="c32-b4-l1", budget=1.2e12)


def widths(channels: tuple[int, ...], blocks: int, layers: int) -> tuple[Size, ...]:
    """Return sizes that differ in their channels only."""
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
        sizes=widths(DIGITS_CHANNELS, blocks=4, layers=1),
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
        sizes=widths((8, 16, 32), blocks=2, layers=1),
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
            execution=ExecutionConfig(compile=True),
        ),
        sizes=widths((64, 128, 192, 256, 384, 512), blocks=6, layers=6),
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
            execution=ExecutionConfig(workers=8, compile=True),
        ),
        sizes=widths((128, 192, 256, 384, 512, 768), blocks=8, layers=8),
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
