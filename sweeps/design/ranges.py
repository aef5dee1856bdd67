"""The ranges of a search as a study file gives them; what it leaves out follows from the study."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from tarflow.errors import ConfigError
from tarflow.fields import check_fields, unknown
from tarflow.human import interval

# A search chooses in this order: a range may depend on what is chosen before it.
NAMES = {
    "split": "layers split",
    "total_layers": "total layers",
    "blocks": "blocks",
    "layers": "layers",
    "channels": "channels",
    "lr_ratio": "learning rate, times the study's",
    "noise_std": "noise",
}
ORDER = tuple(NAMES)
SAMPLING = {"guidance": 0, "temperature": 0.01, "denoise": 0}  # chosen last, and their least value
ENDS = "write its lowest and highest value, both positive, the lowest first"


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Lowest and highest value of what is searched; null leaves it to the study."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    section: ClassVar = ""  # in the study file
    split: tuple[str, ...] | None = None  # layers of each block, such as [2-2-2-2, 1-1-1-5]
    total_layers: tuple[int, ...] | None = None  # layers in all blocks, for splits
    blocks: tuple[int, ...] | None = None  # autoregressive flow blocks
    layers: tuple[int, ...] | None = None  # Transformer layers in each block
    channels: tuple[int, ...] | None = None  # width, in steps of head_dim
    lr_ratio: tuple[float, ...] | None = None  # learning rate, times the study's at that width
    noise_std: tuple[float, ...] | None = None  # standard deviation of Gaussian noise

    def __post_init__(self) -> None:
        rules = {
            name: (len(ends) == 2 and 0 < ends[0] <= ends[1] < math.inf, ENDS)
            for name in ORDER[1:]
            if (ends := getattr(self, name)) is not None
        }
        check_fields(self.section, self, **rules)
        for split in self.split or ():
            if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", split):
                raise ConfigError(f"split {split!r}: write the layers of each block, as 1-1-1-5")
        if self.split == ():
            raise ConfigError("split is empty: list at least one, such as 1-1-1-5")

    @property
    def given(self) -> tuple[str, ...]:
        """Names that have a range here, in the order of choice."""
        return tuple(name for name in ORDER if getattr(self, name) is not None)

    def in_words(self) -> str:
        """Return the ranges that are given, for people."""
        return " · ".join(f"{NAMES[name]} {interval(getattr(self, name))}" for name in self.given)


@dataclass(frozen=True, kw_only=True)
class Case(Ranges):
    """Other ranges for some of the choices made before them."""

    when: Mapping[str, Any]  # values that were chosen before: {blocks: 2}, or {blocks: [2, 4]}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.when or not self.given:
            raise ConfigError("write when: {blocks: 2}, say, and at least one range beside it")
        if self.split is not None:
            raise ConfigError("split cannot depend on anything: it is chosen first")
        for name, value in self.when.items():
            if name not in ORDER:
                raise ConfigError(f"when: {unknown(name, ORDER)}")
            if isinstance(value, list) and (len(value) != 2 or value != sorted(value)):
                raise ConfigError(f"when.{name} is {value}: write one value, or [lowest, highest]")
            for later in self.given:
                if ORDER.index(later) <= ORDER.index(name):
                    raise ConfigError(f"{later} cannot depend on {name}, which is chosen later")

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Tell whether the choices made so far are those of this case."""
        return all(
            value[0] <= chosen.get(name, math.nan) <= value[1]
            if isinstance(value, list)
            else value == chosen.get(name)
            for name, value in self.when.items()
        )

    def condition(self) -> str:
        """Return for which choices it is, for people."""
        return ", ".join(
            f"{NAMES[name]} is "
            + (interval((value[0], value[1])) if isinstance(value, list) else str(value))
            for name, value in self.when.items()
        )


@dataclass(frozen=True, kw_only=True)
class SearchRanges(Ranges):
    """What `search.py` varies; null leaves a range to the study."""

    section: ClassVar = "search"
    cases: tuple[Case, ...] = ()  # other ranges when something else is chosen; the first counts
    guidance: tuple[float, ...] | None = None  # weight of guidance; 0 is off
    temperature: tuple[float, ...] | None = None  # attention temperature of the unguided branch
    denoise: tuple[float, ...] | None = None  # multiplier of the denoising step; 0 is off

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, lowest in SAMPLING.items():
            ends = getattr(self, name)
            if ends and not (len(ends) == 2 and lowest <= ends[0] <= ends[1] < math.inf):
                rule = f"write its lowest and highest value, at least {lowest}, the lowest first"
                raise ConfigError(f"search.{name} is {ends}: {rule}")

    def ends(self, name: str, chosen: Mapping[str, Any]) -> Any:
        """Return the range of a name given the choices made before it; None if there is none."""
        for case in self.cases:
            if name in case.given and case.holds(chosen):
                return getattr(case, name)
        return getattr(self, name)

    def parts(self) -> list[tuple[str, Ranges]]:
        """Return all ranges, each with its place in the study file."""
        cases = [(f"search.cases.{index}", case) for index, case in enumerate(self.cases)]
        return [("search", self), *cases]
