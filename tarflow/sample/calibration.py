"""How fast and how exactly each block of a flow is inverted here: measured, then chosen.

Legend: `B` images, `T` tokens per image, `D` values per token, `C` channels.
Methods are chosen by the seconds they take; the metrics of `block_metrics` are shown beside
them, and one of them picks the first guess.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

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
from tarflow.sample.inverse import Inversion, invert, jacobi
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

Guess = Literal["latents", "zeros"]

WORTH = 8  # batches from which on a calibration is repaid
WINDOWS = (4, 8, 16, 32, 64)  # tokens, tried besides all at once
TIGHTER = (1.0, 2.0, 4.0, 8.0, 16.0)  # by which tolerances are divided until the error is right
SPARE = 2  # times the sweeps that were needed make the budget


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
    if so many images are wanted that this is repaid, and else goes token by token.

    Args:
        solver: auto, or a name that `named_plan` knows.
        flow: the model in eval mode, on its device.
        config: of its run; its sampler says how it is guided.
        count: images wanted.
        batch: images at a time.
        path: where plans are kept, beside the checkpoint.

    Raises:
        UserError: if there is no such solver.
    """
    tolerance = default_tolerance(config.noise)
    if solver != "auto":
        return named_plan(solver, len(flow.blocks), tolerance)
    labels = torch.zeros(1, dtype=torch.int64) if flow.config.classes else None
    now = situation(flow, min(batch, count), labels, config.sampler, tolerance)
    plan = find_plan(path, now) if path else None
    if plan is None and count >= WORTH * batch:
        images, labels = calibration_images(flow, config, batch)
        plan = calibrate(flow, images, labels, config.noise, config.sampler)
        if path:
            keep_plan(path, plan)
    return plan or named_plan("sequential", len(flow.blocks), tolerance)


def calibration_images(
    flow: TarFlow, config: RunConfig, count: int
) -> tuple[Tensor, Tensor | None]:
    """Return images (B, c, H, H) in [-1, 1] to calibrate on, and labels (B,) or `None`.

    Training images of the run where they are at hand, else samples of the flow.
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
    """Return what a plan measured now would hold for."""
    device, blocks = flow.var.device, len(flow.blocks)
    guided = sampler if is_guided(sampler, labels) else None
    auto = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if auto else flow.var.dtype
    return Situation(
        device=describe_device(device),
        threads=torch.get_num_threads(),
        precision=str(dtype).removeprefix("torch."),
        batch=batch,
        guided_blocks=sum(guided.guides(index, blocks) for index in range(blocks))
        if guided
        else 0,
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

    The images are noised as in training, mapped to latents, and the latents back. A method is
    taken if it is faster than going token by token; then the tolerance of the sweeps is lowered
    until the largest error of a pixel is below `tolerance`. If that does not come about, blocks
    return to going token by token, the one nearest the images first.

    Args:
        flow: the model in eval mode.
        images: (B, c, H, H) in [-1, 1], clean; some from the training data will do.
        labels: (B,) int64, -1 where dropped, or `None`.
        noise: what the model was trained with.
        sampler: guidance, if sampling is to be guided.
        tolerance: largest error of a pixel; see `default_tolerance`.
    """
    tolerance = default_tolerance(noise) if tolerance is None else tolerance
    images = images.to(flow.var)
    labels = None if labels is None else labels.to(flow.var.device)
    rng = generator(0, "calibration", device=flow.var.device.type)
    noised = noisy(to_pixels(images), noise, rng, flow.var.dtype)
    flow(noised, labels)  # set up what the first pass sets up
    timer = _Timer(flow)
    latents, _ = flow(noised, labels)
    forward_seconds = timer.stop()
    batch = _Batch(flow, latents, labels, sampler)
    references = batch.solve()
    methods: list[Method] = []
    measured: list[Measured] = []
    metrics = zip(convergence_ranking(flow, images), initial_guessing(flow, images), strict=True)
    for index, (crm, (from_latents, from_zeros)) in enumerate(metrics):
        guess: Guess = "latents" if from_latents <= from_zeros else "zeros"
        reference = references[index]
        chosen, seconds, jacobi = SEQUENTIAL, reference.seconds, 0
        for method in _candidates(reference, guess, tolerance):
            taken, sweeps = batch.attempt(index, reference.latents, method, seconds)
            if method.segments == 1:
                jacobi = sweeps
            if taken < seconds:
                chosen, seconds = replace(method, sweeps=SPARE * sweeps), taken
        methods.append(chosen)
        measured.append(
            Measured(
                crm=crm,
                igm_latents=from_latents,
                igm_zeros=from_zeros,
                sweeps=jacobi,
                sequential_seconds=reference.seconds,
                seconds=seconds,
            )
        )
    exact = unpatchify(references[0].tokens, flow.config.patch)
    solved, error = _exact_enough(batch, tuple(methods), exact, tolerance)
    return Plan(
        methods=solved,
        situation=situation(flow, len(images), labels, sampler, tolerance),
        measured=tuple(measured),
        error=error,
        forward_seconds=forward_seconds,
    )


@dataclass(frozen=True)
class _Reference:
    """One block, solved token by token; (B, T, D) in raster order."""

    latents: Tensor
    tokens: Tensor
    seconds: float


@dataclass(frozen=True)
class _Batch:
    """What is inverted again and again."""

    flow: TarFlow
    latents: Tensor
    labels: Tensor | None
    sampler: SamplerConfig | None

    def solve(self) -> list[_Reference]:
        """Invert all blocks token by token."""
        inversion = self._inversion()
        latents, found = self.latents, []
        for index in reversed(range(len(self.flow.blocks))):
            timer = _Timer(self.flow)
            tokens = inversion.invert_block(index, latents, SEQUENTIAL)
            found.append(_Reference(latents, tokens, timer.stop()))
            latents = tokens
        return found[::-1]

    def attempt(
        self, index: int, latents: Tensor, method: Method, seconds: float
    ) -> tuple[float, int]:
        """Return the seconds and sweeps of a method on one block; no sweeps if it is slower."""
        block = cast(FlowBlock, self.flow.blocks[index])
        inversion = self._inversion()
        timer = _Timer(self.flow)
        result = jacobi(
            inversion.incremental_block(index), block.permute(latents), method, seconds
        )
        taken = timer.stop()
        solved = result.converged == latents.shape[1] - 1
        return (taken, result.iterations) if solved else (math.inf, 0)

    def error(self, methods: tuple[Method, ...], exact: Tensor) -> float:
        """Return the largest error of a pixel, images being in [-1, 1]."""
        if all(method == SEQUENTIAL for method in methods):
            return 0.0
        plan = Plan(methods=methods)
        found = invert(self.flow, self.latents, self.labels, self.sampler, plan)
        return float((found - exact).abs().max())

    def _inversion(self) -> Inversion:
        return Inversion(self.flow, self.latents, self.labels, self.sampler)


def _candidates(reference: _Reference, guess: Guess, tolerance: float) -> list[Method]:
    last = reference.tokens.shape[1] - 1
    segments = {-(-last // window) for window in WINDOWS if window < last} | {1}
    bound = max(BOUND, 2 * float(reference.tokens.abs().max()))
    return [
        Method(segments=count, guess=guess, tolerance=tolerance, bound=bound)
        for count in sorted(segments, reverse=True)
    ]


def _exact_enough(
    batch: _Batch, methods: tuple[Method, ...], exact: Tensor, tolerance: float
) -> tuple[tuple[Method, ...], float]:
    """Return methods, made stricter until the error of a pixel is within the tolerance."""
    tightened = methods
    for factor in TIGHTER:
        tightened = tuple(
            replace(each, tolerance=each.tolerance / factor) if each.segments else each
            for each in methods
        )
        error = batch.error(tightened, exact)
        if error <= tolerance:
            return tightened, error
    for index in range(len(tightened)):
        tightened = (*tightened[:index], SEQUENTIAL, *tightened[index + 1 :])
        error = batch.error(tightened, exact)
        if error <= tolerance:
            break
    return tightened, error


class _Timer:
    """Seconds on the clock, with the device's work done at both ends."""

    def __init__(self, flow: TarFlow) -> None:
        self.device = flow.var.device
        synchronize(self.device)
        self.start = time.perf_counter()

    def stop(self) -> float:
        synchronize(self.device)
        return time.perf_counter() - self.start
