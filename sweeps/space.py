"""What a search may change, as Optuna define-by-run spaces.

The outer space trains candidates at one budget, so that all cost the same; the inner one only
samples from a finished run. A space also knows which run or sampler setting its parameters stand
for, and reads its scores from disk: the files are the truth, the journal is a copy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sweeps.sampling import SamplingTask, effective
from sweeps.study import (
    PlannedRun,
    Point,
    Size,
    Study,
    learning_rate,
    plan_run,
    short,
    sized_model,
)
from tarflow import cost
from tarflow.config import RunConfig, SamplerConfig
from tarflow.config_files import from_dict
from tarflow.identity import HALVES
from tarflow.model_config import ModelConfig
from tarflow.record import read_json, read_result

SEED = 1  # of the noise in the inner search: not that of the runs, which picked the checkpoints
NOISE_REACH = 4.0  # the noise is searched from the base's level divided by this to times this
RATES = 0.25, 2.0  # range of the learning rate, times the study's own at that width
RULES = "log-scale", "sigma-linear", "gaussian-score"  # of guidance
FEWEST_SAMPLES = 8  # samples that can be split into halves and compared
TOP = 3  # most blocks that guidance is confined to
USUAL = {"guidance": 0.2, "temperature": 0.3}  # without classes (Zhai et al. 2025, table 5)
DECIMALS = 2  # of weights and temperatures
DIVERGED = "Diverged:"  # beginning of the error of a run whose training diverged
WORST = 1e6  # score of what diverged: the sampler learns nothing from trials without scores

Params = Mapping[str, Any]
Range = tuple[float, float]


class Trial(Protocol):
    """The part of Optuna's trial that a space uses."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Suggest a whole number."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a number."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Suggest one of several."""


class Space(Protocol):
    """What a search may change."""

    @property
    def title(self) -> str:
        """Name of its study in the journal."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the scores to minimise."""

    @property
    def base(self) -> dict[str, Any]:
        """Parameters that a search has to beat."""

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """First suggestions: the base, and what is likely to beat it."""

    def __call__(self, trial: Trial) -> dict[str, Any] | None:
        """Suggest parameters; constants to add to them are returned."""

    def name(self, params: Params) -> str:
        """Return the name of what the parameters stand for: equal things have equal names."""

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the objectives from disk, `WORST` for each if the trial diverged.

        [] if it crashed, None if it has not ended.
        """


@dataclass(frozen=True)
class TrainingSpace:
    """Depth, channels, noise and learning rate around a study's base, at one budget.

    A study whose sizes split their layers over the blocks in different ways is searched over these
    splits, scaled to a number of layers in all; any other over its blocks and their layers.
    """

    study: Study
    budget: float  # training FLOPs of each candidate
    objectives: ClassVar = ("bpd", "kid")

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Suggest a candidate within the study's numbers of images."""
        shape: dict[str, Any] = {}
        if self.splits:
            shape["split"] = trial.suggest_categorical("split", self.splits)
        for name, ends in self.depths.items():
            shape[name] = trial.suggest_int(name, *ends)
        low, high = self.widths(*self.shape(shape))
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
    def splits(self) -> tuple[str, ...]:
        """Splits of the layers over the blocks in the study; none if all its blocks are alike."""
        models = [self._model(size) for size in self.study.sizes]
        if not any(model.layer_split for model in models):
            return ()
        return tuple(dict.fromkeys(_split(model) for model in models))

    @property
    def depths(self) -> dict[str, tuple[int, int]]:
        """Ranges of blocks and of layers per block, or of layers in all if the splits are given.

        Half to twice the study's, but two blocks for both directions, and a layer for each block.
        """
        models = [self._model(size) for size in self.study.sizes]
        blocks = [model.blocks for model in models]
        if self.splits:
            layers = [model.total_layers for model in models]
            return {"total_layers": (max(min(layers) // 2, *blocks), 2 * max(layers))}
        layers = [model.mean_layers for model in models]
        return {
            "blocks": (max(min(blocks) // 2, min(*blocks, 2)), 2 * max(blocks)),
            "layers": (max(min(layers) // 2, 1), 2 * max(layers)),
        }

    def shape(self, params: Params) -> tuple[int, int | tuple[int, ...]]:
        """Return the blocks that parameters stand for, and the layers of each."""
        if not self.splits:
            return params["blocks"], params["layers"]
        layers = scaled(params["split"], params["total_layers"])
        return len(layers), layers

    def widths(self, blocks: int, layers: int | tuple[int, ...]) -> tuple[int, int]:
        """Return the range of channels within the study's sizes and numbers of images."""
        sizes = [size.channels for size in self.study.sizes]
        step = self.study.base.model.head_dim
        widths = range(min(sizes), max(sizes) + 1, step)
        shapes = (Size(channels=width, blocks=blocks, layers=layers) for width in widths)
        images = {
            size.channels: self.budget / cost.training_flops(self._model(size)) for size in shapes
        }
        fitting = [
            width
            for width in widths
            if self.study.min_images <= images[width] <= self.study.max_images
        ]
        if not fitting:  # all too expensive or all too cheap: take the nearest
            fitting = [widths[0] if images[widths[0]] < self.study.min_images else widths[-1]]
        return fitting[0], fitting[-1]

    def _model(self, size: Size) -> ModelConfig:
        return sized_model(self.study.base.model, size)

    @property
    def noises(self) -> Range | None:
        """Range of the Gaussian noise; None if the noise is uniform."""
        noise = self.study.base.noise
        if noise.type == "uniform":
            return None
        return noise.std / NOISE_REACH, min(noise.std * NOISE_REACH, 5.0)

    @property
    def base(self) -> dict[str, Any]:
        """The study's own choice at its middle size: at a grid budget, a run of the grid."""
        sizes = sorted(self.study.sizes, key=lambda size: cost.params(self._model(size)))
        size = sizes[(len(sizes) - 1) // 2]
        model = self._model(size)
        shape: dict[str, Any] = {"blocks": size.blocks, "layers": size.mean_layers}
        if self.splits:
            shape = {"split": _split(model), "total_layers": model.total_layers}
        low, high = self.widths(*self.shape(shape))
        shape["channels"] = min(max(size.channels, low), high)
        noise = {"noise_std": self.study.base.noise.std} if self.noises else {}
        return shape | {"lr_ratio": 1.0} | noise

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """Only the base: nothing better is known."""
        return (self.base,)

    def run_of(self, params: Params) -> PlannedRun:
        """Return the run that parameters stand for, on one device; numbers get three digits."""
        blocks, layers = self.shape(params)
        size = Size(channels=params["channels"], blocks=blocks, layers=layers)
        alone = replace(self.study, sizes=(size,), replicated=None, held_out=None)
        run = plan_run(alone, Point(size=size.label, budget=self.budget), self.study.base.seed)
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
        """Return the id of the run."""
        return self.run_of(params).run_id

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the objectives of a run, `WORST` for each if it diverged.

        [] if it crashed, None if it has not ended.
        """
        result = read_result(out / "runs" / self.name(params))
        if result is None:
            return None
        row = next(iter(result["evaluations"]), {}) | result["run"]
        if row["status"] != "done" and not (row.get("error") or "").startswith(DIVERGED):
            return []
        scores = [row.get(name) for name in self.objectives]
        return [WORST] * len(scores) if None in scores else scores


def _split(model: ModelConfig) -> str:
    return "-".join(map(str, model.depths))


def scaled(split: str, total: int) -> tuple[int, ...]:
    """Return a split of layers over blocks, scaled to a number of layers, at least one each.

    What rounding leaves goes where most is missing, of equals to the block nearest the noise.

    >>> scaled("1-1-1-13", 8), scaled("4-4-4-4", 6)
    ((1, 1, 1, 5), (1, 1, 2, 2))
    """
    wanted = [int(layers) for layers in split.split("-")]
    exact = [total * layers / sum(wanted) for layers in wanted]
    layers = [1] * len(exact)
    for _ in range(total - len(layers)):
        missing = [want - given for want, given in zip(exact, layers, strict=True)]
        layers[max(range(len(layers)), key=lambda block: (missing[block], block))] += 1
    return tuple(layers)


@dataclass(frozen=True)
class SamplingSpace:
    """Guidance (weight, rule, blocks), attention temperature and denoising of one finished run."""

    run_id: str
    label: str
    config: RunConfig
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
        for name, choices in self.choices.items():
            trial.suggest_categorical(name, choices)
        return {"run_id": self.run_id}

    @property
    def own(self) -> SamplerConfig:
        """The run's own setting."""
        return effective(self.config.sampler, self.config)

    @property
    def ranges(self) -> dict[str, Range]:
        """Lowest and highest value of each number; the run's own are inside.

        With classes, guidance leads away from the mean class; without, it leads away from the
        same network at another attention temperature (Zhai et al. 2025, section 3.5).
        """
        conditional = self.config.model.conditional
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
        """Rules of guidance, and blocks to confine it to, the run's own among them."""
        few = min(TOP, self.config.model.blocks - 1)  # all blocks are not few
        blocks = ("all", *(f"top:{count}" for count in range(1, few + 1)), self.own.guided_blocks)
        return {"rule": RULES, "guided_blocks": tuple(dict.fromkeys(blocks))}

    @property
    def base(self) -> dict[str, Any]:
        """The run's own setting."""
        return {name: getattr(self.own, name) for name in (*self.ranges, *self.choices)}

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """The run's own setting, and the same with a published guidance."""
        guided = {"guidance": 2.0} if self.config.model.conditional else USUAL
        return self.base, self.base | guided

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
        changes |= {name: params[name] for name in self.choices}
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
