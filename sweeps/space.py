"""What a search may change, as Optuna define-by-run spaces.

The outer space trains, at one budget, so that all candidates cost the same; the inner one only
samples from a finished run. A space also says which run or sampler setting its parameters stand
for, and what is known of it already: what lies on disk is the truth, the journal a mirror.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sweeps.settings import effective
from sweeps.study import Planned, Point, Size, Study, learning_rate, planned, short, sized_model
from tarflow import cost
from tarflow.config import ModelConfig, RunConfig, SamplerConfig, from_dict
from tarflow.identity import HALVES, setting_id
from tarflow.record import read_json, read_result

SEED = 1  # of all noise in the inner search: not that of the runs, which picked the checkpoints
NOISE_REACH = 4.0  # the noise is looked for from the base's, divided by this, to times this
RATES = 0.25, 2.0  # of the learning rate, times the study's own for the width
RULES = "log-scale", "sigma-linear", "gaussian-score"  # of guidance
FEWEST_SAMPLES = 8  # that can be cut into halves and compared
TOP = 3  # most blocks that guidance is confined to
USUAL = {"guidance": 0.2, "temperature": 0.3}  # without classes (Zhai et al. 2025, table 5)
DIGITS = 2  # after the point, of weights and temperatures

Params = Mapping[str, Any]
Range = tuple[float, float]


class Trial(Protocol):
    """What a space asks of Optuna's trial."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Suggest a whole number."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a number."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Suggest one of several."""


class Space(Protocol):
    """What a search goes through."""

    @property
    def title(self) -> str:
        """Name of its study in the journal."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """What is to be small."""

    @property
    def base(self) -> dict[str, Any]:
        """What a search has to beat."""

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """Where a search begins: the base, and what is likely to beat it."""

    def __call__(self, trial: Trial) -> dict[str, Any] | None:
        """Suggest parameters; what is returned goes with them."""

    def name(self, params: Params) -> str:
        """Return what two suggestions of the same thing share."""

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the objectives from disk, [] if the trial failed, None if it has not ended."""


@dataclass(frozen=True)
class TrainingSpace:
    """Depth, channels, noise and learning rate around a study's base, at one budget."""

    study: Study
    budget: float  # training FLOPs of every candidate
    objectives: ClassVar = ("bpd", "kid")

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Suggest a candidate that sees a sensible number of images."""
        blocks = trial.suggest_int("blocks", *self.blocks)
        layers = trial.suggest_int("layers", *self.layers)
        low, high = self.widths(blocks, layers)
        trial.suggest_int("channels", low, high, step=self.study.base.model.head_dim)
        trial.suggest_float("lr_ratio", *RATES, log=True)
        if self.noises:
            trial.suggest_float("noise_std", *self.noises, log=True)
        return {}

    @property
    def title(self) -> str:
        """Name of its study in the journal, such as training-2e11."""
        return f"training-{short(self.budget)}"

    @property
    def blocks(self) -> tuple[int, int]:
        """The range of flow blocks: half to twice the study's, both directions at least."""
        found = [size.blocks for size in self.study.sizes]
        return max(min(found) // 2, min(*found, 2)), 2 * max(found)

    @property
    def layers(self) -> tuple[int, int]:
        """The range of layers per block: half to twice the study's."""
        found = [size.layers for size in self.study.sizes]
        return max(min(found) // 2, 1), 2 * max(found)

    def widths(self, blocks: int, layers: int) -> tuple[int, int]:
        """Return the range of channels within the study's sizes and its numbers of images."""
        sizes = [size.channels for size in self.study.sizes]
        step = self.study.base.model.head_dim
        widths = range(min(sizes), max(sizes) + 1, step)
        shapes = (Size(channels=width, blocks=blocks, layers=layers) for width in widths)
        dear = {size.channels: cost.training_flops(self._model(size)) for size in shapes}
        images = {width: self.budget / flops for width, flops in dear.items()}
        good = [
            width
            for width in widths
            if self.study.min_images <= images[width] <= self.study.max_images
        ]
        if not good:  # all too dear, or all too cheap: the nearest
            good = [widths[0] if images[widths[0]] < self.study.min_images else widths[-1]]
        return good[0], good[-1]

    def _model(self, size: Size) -> ModelConfig:
        return sized_model(self.study.base.model, size)

    @property
    def noises(self) -> Range | None:
        """The range of the Gaussian noise; None if the noise is uniform."""
        noise = self.study.base.noise
        if noise.type == "uniform":
            return None
        return noise.std / NOISE_REACH, min(noise.std * NOISE_REACH, 5.0)

    @property
    def base(self) -> dict[str, Any]:
        """The study's own choice at its middle size: where it ran the grid, that run."""
        sizes = sorted(self.study.sizes, key=lambda size: cost.params(self._model(size)))
        size = sizes[(len(sizes) - 1) // 2]
        low, high = self.widths(size.blocks, size.layers)
        channels = min(max(size.channels, low), high)
        shape = {"blocks": size.blocks, "layers": size.layers, "channels": channels}
        noise = {"noise_std": self.study.base.noise.std} if self.noises else {}
        return shape | {"lr_ratio": 1.0} | noise

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """The base: it is not known what is better."""
        return (self.base,)

    def planned(self, params: Params) -> Planned:
        """Return the run that parameters stand for, on one device; numbers get three digits."""
        size = Size(**{name: params[name] for name in ("channels", "blocks", "layers")})
        alone = replace(self.study, sizes=(size,), replicated=None, held_out=None)
        run = planned(alone, Point(size=size.label, budget=self.budget), self.study.base.seed)
        own = learning_rate(self.study, size.channels)
        rate = float(f"{own * params['lr_ratio']:.3g}")
        noise, label = run.config.noise, f"{size.label}-lr{rate:g}"
        if self.noises:
            noise = replace(noise, std=float(f"{params['noise_std']:.3g}"))
            label += f"-n{noise.std:g}"
        config = replace(
            run.config,
            noise=noise,
            optim=replace(run.config.optim, lr=rate),
            execution=replace(run.config.execution, workers=1),
        )
        return replace(run, config=config, label=label, role="search")

    def name(self, params: Params) -> str:
        """Return what two suggestions of the same run share."""
        return self.planned(params).run_id

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the objectives of a run, [] if it failed, None if it has not ended."""
        result = read_result(out / "runs" / self.name(params))
        if result is None:
            return None
        row = next(iter(result["evaluations"]), {}) | result["run"]
        found = [row.get(name) for name in self.objectives]
        return [] if None in found or row["status"] != "done" else found


@dataclass(frozen=True)
class SamplingSpace:
    """Guidance (weight, rule, blocks), attention temperature and denoising of one finished run."""

    run_id: str
    label: str
    config: RunConfig
    objectives: ClassVar = ("kid",)

    @classmethod
    def of(cls, run_id: str, label: str, config: str) -> "SamplingSpace":
        """Return the space of these columns of `runs.parquet`."""
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
        for name, choices in self.choices.items():
            trial.suggest_categorical(name, choices)
        return {"run_id": self.run_id}

    @property
    def own(self) -> SamplerConfig:
        """The run's own setting."""
        return effective(self.config.sampler, self.config)

    @property
    def ranges(self) -> dict[str, Range]:
        """Lowest and highest of each number; the run's own are inside.

        With classes, guidance leads away from the mean class; without, it leads away from the
        same network at another attention temperature (Zhai et al. 2025, section 3.5).
        """
        conditional = self.config.model.classes > 0
        ranges = {
            "guidance": (0.0, 3.0) if conditional else (0.0, 1.0),
            "temperature": (0.5, 1.5) if conditional else (0.2, 2.0),
        }
        if self.config.noise.type == "gaussian":
            ranges["denoise"] = (0.75, 1.25)
        own = {name: getattr(self.own, name) for name in ranges}
        return {
            name: (min(low, own[name]), max(high, own[name]))
            for name, (low, high) in ranges.items()
        }

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The rules, and the blocks that guidance may be confined to; the run's own is one."""
        few = min(TOP, self.config.model.blocks - 1)  # all blocks are not few
        blocks = ("all", *(f"top:{count}" for count in range(1, few + 1)), self.own.guided_blocks)
        return {"rule": RULES, "guided_blocks": tuple(dict.fromkeys(blocks))}

    @property
    def base(self) -> dict[str, Any]:
        """The run's own setting."""
        return {name: getattr(self.own, name) for name in (*self.ranges, *self.choices)}

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """The run's own setting, and it with guidance as others have published it."""
        guided = {"guidance": 2.0} if self.config.model.classes else USUAL
        return self.base, self.base | guided

    def sampler(self, params: Params) -> SamplerConfig:
        """Return the setting that parameters stand for; settings that do the same are equal."""
        found = {name: round(params[name], DIGITS) for name in self.ranges}
        found |= {name: params[name] for name in self.choices}
        return effective(replace(self.config.sampler, **found), self.config)

    def name(self, params: Params) -> str:
        """Return what two suggestions of the same setting share."""
        return setting_id(replace(self.config, sampler=self.sampler(params)), SEED, HALVES)

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the KID on the draws that settings are chosen by, None if not sampled yet."""
        path = out / "runs" / self.run_id / "evaluations" / f"{self.name(params)}.json"
        rows = read_json(path)
        if rows is None:
            return None
        found = [row["kid"] for row in rows if row["half"] == "chosen"]
        return [] if None in found else found
