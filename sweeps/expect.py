"""How long a run should take on a device, before it is run.

On a processor core:

    effective FLOPs of an image = training FLOPs + VALUE_FLOPS * tokens * channels * layers
    training   = images * effective FLOPs / rate + steps * layers * LAYER_SECONDS
    evaluation = EVALUATION_SECONDS + scored * effective FLOPs / rate
                 + batches sampled * tokens * layers * SAMPLING_SECONDS
                 + samples * (SAMPLING_IMAGES * effective FLOPs / rate + FEATURES_SECONDS)

with the images of one worker, `layers` counted over all blocks, `scored` the images that are
scored or fit the decoder (forward, and backward to the image: as dear as a training image) and
`rate` that of a short matrix-product probe with all cores busy. VALUE_FLOPS stands for all work
that is no matrix product, which is most of it in small models. On an accelerator a step takes what
`tarflow.step_time` says, and an image that is scored its share of a step. Finished runs of the
study then correct both parts by the median of their ratios.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweeps import hardware
from sweeps.study import unknown
from tarflow import cost
from tarflow.config import RunConfig, from_dict
from tarflow.errors import UserError
from tarflow.step_time import Cluster, step_time

# Between two processors with AVX-512: training takes a Xeon 1.4 times as long, an EPYC 0.7 times.
VALUE_FLOPS = 10_000.0  # a value of a layer costs as much as this many FLOPs of a matrix product
LAYER_SECONDS = 1.2e-3  # of a step, per Transformer layer, whatever the batch
EVALUATION_SECONDS = 0.6  # files, tables and the comparison of features
SAMPLING_SECONDS = 1.3e-3  # per token, layer and batch of samples
SAMPLING_BATCH = 250
SAMPLING_IMAGES = 1.2  # a sample costs as much as so many training images, beside that
FEATURES_SECONDS = 3e-3  # of an image in the feature extractor
SPREAD = 0.4  # of an expectation that no finished run has corrected
PER_NODE = 8  # accelerators
SMALL_BYTES = 4e9  # runs that need less memory share an accelerator
SHARING = 4  # such runs on one


@dataclass(frozen=True)
class Rate:
    """How fast one device computes, and how that is known."""

    flops: float  # matrix-product FLOPs per second of one device
    source: str
    accelerator: str = ""  # empty for a processor core
    sharing: int = 1  # runs on a device at a time


@dataclass(frozen=True)
class Seconds:
    """Expected seconds of a run on its devices."""

    train: float
    evaluate: float

    @property
    def total(self) -> float:
        """Both parts."""
        return self.train + self.evaluate


def expected_seconds(config: RunConfig, validation_images: int, rate: Rate) -> Seconds:
    """Return what a run should take before any correction; the module says how."""
    model, evaluation = config.model, config.evaluation
    layers = model.blocks * model.layers
    flops = float(cost.training_flops(model))
    steps, workers = config.images / config.batch, config.execution.workers
    if rate.accelerator:
        step = step_time(config, _machines(rate.accelerator, workers))
        per_image = step.alone / step.images * workers
        train = steps * step.seconds * rate.sharing  # they take turns
    else:
        values = model.tokens * model.channels * layers
        per_image = (flops + VALUE_FLOPS * values) / rate.flops
        train = config.images / workers * per_image
        train += steps * layers * LAYER_SECONDS
    scored = (evaluation.decoder_images + validation_images * evaluation.draws) / workers
    samples = evaluation.samples / workers
    sampling = math.ceil(samples / SAMPLING_BATCH) * model.tokens * layers * SAMPLING_SECONDS
    sampling += samples * (SAMPLING_IMAGES * per_image + FEATURES_SECONDS)
    return Seconds(train, EVALUATION_SECONDS + scored * per_image + sampling)


def drawing_seconds(config: RunConfig, rate: Rate) -> float:
    """Return what one process should take to draw and compare the samples of a finished run."""
    evaluation = replace(config.evaluation, decoder_images=0)
    alone = replace(config.execution, workers=1)
    config = replace(config, evaluation=evaluation, execution=alone)
    return expected_seconds(config, 0, rate).evaluate


def _machines(accelerator: str, workers: int) -> Cluster:
    """Return as few nodes as hold a run."""
    nodes = -(-workers // PER_NODE)
    return Cluster(
        device=cost.ACCELERATORS[accelerator], nodes=nodes, per_node=-(-workers // nodes)
    )


def correction(
    rows: Iterable[Mapping[str, Any]], validation_images: int, rate: Rate
) -> tuple[float, float, float]:
    """Compare finished runs with the expectation.

    Returns:
        Median ratios of measured to expected seconds of training and of evaluation, and the
        relative spread that is left (median absolute deviation, as a standard deviation; with
        few runs no less than they can tell).
    """
    train, evaluate, total = [], [], []
    for row in rows:
        config = from_dict(RunConfig, json.loads(row["config"]))
        expected = expected_seconds(config, validation_images, rate)
        train.append(row["train_seconds"] / expected.train)
        evaluate.append(row["evaluate_seconds"] / expected.evaluate)
        total.append((row["train_seconds"] + row["evaluate_seconds"], expected))
    if not total:
        return 1.0, 1.0, SPREAD
    by_train, by_evaluate = statistics.median(train), statistics.median(evaluate)
    errors = [
        abs(measured / (each.train * by_train + each.evaluate * by_evaluate) - 1)
        for measured, each in total
    ]
    spread = max(1.48 * statistics.median(errors), SPREAD / len(errors) ** 0.5 / 2)
    return by_train, by_evaluate, spread


def sharing(configs: Iterable[RunConfig]) -> int:
    """Return how many of these runs an accelerator carries out at a time.

    Their steps take turns there, but scoring and sampling wait for the host a good part of the
    time.
    """
    needs = (cost.memory(config).total for config in configs)
    return SHARING if max(needs, default=math.inf) < SMALL_BYTES else 1


def accelerator_rate(name: str, precision: str, together: int = 1) -> Rate:
    """Return the peak of an accelerator, on which so many runs go on at a time.

    Raises:
        UserError: if it is not known, naming the nearest.
    """
    if name not in cost.ACCELERATORS:
        raise UserError(f"accelerator {unknown(name, cost.ACCELERATORS)}")
    peaks = cost.ACCELERATORS[name].flops
    flops = peaks.get(precision, peaks["float32"])
    source = f"model of a step on {name}, {flops / 1e12:.0f} TFLOP/s at its peak"
    return Rate(flops, source, name, together)


def core_rate() -> Rate:
    """Return the matrix-product rate of one core with all cores busy, from a cached probe."""
    flops = hardware.core_flops()
    return Rate(flops, f"matrix-product probe, {flops / 1e9:.0f} GFLOP/s a core")
