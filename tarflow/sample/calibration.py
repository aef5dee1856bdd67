"""Measure how fast and how exactly each block of a flow is inverted here, and choose a plan.

Legend: `B` images, `T` tokens per image, `D` values per token, `c` colour channels, `H` height and
width. The seconds that methods take decide between them; of the metrics of `block_metrics`, one
picks the first guess and all are shown.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from tarflow import data
from tarflow.config import NoiseConfig, RunConfig, SamplerConfig
from tarflow.device import describe_device, synchronize
from tarflow.errors import UserError
from tarflow.model.flow import FlowBlock, TarFlow, unpatchify
from tarflow.model.noise import generator, noisy, to_pixels, unit
from tarflow.sample.block_metrics import convergence_ranking, initial_guessing
from tarflow.sample.guidance import is_guided
from tarflow.sample.inverse import Inversion, JacobiResult, invert, jacobi, product_dtype
from tarflow.sample.plan import (
    BOUND,
    SEQUENTIAL,
    Measured,
    Method,
    Plan,
    Situation,
    default_tolerance,
    find_plan,
    keep_plan,
    named_plan,
)
from tarflow.sample.sampling import sample

Result = TypeVar("Result")

WORTHWHILE_BATCHES = 8  # batches from which calibration saves more time than it takes
WINDOWS = (4, 8, 16, 32, 64)  # tokens; a window of all tokens is tried as well
TOLERANCE_DIVISORS = (1.0, 2.0, 4.0, 8.0, 16.0)  # tried in turn until pixels are exact enough
BUDGET = 2  # most iterations of a method, in units of those it needed


def choose_plan(
    solver: str,
    flow: TarFlow,
    config: RunConfig,
    count: int,
    batch: int,
    path: Path | None = None,
) -> Plan:
    """Return the plan for drawing `count` images, `batch` at a time.

    `auto` takes the plan kept for this situation. Without one it calibrates and keeps the result
    if enough images are wanted to repay the time, and is sequential otherwise.

    Args:
        solver: `auto`, or a name that `named_plan` knows.
        flow: Model in eval mode, on its device.
        config: Configuration of its run; the sampler says how samples are guided.
        count: Number of images.
        batch: Images per batch.
        path: File of kept plans, beside the checkpoint.

    Raises:
        UserError: If the solver is unknown.
    """
    tolerance = default_tolerance(config.noise)
    if solver != "auto":
        return named_plan(solver, len(flow.blocks), tolerance)
    labels = torch.zeros(1, dtype=torch.int64) if flow.config.classes else None
    now = situation(flow, min(batch, count), labels, config.sampler, tolerance)
    plan = find_plan(path, now) if path else None
    if plan is None and count >= WORTHWHILE_BATCHES * batch:
        images, labels = calibration_images(flow, config, batch)
        plan = calibrate(flow, images, labels, config.noise, config.sampler)
        if path:
            keep_plan(path, plan)
    return plan or named_plan("sequential", len(flow.blocks), tolerance)


def calibration_images(
    flow: TarFlow, config: RunConfig, count: int
) -> tuple[Tensor, Tensor | None]:
    """Return images (B, c, H, H) in [-1, 1] to calibrate on, and labels (B,) or `None`.

    They are training images of the run if its data can be opened, and samples otherwise.
    """
    classes = flow.config.classes
    labels = torch.arange(count) % classes if classes else None
    try:
        images = data.open_split(config.data, "train")
    except UserError:
        drawn = sample(flow, count, SamplerConfig(denoise=0), config.noise, labels)
        return drawn.images, drawn.labels
    picked = data.order(len(images.labels), 0, 0, count)
    pixels = torch.from_numpy(data.batch(images, picked))
    labels = torch.from_numpy(images.labels[picked].astype("int64")) if classes else None
    return unit(pixels), labels


def situation(
    flow: TarFlow,
    batch: int,
    labels: Tensor | None,
    sampler: SamplerConfig | None,
    tolerance: float,
) -> Situation:
    """Return the situation that a plan measured now would hold for."""
    device, blocks = flow.var.device, len(flow.blocks)
    guided = sampler if is_guided(sampler, labels) else None
    return Situation(
        device=describe_device(device),
        threads=torch.get_num_threads(),
        precision=str(product_dtype(flow.var)).removeprefix("torch."),
        batch=batch,
        guided_blocks=sum(guided.guides(index, blocks) for index in range(blocks) if guided),
        tolerance=tolerance,
    )


@torch.inference_mode()
def calibrate(
    flow: TarFlow,
    images: Tensor,
    labels: Tensor | None,
    noise: NoiseConfig,
    sampler: SamplerConfig | None = None,
    tolerance: float | None = None,
) -> Plan:
    """Measure how to invert each block on this device, for batches of this size.

    The images are noised as in training, mapped to latents and inverted again. Each block gets the
    fastest method, and the tolerance of Jacobi iteration is lowered until no pixel is off by more
    than `tolerance`. If that does not suffice, blocks return to sequential decoding, the one
    nearest the images first.

    Args:
        flow: Model in eval mode.
        images: (B, c, H, H) clean images in [-1, 1], such as training images.
        labels: (B,) int64 classes, -1 where dropped, or `None`.
        noise: Training noise of the model.
        sampler: Guidance of the samples that will be drawn.
        tolerance: Largest error of a pixel; `None` for `default_tolerance`.
    """
    tolerance = default_tolerance(noise) if tolerance is None else tolerance
    images = images.to(flow.var)
    labels = None if labels is None else labels.to(flow.var.device)
    rng = generator(0, "calibration", device=flow.var.device.type)
    noised = noisy(to_pixels(images), noise, rng, flow.var.dtype)
    flow(noised, labels)  # the first pass sets libraries up
    (latents, _), forward_seconds = _timed(flow.var.device, partial(flow, noised, labels))
    batch = _Batch(flow, latents, labels, sampler, tolerance)
    references = batch.solve_sequentially()
    ranking, guessing = convergence_ranking(flow, images), initial_guessing(flow, images)
    choices = [
        batch.choose(index, references[index], ranking[index], guessing[index])
        for index in range(len(references))
    ]
    exact = unpatchify(references[0].tokens, flow.config.patch)
    methods, error = batch.tighten(tuple(method for method, _ in choices), exact)
    return Plan(
        methods=methods,
        situation=situation(flow, len(images), labels, sampler, tolerance),
        measured=tuple(measured for _, measured in choices),
        error=error,
        forward_seconds=forward_seconds,
    )


@dataclass(frozen=True)
class _Reference:
    """Sequential solution of one block; (B, T, D) in raster order."""

    latents: Tensor
    tokens: Tensor
    seconds: float


@dataclass(frozen=True)
class _Batch:
    """Latents that are inverted by one method after another."""

    flow: TarFlow
    latents: Tensor
    labels: Tensor | None
    sampler: SamplerConfig | None
    tolerance: float  # largest error of a pixel

    def solve_sequentially(self) -> list[_Reference]:
        """Invert all blocks token by token."""
        inversion = self._inversion()
        latents, references = self.latents, []
        for index in reversed(range(len(self.flow.blocks))):
            solve = partial(inversion.invert_block, index, latents, SEQUENTIAL)
            tokens, seconds = _timed(latents.device, solve)
            references.append(_Reference(latents, tokens, seconds))
            latents = tokens
        return references[::-1]

    def choose(
        self, index: int, reference: _Reference, crm: float, igm: tuple[float, float]
    ) -> tuple[Method, Measured]:
        """Return the fastest method for one block, and what was measured."""
        guess: Literal["latents", "zeros"] = "latents" if igm[0] <= igm[1] else "zeros"
        bound = max(BOUND, 2 * float(reference.tokens.abs().max()))
        last = reference.tokens.shape[1] - 1
        segments = {-(-last // window) for window in WINDOWS if window < last} | {1}
        chosen, seconds, jacobi_iterations = SEQUENTIAL, reference.seconds, 0
        for count in sorted(segments, reverse=True):
            method = Method(segments=count, guess=guess, tolerance=self.tolerance, bound=bound)
            taken, iterations = self.time_method(index, reference.latents, method, seconds)
            if count == 1:
                jacobi_iterations = iterations
            if taken < seconds:
                chosen, seconds = replace(method, sweeps=BUDGET * iterations), taken
        return chosen, Measured(
            crm=crm,
            igm_latents=igm[0],
            igm_zeros=igm[1],
            sweeps=jacobi_iterations,
            sequential_seconds=reference.seconds,
            seconds=seconds,
        )

    def time_method(
        self, index: int, latents: Tensor, method: Method, limit: float
    ) -> tuple[float, int]:
        """Return the seconds and iterations of a method on one block; no iterations if slower."""
        latents = cast(FlowBlock, self.flow.blocks[index]).permute(latents)
        inversion = self._inversion()

        def solve() -> JacobiResult:
            return jacobi(inversion.incremental_block(index), latents, method, limit)

        result, seconds = _timed(latents.device, solve)
        solved = result.converged == latents.shape[1] - 1
        return (seconds, result.iterations) if solved else (math.inf, 0)

    def tighten(
        self, methods: tuple[Method, ...], exact: Tensor
    ) -> tuple[tuple[Method, ...], float]:
        """Make methods stricter until pixels are exact enough; return them and their error."""
        strict = methods
        for divisor in TOLERANCE_DIVISORS:
            strict = tuple(
                replace(method, tolerance=method.tolerance / divisor)
                if method.segments
                else method
                for method in methods
            )
            error = self.error(strict, exact)
            if error <= self.tolerance:
                return strict, error
        for index in range(len(strict)):
            strict = (*strict[:index], SEQUENTIAL, *strict[index + 1 :])
            error = self.error(strict, exact)
            if error <= self.tolerance:
                break
        return strict, error

    def error(self, methods: tuple[Method, ...], exact: Tensor) -> float:
        """Return the largest error of a pixel; pixels are in [-1, 1]."""
        if all(method == SEQUENTIAL for method in methods):
            return 0.0
        images = invert(self.flow, self.latents, self.labels, self.sampler, Plan(methods=methods))
        return float((images - exact).abs().max())

    def _inversion(self) -> Inversion:
        return Inversion(self.flow, self.latents, self.labels, self.sampler)


def _timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of some work, and the seconds until the device has finished it."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start
