"""What the inner search may change: how to sample from a finished run, which trains nothing."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

from sweeps.design.outcomes import WORST
from sweeps.design.ranges import SearchRanges
from sweeps.design.sampling import SamplingTask, effective
from sweeps.searching.space import SEED, Params, Range, Trial
from tarflow.config import GuidanceRule, RunConfig, SamplerConfig
from tarflow.config_files import from_dict
from tarflow.identity import HALVES
from tarflow.record import read_json

FEWEST_SAMPLES = 8  # samples that can be split into halves and compared
TOP = 3  # most blocks that guidance is confined to
USUAL = {"guidance": 0.2, "temperature": 0.3}  # without classes (Zhai et al. 2025, table 5)
DECIMALS = 2  # of weights and temperatures


@dataclass(frozen=True)
class SamplingSpace:
    """Guidance (weight, rule, blocks), attention temperature and denoising of one finished run."""

    run_id: str
    label: str
    config: RunConfig
    search: SearchRanges = field(default_factory=SearchRanges)  # of the study file
    objectives: ClassVar = ("kid",)

    @classmethod
    def of(cls, run_id: str, label: str, config: str) -> "SamplingSpace":
        """Return the space of a run, given these columns of `runs.parquet`."""
        return cls(run_id, label, from_dict(RunConfig, json.loads(config)))

    @property
    def title(self) -> str:
        """Name of its study in the journal, such as sampling-0123456789."""
        return f"sampling-{self.run_id}"

    @property
    def searchable(self) -> bool:
        """Whether the run draws enough samples to compare halves of them."""
        return self.config.evaluation.samples >= FEWEST_SAMPLES

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Suggest a setting."""
        for name, ends in self.ranges.items():
            trial.suggest_float(name, *ends)
        for name, choices in self.words.items():
            trial.suggest_categorical(name, choices)
        return {"run_id": self.run_id}

    @property
    def own(self) -> SamplerConfig:
        """The run's own setting."""
        return effective(self.config.sampler, self.config)

    @property
    def ranges(self) -> dict[str, Range]:
        """Lowest and highest value of each number, by the study file or else these.

        The run's own are inside, except a temperature that guides nothing. With classes, guidance
        leads away from the mean class; without, it leads away from the same network at another
        attention temperature (Zhai et al. 2025, section 3.5).
        """
        conditional = self.config.model.conditional
        ranges = {
            "guidance": (0.0, 3.0) if conditional else (0.0, 1.0),
            "temperature": (0.5, 1.5) if conditional else (0.2, 2.0),
        }
        if self.config.noise.type == "gaussian":
            ranges["denoise"] = (0.75, 1.25)
        for name in ranges:
            low, high = getattr(self.search, name) or ranges[name]
            own = getattr(self.own, name)
            unused = name == "temperature" and not self.own.guidance
            ranges[name] = (low, high) if unused else (min(low, own), max(high, own))
        return ranges

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Rules of guidance, and blocks to confine it to, the run's own among them."""
        few = min(TOP, self.config.model.blocks - 1)  # all blocks are not few
        blocks = ("all", *(f"top:{count}" for count in range(1, few + 1)), self.own.guided_blocks)
        return {"rule": get_args(GuidanceRule), "guided_blocks": tuple(dict.fromkeys(blocks))}

    @property
    def base(self) -> dict[str, Any]:
        """The run's own setting."""
        words = {name: getattr(self.own, name) for name in self.words}
        return self._inside({name: getattr(self.own, name) for name in self.ranges}) | words

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """The run's own setting, and the same with a published guidance, or the nearest."""
        guided = {"guidance": 2.0} if self.config.model.conditional else USUAL
        return self.base, self.base | self._inside(guided)

    def _inside(self, numbers: dict[str, float]) -> dict[str, Any]:
        """Return the nearest numbers in their ranges."""
        ranges = self.ranges
        return {name: min(max(n, ranges[name][0]), ranges[name][1]) for name, n in numbers.items()}

    def sampler(self, params: Params) -> SamplerConfig:
        """Return the setting that parameters stand for; settings that do the same are equal.

        Suggested numbers are rounded; the run's own stay as they are, whatever their digits.
        """
        numbers = {name: params[name] for name in self.ranges}
        own = {name: getattr(self.own, name) for name in numbers}
        changes: dict[str, Any] = {
            name: value if value == own[name] else round(value, DECIMALS)
            for name, value in numbers.items()
        }
        changes |= {name: params[name] for name in self.words}
        return effective(replace(self.config.sampler, **changes), self.config)

    def task(self, params: Params) -> SamplingTask:
        """Return the sampling that parameters stand for."""
        return SamplingTask(
            self.run_id, self.label, self.config, self.sampler(params), SEED, HALVES
        )

    def name(self, params: Params) -> str:
        """Return the id of the setting."""
        return self.task(params).setting_id

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the KID on the half of the draws that chooses, None if not sampled yet.

        It is `WORST` if no sample was finite.
        """
        path = out / "runs" / self.run_id / "evaluations" / f"{self.name(params)}.json"
        rows = read_json(path)
        if rows is None:
            return None
        scores = [row["kid"] for row in rows if row["half"] == "chosen"]
        return [WORST] if None in scores else scores

    def pruned(self, params: Params, out: Path) -> bool:
        """Return False: sampling is too short to be pruned."""
        del params, out
        return False
