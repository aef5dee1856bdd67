"""What a search may change, as Optuna define-by-run spaces.

The outer space trains candidates at one budget, so that all cost the same; the inner one only
samples from a finished run. A space also knows which run or sampler setting its parameters stand
for, and reads its scores from disk: the files are the truth, the journal is a copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sweeps.design.outcomes import WORST, is_pruned
from sweeps.design.study import (
    PlannedRun,
    Point,
    Size,
    Study,
    learning_rate,
    plan_run,
    short,
    sized_model,
)
from tarflow import cost, data
from tarflow.errors import ConfigError
from tarflow.identity import UNKNOWN
from tarflow.model_config import ModelConfig
from tarflow.record import read_result

SEED = 1  # of the noise in the inner search: not that of the runs, which picked the checkpoints
NOISE_REACH = 4.0  # the noise is searched from the base's level divided by this to times this
RATES = 0.25, 2.0  # range of the learning rate, times the study's own at that width
DIVERGED = "Diverged:"  # beginning of the error of a run whose training diverged
STARTUP = 8  # random trials of a space before its model suggests

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

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Choices of each parameter that is a word, as they are now."""

    def __call__(self, trial: Trial) -> dict[str, Any] | None:
        """Suggest parameters; constants to add to them are returned."""

    def name(self, params: Params) -> str:
        """Return the name of what the parameters stand for: equal things have equal names."""

    def values(self, params: Params, out: Path) -> list[float] | None:
        """Return the objectives from disk, `WORST` for each if the trial diverged.

        [] if it crashed or was pruned, None if it has not ended.
        """

    def pruned(self, params: Params, out: Path) -> bool:
        """Tell whether the trial was stopped because others did better at the same share."""


@dataclass(frozen=True)
class TrainingSpace:
    """Depth, channels, noise and learning rate around a study's base, at one budget.

    A study whose sizes split their layers over the blocks in different ways is searched over these
    splits, scaled to a number of layers in all; any other over its blocks and their layers.
    """

    study: Study
    budget: float  # training FLOPs of each candidate
    objectives: ClassVar = ("bpd", "kid")

    def __post_init__(self) -> None:
        """Refuse ranges that do not fit the study.

        Raises:
            ConfigError: If one does not, naming it.
        """
        check_ranges(self.study, self.splits)

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Suggest a candidate within the study's numbers of images."""
        chosen: dict[str, Any] = {}
        for name, choices in self.words.items():
            chosen[name] = trial.suggest_categorical(name, choices)
        for name in self.depths:
            chosen[name] = trial.suggest_int(name, *self.ends(name, chosen))
        step = self.study.base.model.head_dim
        chosen["channels"] = trial.suggest_int("channels", *self.widths(chosen), step=step)
        for name in ("lr_ratio", "noise_std") if self.noises else ("lr_ratio",):
            chosen[name] = trial.suggest_float(name, *self.ends(name, chosen), log=True)
        return {}

    @property
    def title(self) -> str:
        """Name of its study in the journal, such as training-2e11."""
        return f"training-{short(self.budget)}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the layers over the blocks to choose from; none if all blocks are alike."""
        models = [self._model(size) for size in self.study.sizes]
        if self.study.search.split:
            return tuple(dict.fromkeys(self.study.search.split))
        if not any(model.layer_split for model in models):
            return ()
        return tuple(dict.fromkeys(_split(model) for model in models))

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Splits to choose from, if there are any."""
        return {"split": self.splits} if self.splits else {}

    @property
    def depths(self) -> dict[str, tuple[int, int]]:
        """Ranges of blocks and of layers per block, or of layers in all if there are splits.

        Half to twice the study's, but two blocks for both directions, and a layer for each block.
        """
        models = [self._model(size) for size in self.study.sizes]
        blocks = [model.blocks for model in models]
        if self.splits:
            layers = [model.total_layers for model in models]
            parts = [len(split.split("-")) for split in self.splits]
            return {"total_layers": (max(min(layers) // 2, *parts, 1), 2 * max(layers))}
        layers = [model.mean_layers for model in models]
        return {
            "blocks": (max(min(blocks) // 2, min(*blocks, 2)), 2 * max(blocks)),
            "layers": (max(min(layers) // 2, 1), 2 * max(layers)),
        }

    @property
    def ranges(self) -> dict[str, Range]:
        """Range of each number, without what the study file gives."""
        channels = [size.channels for size in self.study.sizes]
        noises = {"noise_std": self.noises} if self.noises else {}
        return {
            **self.depths,
            "channels": (min(channels), max(channels)),
            "lr_ratio": RATES,
            **noises,
        }

    def ends(self, name: str, chosen: Params) -> Any:
        """Return the range of a number, given the choices made before it."""
        return self.study.search.ends(name, chosen) or self.ranges[name]

    def shape(self, params: Params) -> tuple[int, int | tuple[int, ...]]:
        """Return the blocks that parameters stand for, and the layers of each."""
        if not self.splits:
            return params["blocks"], params["layers"]
        layers = scaled(params["split"], params["total_layers"])
        return len(layers), layers

    def widths(self, chosen: Params) -> tuple[int, int]:
        """Return the range of channels of a shape within the study's numbers of images."""
        blocks, layers = self.shape(chosen)
        low, high = self.ends("channels", chosen)
        widths = range(low, high + 1, self.study.base.model.head_dim)
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
        """Range of the Gaussian noise around the base's; None if it must stay as it is."""
        noise = self.study.base.noise
        if why_noise_stays(self.study):
            return None
        return noise.std / NOISE_REACH, min(noise.std * NOISE_REACH, 5.0)

    @property
    def base(self) -> dict[str, Any]:
        """The study's own choice at its middle size: at a grid budget, a run of the grid.

        Where the study file does not allow it, the nearest that it does.
        """
        sizes = sorted(self.study.sizes, key=lambda size: cost.params(self._model(size)))
        size = sizes[(len(sizes) - 1) // 2]
        model = self._model(size)
        own = {
            "total_layers": model.total_layers,
            "blocks": size.blocks,
            "layers": size.mean_layers,
            "channels": size.channels,
            "lr_ratio": 1.0,
            "noise_std": self.study.base.noise.std,
        }
        chosen: dict[str, Any] = {}
        if self.splits:
            split = _split(model)
            chosen["split"] = split if split in self.splits else self.splits[0]
        for name in self.ranges:
            low, high = self.widths(chosen) if name == "channels" else self.ends(name, chosen)
            chosen[name] = min(max(own[name], low), high)
        return chosen

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

        [] if it crashed or was pruned, None if it has not ended.
        """
        result = read_result(out / "runs" / self.name(params))
        if result is None:
            return None
        row = next(iter(result["evaluations"]), {}) | result["run"]
        if row["status"] != "done" and not (row.get("error") or "").startswith(DIVERGED):
            return []
        scores = [row.get(name) for name in self.objectives]
        return [WORST] * len(scores) if None in scores else scores

    def pruned(self, params: Params, out: Path) -> bool:
        """Tell whether a run was stopped because others did better at the same share."""
        return is_pruned(out / "runs" / self.name(params))


def why_noise_stays(study: Study) -> str:
    """Return why a search of a study cannot vary the noise; empty if it can."""
    if study.base.noise.type == "uniform":
        return "the noise of the study is uniform and has no level"
    images = study.base.data
    here = images.hash not in ("", UNKNOWN)  # not in a dry run without the data
    if here and data.latent_space(images):
        return "bits of latents at different noise cannot be compared"
    return ""


def check_ranges(study: Study, splits: Sequence[str]) -> None:
    """Refuse ranges of a study file that do not fit the study.

    Args:
        study: The study.
        splits: Splits to choose from; none if all blocks are alike.

    Raises:
        ConfigError: If one does not fit, naming it.
    """
    head_dim = study.base.model.head_dim
    if study.search.denoise and study.base.noise.type == "uniform":
        raise ConfigError(
            "search.denoise: the noise of the study is uniform, so none is taken away"
        )
    for place, ranges in study.search.parts():
        wrong = {
            "blocks": splits and "layers are split over the blocks: give total_layers and split",
            "layers": splits and "layers are split over the blocks: give total_layers and split",
            "total_layers": not splits and "the blocks are alike: give blocks and layers",
            "noise_std": why_noise_stays(study),
        }
        for name in ranges.given:
            if wrong.get(name):
                raise ConfigError(f"{place}.{name}: {wrong[name]}")
        if any(width % head_dim for width in ranges.channels or ()):
            raise ConfigError(
                f"{place}.channels is {ranges.channels}: both must be multiples of "
                f"base.model.head_dim, which is {head_dim}"
            )
        most = max((len(split.split("-")) for split in splits), default=0)
        if ranges.total_layers and ranges.total_layers[0] < most:
            raise ConfigError(
                f"{place}.total_layers is {ranges.total_layers}: a split has {most} blocks, "
                "and each needs a layer"
            )


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
