"""The ablations of the paper as studies (Zhai et al. 2025, sections 3.3, 3.5 and 4).

Each compares runs at equal training FLOPs, or ways to sample from the same runs. On the embedded
data each takes minutes on two cores.
"""

from dataclasses import replace
from typing import Literal

from sweeps.grids import cifar10, digits, widths
from sweeps.study import Size, Study, Variant
from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
)

NOISES = (0.025, 0.05, 0.1, 0.2, 0.4)  # standard deviations in [-1, 1] units
WIDTH = 32  # channels of the models on embedded data
AS_DRAWN = SamplerConfig(denoise=0.0)  # beside denoised samples


def noise() -> Study:
    """Likelihood and samples against the noise level, uniform noise too, on digits."""
    base = digits().base
    return Study(
        name="ablation-noise",
        base=replace(base, evaluation=replace(base.evaluation, decoder_images=1000)),
        role="ablation",
        sizes=widths((WIDTH,), blocks=4, layers=1),
        budgets=(1.6e11,),
        variants=levels((*NOISES, 0.8)),
        settings=(AS_DRAWN,),
        seeds=3,
        min_images=256,
    )


def noise_leaves() -> Study:
    """Likelihood and samples against the noise level on procedural colour images."""
    return Study(
        name="ablation-noise-leaves",
        base=RunConfig(
            model=ModelConfig(
                image_size=16, image_channels=3, patch=2, channels=WIDTH, classes=10, head_dim=8
            ),
            data=DataConfig(name="leaves-16"),
            optim=OptimConfig(lr=5e-3, warmup_images=256),
            batch=16,
            precision="float32",
            evaluation=EvaluationConfig(decoder_images=500),
        ),
        role="ablation",
        sizes=widths((WIDTH,), blocks=4, layers=1),
        budgets=(2e11,),
        variants=levels(NOISES),
        settings=(AS_DRAWN,),
        seeds=3,
        min_images=256,
        train_images=20_000,
        validation_images=2000,
    )


def noise_cifar10() -> Study:
    """Likelihood and samples against the noise level on CIFAR-10, one accelerator a run.

    Import the data first, as data/cifar10.
    """
    whole = cifar10()
    return replace(
        whole,
        name="ablation-noise-cifar10",
        base=replace(whole.base, evaluation=EvaluationConfig(decoder_images=2000, samples=10_000)),
        role="ablation",
        sizes=widths((192,), blocks=6, layers=6),
        budgets=(3e16,),
        variants=levels(NOISES),
        settings=(AS_DRAWN,),
        seeds=2,
        replicated=None,
        held_out=None,
    )


def denoise() -> Study:
    """Samples against the multiplier of the denoising step, at three noise levels, on digits."""
    return Study(
        name="ablation-denoise",
        base=digits().base,
        role="ablation",
        sizes=widths((WIDTH,), blocks=4, layers=1),
        budgets=(4e11,),
        variants=levels((0.1, 0.2, 0.4), uniform=False),
        settings=tuple(
            SamplerConfig(denoise=times) for times in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
        ),
        seeds=2,
        min_images=256,
    )


def guidance() -> Study:
    """Samples against guidance: weight, rule, guided blocks and temperature, on digits.

    With labels the guide is the mean class; without, the same network at another attention
    temperature.
    """
    rules: tuple[Literal["log-scale", "sigma-linear", "gaussian-score"], ...] = (
        "log-scale",
        "sigma-linear",
        "gaussian-score",
    )
    return Study(
        name="ablation-guidance",
        base=digits().base,
        role="ablation",
        sizes=widths((WIDTH,), blocks=4, layers=1),
        budgets=(3e11,),
        variants=(Variant(name="labels"), Variant(name="none", change={"model": {"classes": 0}})),
        settings=(
            *(
                SamplerConfig(guidance=weight, rule=rule)
                for rule in rules
                for weight in (1.0, 2.0, 4.0, 8.0)
            ),
            *(
                SamplerConfig(guidance=weight, guided_blocks="top:2")
                for weight in (1.0, 2.0, 4.0, 8.0)
            ),
            *(
                SamplerConfig(guidance=weight, temperature=temperature)
                for temperature in (0.5, 1.5)
                for weight in (0.25, 0.5, 1.0)
            ),
        ),
        seeds=2,
        min_images=256,
    )


def shape() -> Study:
    """Flow blocks against layers per block, their product fixed, at equal FLOPs, on digits.

    One block alone sees each image in one order only, and its first token not at all.
    """
    depth = 8  # layers in all
    return Study(
        name="ablation-shape",
        base=digits().base,
        role="ablation",
        sizes=tuple(
            Size(channels=WIDTH, blocks=blocks, layers=depth // blocks) for blocks in (1, 2, 4, 8)
        ),
        budgets=(3e11,),
        seeds=3,
        min_images=256,
    )


def levels(stds: tuple[float, ...], uniform: bool = True) -> tuple[Variant, ...]:
    """Return a variant for each level of Gaussian noise, and one for uniform noise."""
    gaussian = tuple(
        Variant(name=f"noise{std:g}", change={"noise": {"type": "gaussian", "std": std}})
        for std in stds
    )
    return gaussian + uniform * (Variant(name="uniform", change={"noise": {"type": "uniform"}}),)
