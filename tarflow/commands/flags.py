"""The flags that commands share."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import tyro

from tarflow.config import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """How to sample; what is not given is taken from the run's config."""

    guidance: float | None = None
    """weight of the guided extrapolation; 0 is off"""
    rule: Literal["log-scale", "sigma-linear", "gaussian-score"] | None = None
    """what guidance extrapolates"""
    part: Literal["both", "scale", "shift"] | None = None
    """what guidance acts on"""
    guided_blocks: str | None = None
    """all, or top:3 for the three blocks nearest the noise"""
    annealed: bool | None = None
    """grow the weight linearly along the tokens"""
    temperature: float | None = None
    """attention temperature of the unguided branch"""
    denoise: float | None = None
    """multiplier of the denoising step; 0 is off"""

    def over(self, sampler: SamplerConfig) -> SamplerConfig:
        """Return the run's sampler with what was asked for in its place.

        >>> SamplerFlags(guidance=2.0).over(SamplerConfig(denoise=0.9))
        SamplerConfig(guidance=2.0, rule='log-scale', part='both', guided_blocks='all', \
annealed=True, temperature=1.0, denoise=0.9)
        """
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(sampler, **asked)


Flags = Annotated[SamplerFlags, tyro.conf.OmitArgPrefixes]
NO_FLAGS = SamplerFlags()
