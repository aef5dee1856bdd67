"""How each block of a flow is inverted: methods, and plans of them kept beside a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tarflow.config import NoiseConfig, from_dict, to_dict
from tarflow.errors import ConfigError
from tarflow.record import read_json, write_json

PLAN = "plan.json"  # name of the file beside a checkpoint
BOUND = 10.0  # of a token that is still guessed; images lie in [-1, 1], latents are near normal
SELECTIVE_TOLERANCE = 0.5  # of selective Jacobi decoding (arXiv 2505.24791)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one block is inverted: token by token, or a window of tokens at once by sweeps.

    A window holds one part in `segments` of the tokens; it moves on over those that have settled,
    which are not computed again. One segment is Jacobi iteration over the whole block, more are
    Gauss-Seidel-Jacobi iteration (arXiv 2505.12849).
    """

    segments: int = 0  # 0: token by token; 1: one window of all tokens; G: windows of 1/G of them
    guess: Literal["latents", "zeros"] = "latents"  # what the sweeps start from
    tolerance: float = 1e-3  # a token has settled when a sweep changes it by less
    sweeps: int = 0  # budget: after so many, the rest is solved token by token; 0 is no limit
    bound: float = BOUND  # of tokens while they are guesses; settled ones may lie beyond it

    def __post_init__(self) -> None:
        """Refuse methods that cannot be carried out."""
        if self.segments < 0 or self.sweeps < 0 or self.tolerance < 0 or self.bound <= 0:
            raise ConfigError("a solver needs segments, sweeps and tolerance of 0 or more")

    def __str__(self) -> str:
        """Name it.

        >>> str(Method()), str(Method(segments=1)), str(Method(segments=8))
        ('sequential', 'jacobi', 'segmented:8')
        """
        return {0: "sequential", 1: "jacobi"}.get(self.segments, f"segmented:{self.segments}")


SEQUENTIAL = Method()


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a measured plan holds for."""

    device: str
    threads: int
    precision: str
    batch: int  # images at a time
    guided_blocks: int  # number of blocks with two branches; 0 without guidance
    tolerance: float  # largest error of a pixel, images being in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What calibration saw of one block."""

    crm: float  # convergence ranking metric: how tough the block is, percent of all blocks
    igm_latents: float  # initial guessing metric: residual after one sweep from the latents
    igm_zeros: float  # and after one from zeros
    sweeps: int  # of Jacobi iteration to the tolerance, 0 if it was given up as too slow
    sequential_seconds: float  # for one batch
    seconds: float  # of the chosen method


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A method for each block, in the order of the flow (images first)."""

    methods: tuple[Method, ...]
    situation: Situation | None = None  # absent from plans that were not measured
    measured: tuple[Measured, ...] = ()
    error: float | None = None  # largest error of a pixel seen in calibration
    forward_seconds: float | None = None  # one parallel pass of the whole flow, one batch

    def __str__(self) -> str:
        """Name the methods, the noise side first, as sampling goes.

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
    """Return the error of a pixel, in [-1, 1] units, that does not matter.

    A tenth of the noise that denoising takes away, or half a grey level of uniform noise.
    """
    return 0.1 * noise.std if noise.type == "gaussian" else 1 / 255


def named_plan(name: str, blocks: int, tolerance: float) -> Plan:
    """Return the plan that a solver's name stands for, with no calibration.

    Args:
        name: `sequential`; `jacobi`; `segmented:G`; or `selective`, which goes token by token in
            the block nearest the noise and iterates in the others (arXiv 2505.24791).
        blocks: of the flow.
        tolerance: of the sweeps.

    Raises:
        ConfigError: if there is no such solver.
    """
    kind, _, number = name.partition(":")
    if name == "sequential":
        return Plan(methods=(SEQUENTIAL,) * blocks)
    if name == "jacobi":
        return Plan(methods=(Method(segments=1, tolerance=tolerance),) * blocks)
    if name == "selective":
        swept = Method(segments=1, tolerance=tolerance)
        return Plan(methods=(swept,) * (blocks - 1) + (SEQUENTIAL,))
    if kind == "segmented" and number.isdigit() and int(number):
        return Plan(methods=(Method(segments=int(number), tolerance=tolerance),) * blocks)
    raise ConfigError(
        f"unknown solver {name!r}: write auto, sequential, jacobi, selective or segmented:8"
    )


def find_plan(path: Path, situation: Situation) -> Plan | None:
    """Return the plan kept in a file for this situation, if there is one."""
    return next((plan for plan in _read(path) if plan.situation == situation), None)


def keep_plan(path: Path, plan: Plan) -> None:
    """Add a plan to a file; it replaces the one for the same situation."""
    others = [kept for kept in _read(path) if kept.situation != plan.situation]
    write_json(path, [to_dict(each) for each in [*others, plan]])


def _read(path: Path) -> Sequence[Plan]:
    return [from_dict(Plan, plain, where=str(path)) for plain in read_json(path) or []]
