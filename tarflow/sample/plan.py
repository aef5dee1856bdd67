"""Methods that invert a block of a flow, and plans of them kept in a file beside a checkpoint."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tarflow.config import NoiseConfig, SamplerConfig
from tarflow.config_files import from_dict, to_dict
from tarflow.errors import ConfigError
from tarflow.record import read_json, write_json

PLAN = "plan.json"  # name of the file beside a checkpoint; its keys are the fields below
BOUND = 10.0  # of guesses; images are in [-1, 1] and latents near normal


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one block is inverted: token by token, or a window of tokens at once by iteration.

    A window holds `1 / segments` of the tokens and slides past those that have converged, which
    are not computed again. One segment is Jacobi iteration over the whole block, more are
    Gauss-Seidel-Jacobi iteration (arXiv 2505.12849).
    """

    segments: int = 0  # 0: sequential; 1: one window of all tokens; G: windows of 1/G of them
    guess: Literal["latents", "zeros"] = "latents"  # what iteration starts from
    tolerance: float = 1e-3  # a token has converged when an iteration changes it by less
    sweeps: int = 0  # most Jacobi iterations; the rest is solved sequentially; 0 is no limit
    bound: float = BOUND  # of tokens while they are guesses; converged ones may exceed it

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.segments < 0 or self.sweeps < 0 or self.tolerance < 0 or self.bound <= 0:
            raise ConfigError(
                "a method needs segments, sweeps and tolerance of 0 or more and a positive bound"
            )

    def __str__(self) -> str:
        """Return the name of the method.

        >>> str(Method()), str(Method(segments=1)), str(Method(segments=8))
        ('sequential', 'jacobi', 'segmented:8')
        """
        return {0: "sequential", 1: "jacobi"}.get(self.segments, f"segmented:{self.segments}")


SEQUENTIAL = Method()


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The situation that a measured plan is valid in."""

    device: str
    threads: int
    precision: str
    batch: int  # images per batch
    guidance: SamplerConfig | None  # with the default denoising, which plans do not depend on
    tolerance: float  # largest error of a pixel; pixels are in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What calibration measured of one block, for one batch."""

    crm: float  # convergence ranking metric: how hard the block is, percent of all blocks
    igm_latents: float  # initial guessing metric: residual after one iteration from the latents
    igm_zeros: float  # the same from zeros
    iterations: int  # Jacobi iterations of the chosen method; 0 if it is sequential
    sequential_seconds: float  # time of sequential decoding
    seconds: float  # time of the chosen method


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A method for each block, in the order of the flow (images first)."""

    methods: tuple[Method, ...]
    situation: Situation | None = None  # absent from plans that were not measured
    measured: tuple[Measured, ...] = ()
    error: float | None = None  # largest error of a pixel in batches that only judged the plan
    forward_seconds: float | None = None  # time of one parallel pass of one batch

    def seconds(self, images: int) -> float | None:
        """Return how long inverting images takes, in whole batches; `None` if not measured."""
        if not self.situation:
            return None
        batches = -(-images // self.situation.batch)
        return batches * sum(block.seconds for block in self.measured)

    def __str__(self) -> str:
        """Return the names of the methods, the noise side first: the order of sampling.

        >>> str(Plan(methods=(Method(segments=1), Method(segments=1), Method())))
        'sequential, 2 jacobi'
        """
        names: list[list[str]] = []
        for method in reversed(self.methods):
            if not names or names[-1][0] != str(method):
                names.append([])
            names[-1].append(str(method))
        return ", ".join(
            f"{len(group)} {group[0]}" if len(group) > 1 else group[0] for group in names
        )


def default_tolerance(noise: NoiseConfig) -> float:
    """Return the largest error of a pixel in [-1, 1] that does not matter.

    It is a tenth of the noise that denoising removes, or half a grey level for uniform noise.
    """
    return 0.1 * noise.std if noise.type == "gaussian" else 1 / 255


def named_plan(name: str, blocks: int, tolerance: float) -> Plan:
    """Return the plan with a solver's name, without calibration.

    Args:
        name: `sequential`; `jacobi`; `segmented:G`; or `selective`, which is sequential in the
            block nearest the noise and iterates in the others (arXiv 2505.24791).
        blocks: Number of flow blocks.
        tolerance: Tolerance of Jacobi iteration.

    Raises:
        ConfigError: If the name is unknown.
    """
    kind, _, number = name.partition(":")
    jacobi = Method(segments=1, tolerance=tolerance)
    if name == "sequential":
        return Plan(methods=(SEQUENTIAL,) * blocks)
    if name == "jacobi":
        return Plan(methods=(jacobi,) * blocks)
    if name == "selective":
        return Plan(methods=(jacobi,) * (blocks - 1) + (SEQUENTIAL,))
    if kind == "segmented" and number.isdigit() and int(number):
        return Plan(methods=(replace(jacobi, segments=int(number)),) * blocks)
    raise ConfigError(
        f"unknown solver {name!r}: write auto, sequential, jacobi, selective or segmented:8"
    )


def find_plan(path: Path, situation: Situation) -> Plan | None:
    """Return the plan for this situation in a file of plans, or `None`."""
    return next((plan for plan in _read(path) if plan.situation == situation), None)


def keep_plan(path: Path, plan: Plan) -> None:
    """Add a plan to a file of plans, replacing the one for the same situation."""
    others = [other for other in _read(path) if other.situation != plan.situation]
    write_json(path, [to_dict(one) for one in [*others, plan]])


def _read(path: Path) -> Iterator[Plan]:
    """Yield the plans of a file, without those of versions that kept other fields."""
    for plain in read_json(path) or []:
        with contextlib.suppress(ConfigError):
            yield from_dict(Plan, plain, where=str(path))
