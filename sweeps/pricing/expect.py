"""How long runs should take before they are run, and when they end on several devices.

On a processor core:

    effective FLOPs of an image = training FLOPs + VALUE_FLOPS * tokens * channels * layers
    training   = images * effective FLOPs / rate + steps * layers * LAYER_SECONDS
    evaluation = EVALUATION_SECONDS + SCORING_IMAGES * scored * effective FLOPs / rate
                 + batches sampled * tokens * layers * SAMPLING_SECONDS
                 + samples * (SAMPLING_IMAGES * effective FLOPs / rate + features)

where images are those of one worker, `layers` counts all blocks, `scored` are the images that are
scored or fit the decoder (forward, and backward to the image), `features` are FEATURES_SECONDS,
or none for the small classifier of `tarflow.evaluate.features`,
and `rate` is the matrix-product rate of a short probe with all cores busy. VALUE_FLOPS stands for
all other work, which is most of it in small models. On an accelerator, `tarflow.step_time` gives
the seconds of a step, and a scored image takes its share of a step. Finished runs of the study
then correct both parts by the median of their ratios.
"""

import heapq
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeps import hardware
from sweeps.design.study import did_you_mean
from sweeps.pricing.sharing import Sharing, runs_per_device
from tarflow import cost
from tarflow.config import CLASSIFIER, RunConfig
from tarflow.errors import UserError
from tarflow.step_time import smallest_cluster, step_time

# Between two processors with AVX-512: training takes a Xeon 1.4 times as long, an EPYC 0.7 times.
VALUE_FLOPS = 10_000.0  # a value of a layer costs as much as this many FLOPs of a matrix product
LAYER_SECONDS = 1.2e-3  # per step and Transformer layer, whatever the batch
# Relative to training of the same runs, so between these two processors as well:
EVALUATION_SECONDS = 0.25  # files, tables and the comparison of features
SCORING_IMAGES = 1.4  # training images that cost as much as scoring one, which no kernel fuses
SAMPLING_SECONDS = 1e-3  # per token, layer and batch of samples
SAMPLING_BATCH = 250
SAMPLING_IMAGES = 1.7  # training images that cost as much as a sample, beside SAMPLING_SECONDS
FEATURES_SECONDS = 1.6e-3  # per image in a feature extractor for natural images
SPREAD = 0.4  # relative error of an expectation that no finished run has corrected


@dataclass(frozen=True)
class Rate:
    """How fast one device computes, and how that is known."""

    flops: float  # matrix-product FLOPs per second of one device
    source: str
    accelerator: str = ""  # empty for a processor core
    runs_per_device: int = 1
    gain: float = 1.0  # steps per second of runs that share a device, over those of one alone


@dataclass(frozen=True)
class Seconds:
    """Expected seconds of a run on its devices."""

    train: float
    evaluate: float

    @property
    def total(self) -> float:
        """Seconds of training and evaluation."""
        return self.train + self.evaluate


@dataclass(frozen=True)
class Correction:
    """What finished runs say about the expectation."""

    train: float = 1.0  # measured over expected seconds of training, median
    evaluate: float = 1.0  # the same of evaluation
    spread: float = SPREAD  # relative error of one run that remains

    def apply(self, seconds: Seconds) -> Seconds:
        """Return corrected seconds."""
        return Seconds(seconds.train * self.train, seconds.evaluate * self.evaluate)


def expected_seconds(config: RunConfig, validation_images: int, rate: Rate) -> Seconds:
    """Return the seconds of a run before any correction, by the formulas of this module.

    Args:
        config: The run.
        validation_images: Number of held-out images to score.
        rate: Speed of one device.
    """
    train, per_image = _training_seconds(config, rate)
    scoring = _scoring_seconds(config, validation_images, per_image)
    return Seconds(train, EVALUATION_SECONDS + scoring + _sampling_seconds(config, per_image))


def scoring_seconds(config: RunConfig, validation_images: int, rate: Rate) -> float:
    """Return the seconds in which the workers of a run score the held-out images."""
    _, per_image = _training_seconds(config, rate)
    return _scoring_seconds(config, validation_images, per_image)


def _scoring_seconds(config: RunConfig, validation_images: int, per_image: float) -> float:
    evaluation, workers = config.evaluation, config.execution.workers
    scored = (evaluation.decoder_images + validation_images * evaluation.draws) / workers
    return SCORING_IMAGES * scored * per_image


def sampling_seconds(config: RunConfig, rate: Rate, guided: bool) -> float:
    """Return the seconds in which one process draws and compares the samples of a finished run.

    Args:
        config: The run.
        rate: Speed of one device.
        guided: Whether samples are guided, which takes two passes.
    """
    config = replace(config, execution=replace(config.execution, workers=1))
    _, per_image = _training_seconds(config, rate)
    return (EVALUATION_SECONDS + _sampling_seconds(config, per_image)) * (2 if guided else 1)


def _training_seconds(config: RunConfig, rate: Rate) -> tuple[float, float]:
    """Return the seconds of training, and those of one image on one device."""
    model, workers = config.model, config.execution.workers
    layers = model.total_layers
    steps = config.images / config.batch
    if rate.accelerator:
        step = step_time(config, smallest_cluster(cost.ACCELERATORS[rate.accelerator], workers))
        per_image = step.alone / step.images * workers
        turns = rate.runs_per_device / rate.gain  # 1 if the runs on it do not slow each other
        return steps * step.seconds * turns, per_image
    values = model.tokens * model.channels * layers
    per_image = (float(cost.training_flops(model)) + VALUE_FLOPS * values) / rate.flops
    return config.images / workers * per_image + steps * layers * LAYER_SECONDS, per_image


def _sampling_seconds(config: RunConfig, per_image: float) -> float:
    """Return the seconds in which the workers draw samples and compare them."""
    model, samples = config.model, config.evaluation.samples / config.execution.workers
    tokens = model.tokens * model.total_layers
    drawing = math.ceil(samples / SAMPLING_BATCH) * tokens * SAMPLING_SECONDS
    features = 0.0 if config.evaluation.features == CLASSIFIER else FEATURES_SECONDS
    return drawing + samples * (SAMPLING_IMAGES * per_image + features)


def correction(
    done: Iterable[tuple[RunConfig, Mapping[str, Any]]], validation_images: int, rate: Rate
) -> Correction:
    """Compare finished runs with the expectation.

    Args:
        done: Configs of the runs, with their rows of `runs.parquet`.
        validation_images: Number of held-out images that were scored.
        rate: Speed of one device.

    Returns:
        Median ratios of measured to expected seconds, and the remaining relative spread: the
        median absolute deviation as a standard deviation, no less than a few runs can tell.
    """
    train, evaluate, total = [], [], []
    for config, row in done:
        expected = expected_seconds(config, validation_images, rate)
        train.append(row["train_seconds"] / expected.train)
        evaluate.append(row["evaluate_seconds"] / expected.evaluate)
        total.append((row["train_seconds"] + row["evaluate_seconds"], expected))
    if not total:
        return Correction()
    medians = Correction(statistics.median(train), statistics.median(evaluate))
    errors = [abs(measured / medians.apply(expected).total - 1) for measured, expected in total]
    spread = max(1.48 * statistics.median(errors), SPREAD / len(errors) ** 0.5 / 2)
    return replace(medians, spread=spread)


def accelerator_rate(
    name: str, precision: str, sharing: Sharing | None = None, configs: Sequence[RunConfig] = ()
) -> Rate:
    """Return the peak rate of an accelerator.

    Args:
        name: Its name in `cost.ACCELERATORS`.
        precision: Of the matrix products.
        sharing: What runs that share one were measured to do, if anything was.
        configs: The runs, of which small ones share one.

    Raises:
        UserError: If the accelerator is not known, naming the nearest.
    """
    if name not in cost.ACCELERATORS:
        raise UserError(f"accelerator {did_you_mean(name, cost.ACCELERATORS)}")
    peaks = cost.ACCELERATORS[name].flops
    flops = peaks.get(precision, peaks["float32"])
    source = f"model of a step on {name}, {flops / 1e12:.0f} TFLOP/s at its peak"
    count = runs_per_device(configs, sharing)
    return Rate(flops, source, name, count, sharing.gain(count) if sharing else 1.0)


def core_rate() -> Rate:
    """Return the matrix-product rate of one core with all cores busy, from a cached probe."""
    flops = hardware.core_flops()
    return Rate(flops, f"matrix-product probe, {flops / 1e9:.0f} GFLOP/s a core")


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    seconds: float
    after: str = ""  # name of a job that must start first
    delay: float = 0.0  # fewest seconds after the start of that one
    devices: int = 1  # that it needs at once


def timetable(jobs: Iterable[Job], devices: int) -> Mapping[str, tuple[float, float]]:
    """Return start and end of each job when free devices take the largest one that is ready.

    Args:
        jobs: Jobs in any order. Of those that need as many devices, the longest is the largest.
        devices: Number of devices; each carries out one job at a time. A job that needs more
            takes all.

    Returns:
        Start and end of each job by name, in seconds.

    >>> timetable([Job("a", 4.0), Job("b", 1.0, after="a", delay=2.0)], 2)
    {'a': (0.0, 4.0), 'b': (2.0, 3.0)}
    """
    waiting = sorted(jobs, key=lambda job: (-job.devices, -job.seconds))
    names = {job.name for job in waiting}
    ready = {job.name: math.inf if job.after in names else 0.0 for job in waiting}
    free, times = [0.0] * devices, {}
    while waiting:
        now = max(free[0], min(ready[job.name] for job in waiting))
        job = next(job for job in waiting if ready[job.name] <= now)
        waiting.remove(job)
        taken = [heapq.heappop(free) for _ in range(min(job.devices, devices))]
        start = max(now, taken[-1])
        for _ in taken:
            heapq.heappush(free, start + job.seconds)
        times[job.name] = (start, start + job.seconds)
        ready |= {other.name: start + other.delay for other in waiting if other.after == job.name}
    return times
