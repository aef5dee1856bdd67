"""The checkpoint that a command works on, and the flags that override its config."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import tyro

from tarflow.config import ExecutionConfig, GuidanceRule, GuidedPart, RunConfig
from tarflow.storage import locate_model

if TYPE_CHECKING:
    from tarflow.model.flow import TarFlow

Config = TypeVar("Config", bound=Any)  # a dataclass of `tarflow.config`
Checkpoint = Annotated[Path, tyro.conf.Positional]


def from_run(*values: str) -> Any:
    """Describe a flag whose default is in the config of the run, for its help text.

    Args:
        values: What it takes: its choices, or one word such as FLOAT.
    """
    metavar = values[0] if len(values) == 1 else f"{{{','.join(values)}}}"
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: from the run's config)")


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """How to sample."""

    guidance: Annotated[float | None, from_run("FLOAT")] = None
    """Weight of the guided extrapolation; 0 is off."""
    rule: Annotated[GuidanceRule | None, from_run(*get_args(GuidanceRule))] = None
    """Quantity that guidance extrapolates."""
    part: Annotated[GuidedPart | None, from_run(*get_args(GuidedPart))] = None
    """Outputs that guidance changes."""
    guided_blocks: Annotated[str | None, from_run("BLOCKS")] = None
    """all, or top:3 for the three blocks nearest the noise."""
    annealed: Annotated[bool | None, from_run("True", "False")] = None
    """Whether the weight grows linearly along the tokens."""
    temperature: Annotated[float | None, from_run("FLOAT")] = None
    """Attention temperature of the unguided branch."""
    denoise: Annotated[float | None, from_run("FLOAT")] = None
    """Multiplier of the denoising step; 0 is off."""


Flags = Annotated[SamplerFlags, tyro.conf.OmitArgPrefixes]
NO_FLAGS = SamplerFlags()


def override(config: Config, **flags: Any) -> Config:
    """Return a config with the flags that were given; those that are None change nothing."""
    return replace(config, **{name: value for name, value in flags.items() if value is not None})


def load(checkpoint: Path, sampling: SamplerFlags = NO_FLAGS) -> "tuple[TarFlow, RunConfig]":
    """Read a model onto the device of this machine, and its config with the flags applied."""
    from tarflow.cpu.layers import ProductLayer
    from tarflow.device import choose_device
    from tarflow.model.weights import load_model

    # the layers denoise faster in bfloat16 on a CPU
    flow, config = load_model(locate_model(checkpoint), ProductLayer)
    flow = flow.to(choose_device(ExecutionConfig())).requires_grad_(False)
    return flow, replace(config, sampler=override(config.sampler, **asdict(sampling)))
