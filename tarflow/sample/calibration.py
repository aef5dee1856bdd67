"""Measure how fast and how exactly each block of a flow is inverted here, and choose a plan.

Legend: `B` images, `T` tokens per image, `D` values per token, `c` colour channels, `H` height and
width. The seconds that methods take decide between them; of the metrics of `block_metrics`, one
picks the first guess and all are shown.
"""

import logging
import math
import statistics
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
from tarflow.model.block import FlowBlock
from tarflow.model.flow import TarFlow
from tarflow.model.noise import generator, noisy, to_pixels, unit
from tarflow.model.patches import unpatchify
from tarflow.sample.block_metrics import convergence_ranking, initial_guessing
from tarflow.sample.drawing import default_condition
from tarflow.sample.guidance import is_guided
from tarflow.sample.inverse import Inversion, JacobiResult, invert, jacobi, product_dtype
from tarflow.sample.judge import MARGIN, Judge, largest_error
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

LOG = logging.getLogger("tarflow")
Result = TypeVar("Result")

WORTHWHILE_BATCHES = 50  # calibration takes as long as some 20, and saves up to half of each
WINDOWS = (4, 8, 16, 32, 64)  # tokens; a window of all tokens is tried as well
BUDGET = 2  # most iterations of a method, in units of those it needed
TURNS = 3  # times that a method and sequential decoding are timed in turns
CLEAR_WIN = 1.1  # how many times as fast as sequential decoding a method must be


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
    condition = default_condition(flow, config, 1)
    now = situation(flow, min(batch, count), condition, config.sampler, tolerance)
    plan = find_plan(path, now) if path else None
    if plan is None and count >= WORTHWHILE_BATCHES * batch:
        images, condition = calibration_images(flow, config, batch)
        plan = calibrate(flow, images, condition, config.noise, config.sampler)
        if path:
            keep_plan(path, plan)
    return plan or named_plan("sequential", len(flow.blocks), tolerance)


def calibration_images(
    flow: TarFlow, config: RunConfig, count: int
) -> tuple[Tensor, Tensor | None]:
    """Return images (B, c, H, H) in [-1, 1], or latents, and their condition or `None`.

    They are training images of the run if its data can be opened, and samples otherwise.
    """
    try:
        images = data.open_split(config.data, "train")
    except UserError:
        condition = default_condition(flow, config, count)
        drawn = sample(
            flow, count, SamplerConfig(denoise=0), config.noise, condition, bounded=False
        )
        return drawn.images, drawn.condition
    picked = data.order(len(images.labels), 0, 0, count)
    pixels = torch.from_numpy(data.batch(images, picked))
    return unit(pixels), images.condition(picked, flow.config)


def situation(
    flow: TarFlow,
    batch: int,
    condition: Tensor | None,
    sampler: SamplerConfig | None,
    tolerance: float,
) -> Situation:
    """Return the situation that a plan measured now would hold for."""
    device = flow.var.device
    guided = sampler if is_guided(sampler, condition) else None
    return Situation(
        device=describe_device(device),
        threads=torch.get_num_threads(),
        precision=str(product_dtype(flow.var)).removeprefix("torch."),
        batch=batch,
        guidance=guided and replace(guided, denoise=SamplerConfig().denoise),
        tolerance=tolerance,
    )


@torch.inference_mode()
def calibrate(
    flow: TarFlow,
    images: Tensor,
    condition: Tensor | None,
    noise: NoiseConfig,
    sampler: SamplerConfig | None = None,
    tolerance: float | None = None,
) -> Plan:
    """Measure how to invert each block on this device, for batches of this size.

    The images are noised as in training, mapped to latents and inverted again, and each block gets
    the fastest method. Then draws from the prior judge all methods together: the tolerance of
    Jacobi iteration is lowered until the largest error of a pixel is `MARGIN` times smaller than
    `tolerance`. If that does not suffice, blocks return to sequential decoding, the one nearest
    the images first. Finally each method is timed in turns with sequential decoding, and stays if
    it is clearly faster. Errors are against sequential decoding in the flow's type, and so include
    the rounding of less precise matrix products.

    Args:
        flow: Model in eval mode.
        images: (B, c, H, H) clean images in [-1, 1], such as training images.
        condition: As for `TarFlow.forward`.
        noise: Training noise of the model.
        sampler: Guidance of the samples that will be drawn.
        tolerance: Largest error of a pixel; `None` for `default_tolerance`.
    """
    tolerance = default_tolerance(noise) if tolerance is None else tolerance
    images = images.to(flow.var)
    condition = None if condition is None else condition.to(flow.var.device)
    rng = generator(0, "calibration", device=flow.var.device.type)
    clean = to_pixels(images) if noise.type == "uniform" else images
    noised = noisy(clean, noise, rng, flow.var.dtype)
    flow(noised, condition)  # the first pass sets libraries up
    (latents, _), forward_seconds = _timed(flow.var.device, partial(flow, noised, condition))
    batch = _Batch(flow, latents, condition, sampler)
    references = batch.solve_sequentially()
    ranking, guessing = convergence_ranking(flow, images), initial_guessing(flow, images)
    judge = Judge(flow, condition, sampler, len(images), batch.rounding(references[0].tokens))
    methods: tuple[Method, ...] = (SEQUENTIAL,) * len(references)
    if judge.accepts(judge.rounding, tolerance):
        strict = tolerance / MARGIN
        methods = tuple(
            batch.choose(index, reference, guessing[index], strict)
            for index, reference in enumerate(references)
        )
        methods = judge.tighten(methods, tolerance)
    else:
        LOG.warning(
            "rounding to %s changes pixels by up to %.1e, too much for a tolerance of %.1e: "
            "sampling sequentially; float32 keeps the tolerance",
            str(product_dtype(latents)).removeprefix("torch."),
            *(judge.rounding, tolerance),
        )
    measured = tuple(
        batch.measure(index, reference, methods[index], ranking[index], guessing[index])
        for index, reference in enumerate(references)
    )
    methods = tuple(
        replace(method, sweeps=BUDGET * block.iterations) if block.iterations else SEQUENTIAL
        for method, block in zip(methods, measured, strict=True)
    )
    return Plan(
        methods=methods,
        situation=situation(flow, len(images), condition, sampler, tolerance),
        measured=measured,
        error=judge.error(methods),
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
    condition: Tensor | None
    sampler: SamplerConfig | None

    def solve_sequentially(self) -> list[_Reference]:
        """Invert all blocks token by token."""
        latents, references = self.latents, []
        for index in reversed(range(len(self.flow.blocks))):
            tokens, seconds = self.time_sequential(index, latents)
            references.append(_Reference(latents, tokens, seconds))
            latents = tokens
        return references[::-1]

    def rounding(self, tokens: Tensor) -> float:
        """Return how much autocast changes a pixel of (B, T, D) sequentially decoded tokens."""
        if product_dtype(tokens) == tokens.dtype:
            return 0.0
        with torch.autocast(tokens.device.type, enabled=False):
            exact = invert(self.flow, self.latents, self.condition, self.sampler)
        return largest_error(unpatchify(tokens, self.flow.config), exact)

    def choose(
        self, index: int, reference: _Reference, igm: tuple[float, float], tolerance: float
    ) -> Method:
        """Return the method that inverts one block fastest within a tolerance for tokens."""
        guess: Literal["latents", "zeros"] = "latents" if igm[0] <= igm[1] else "zeros"
        bound = max(BOUND, 2 * float(reference.tokens.abs().max()))
        last = reference.tokens.shape[1] - 1
        segments = {-(-last // window) for window in WINDOWS if window < last} | {1}
        chosen, seconds = SEQUENTIAL, reference.seconds
        for count in sorted(segments, reverse=True):
            method = Method(segments=count, guess=guess, tolerance=tolerance, bound=bound)
            taken, _ = self.time_method(index, reference.latents, method, seconds)
            if taken < seconds:
                chosen, seconds = method, taken
        return chosen

    def measure(
        self,
        index: int,
        reference: _Reference,
        method: Method,
        crm: float,
        igm: tuple[float, float],
    ) -> Measured:
        """Time a method in turns with sequential decoding, which stays unless clearly slower.

        Without iterations in the result, the block is to be decoded sequentially.
        """
        sequential, iterations = reference.seconds, 0
        seconds = sequential
        if method.segments:
            turns = [
                (
                    self.time_sequential(index, reference.latents)[1],
                    self.time_method(index, reference.latents, method),
                )
                for _ in range(TURNS)
            ]
            sequential = statistics.median(turn[0] for turn in turns)
            taken = statistics.median(turn[1][0] for turn in turns)
            wins = CLEAR_WIN * taken <= sequential
            seconds, iterations = (taken, turns[0][1][1]) if wins else (sequential, 0)
        return Measured(
            crm=crm,
            igm_latents=igm[0],
            igm_zeros=igm[1],
            iterations=iterations,
            sequential_seconds=sequential,
            seconds=seconds,
        )

    def time_sequential(self, index: int, latents: Tensor) -> tuple[Tensor, float]:
        """Return the tokens (B, T, D) of one block and the seconds of sequential decoding."""
        inversion = Inversion(self.flow, self.latents, self.condition, self.sampler)
        return _timed(latents.device, partial(inversion.invert_block, index, latents, SEQUENTIAL))

    def time_method(
        self, index: int, latents: Tensor, method: Method, limit: float = math.inf
    ) -> tuple[float, int]:
        """Return the seconds and iterations of a method on one block; no iterations if slower."""
        block = cast(FlowBlock, self.flow.blocks[index])
        latents = block.with_start(block.permute(latents))
        inversion = Inversion(self.flow, self.latents, self.condition, self.sampler)

        def solve() -> JacobiResult:
            return jacobi(inversion.incremental_block(index), latents, method, limit)

        result, seconds = _timed(latents.device, solve)
        solved = result.converged == latents.shape[1] - 1
        return (seconds, result.iterations) if solved else (math.inf, 0)


def _timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of some work, and the seconds until the device has finished it."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start
