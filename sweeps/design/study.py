"""A study as data: its sizes, budgets, variants and seeds define its runs.

Nothing here trains or writes to disk. `presets` finds the studies that have a name.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from pydantic import ConfigDict

from sweeps import hardware
from sweeps.design.ranges import SearchRanges
from tarflow import config_files as configs
from tarflow import cost, data, identity
from tarflow.config import RunConfig, SamplerConfig, round_images
from tarflow.errors import ConfigError
from tarflow.fields import COUNT, SIZE, check_fields, leaves
from tarflow.model_config import ModelConfig, changed
from tarflow.override import WHERE, name_and_value, overridden
from tarflow.train.trunk import any_length

BY_THE_GRID = {  # fields of a run that a study derives, and an example of what to set instead
    "images": "budgets='[1e9, 3e9]'",
    "seed": "seeds=3",
}
CHANGEABLE = ("model", "noise", "optim", "batch", "precision")  # by a variant


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model size of a study; the base sets the rest of the model."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    channels: int  # width of every Transformer layer
    blocks: int  # autoregressive flow blocks
    layers: int | tuple[int, ...]  # Transformer layers in each block, or a list from the images

    def __post_init__(self) -> None:
        sizes = {"channels": self.channels, "blocks": self.blocks}
        check_fields("", self, **{name: (n >= 1, SIZE) for name, n in sizes.items()})
        object.__setattr__(self, "layers", self._shape.layers)  # 2 for 2, 2, 2, 2

    @property
    def _shape(self) -> ModelConfig:
        return ModelConfig(blocks=self.blocks, layers=self.layers)

    @property
    def mean_layers(self) -> int:
        """Transformer layers in each block, on average."""
        return self._shape.mean_layers

    @cached_property
    def label(self) -> str:
        """Short name of the size, such as c64-b4-l2."""
        return f"c{self.channels}-b{self.blocks}-l{self._shape.layer_split or self.layers}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A size trained at a budget."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    size: str  # label of one of the sizes, such as c64-b4-l2
    budget: float  # training FLOPs

    def __post_init__(self) -> None:
        check_fields("", self, budget=(self.budget > 0, "it must be positive"))


@dataclass(frozen=True, kw_only=True)
class Addition:
    """A run beyond the grid, chosen by `scaling.py --next`."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    size: Size
    budget: float  # training FLOPs

    def __post_init__(self) -> None:
        check_fields("", self, budget=(self.budget > 0, "it must be positive"))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named change of a study's base, compared with the other variants."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str  # prefix of its runs' labels
    change: Mapping[str, Any] = field(default_factory=dict)  # such as {noise: {type: uniform}}


PLAIN = Variant(name="")  # stands for the unchanged base


@dataclass(frozen=True, kw_only=True)
class Study:
    """Every size at every budget (IsoFLOP), replicates at one point, and one larger run.

    The law is fitted on the smaller budgets and has to predict the larger run. An ablation has no
    law: it compares sizes, variants or sampler settings at equal training FLOPs.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str  # also the default folder, studies/<name>
    note: str = ""  # what the study is for, shown on its page; changes no run
    tags: tuple[str, ...] = ()  # words to find the runs trained from now on by; change no run
    pinned: tuple[str, ...] = ()  # ids of the runs that are quoted, marked on its page
    base: RunConfig = field(default_factory=RunConfig)  # what sizes and budgets do not set
    sizes: tuple[Size, ...]  # model sizes, each trained at every budget
    budgets: tuple[float, ...]  # training FLOPs
    variants: tuple[Variant, ...] = ()  # every point is trained with each; empty: the base alone
    settings: tuple[SamplerConfig, ...] = ()  # every finished run is sampled with each of these
    role: Literal["grid", "ablation"] = "grid"  # laws are fitted to grid runs only
    seeds: int = 1  # runs per point, with seeds 0, 1, ...
    replicated: Point | None = None  # trained with more seeds to measure run-to-run noise
    replicates: int = 3  # seeds at the replicated point
    held_out: Point | None = None  # the larger run that the law has to predict
    added: tuple[Addition, ...] = ()  # runs beyond the grid, chosen by what it left uncertain
    lr_power: float = 0.0  # lr = base.optim.lr * (channels / base.model.channels) ** lr_power
    min_images: int = 1024  # points with fewer images are left out
    max_images: int = 10**12  # points with more images are left out
    search: SearchRanges = field(default_factory=SearchRanges)  # what search.py varies
    branches: bool = True  # share the training of runs that differ only in their images (wsd)
    train_images: int = 4000  # unique training images; the data correct this when present
    validation_images: int = 500  # held-out images to score; the data correct this when present
    accelerator: str = ""  # device that the plan is priced on; empty: this machine

    def __post_init__(self) -> None:
        if not self.sizes or not self.budgets:
            raise ConfigError("a study needs at least one size and one budget")
        counts = ("seeds", "replicates", "train_images", "validation_images", "max_images")
        rules = {name: (getattr(self, name) >= 1, SIZE) for name in counts}
        check_fields("", self, min_images=(self.min_images >= 0, COUNT), **rules)
        if not all(0 < budget < math.inf for budget in self.budgets):
            raise ConfigError("budgets are training FLOPs: they must be positive and finite")
        labels = [size.label for size in self.sizes]
        for name in ("replicated", "held_out"):
            point: Point | None = getattr(self, name)
            if point and point.size not in labels:
                raise ConfigError(f"{name}.size {did_you_mean(point.size, labels)}")
        if self.accelerator and self.accelerator not in cost.ACCELERATORS:
            raise ConfigError(f"accelerator {did_you_mean(self.accelerator, cost.ACCELERATORS)}")
        if self.lr_power and self.base.optim.base_channels:
            raise ConfigError("lr_power and optim.base_channels both scale rates: set one to 0")
        if self.settings and not self.base.evaluation.samples:
            raise ConfigError("settings ask for samples: set base.evaluation.samples")
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError("every variant needs a different name")
        for size in (*self.sizes, *(addition.size for addition in self.added)):
            for variant in self.variants or (PLAIN,):
                apply_variant(
                    replace(self.base, model=sized_model(self.base.model, size)), variant
                )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run to carry out: its config, and its name for people."""

    config: RunConfig  # resolved, so that its id is known
    label: str  # such as c64-b4-l2-3e11-s0
    budget: float  # requested training FLOPs; the config rounds them to whole batches
    role: str = "grid"  # grid, ablation, search or final
    trunk: int = 0  # images of the longest run that shares its training; 0 shares nothing
    tags: tuple[str, ...] = ()  # words to find its row by
    branch_points: frozenset[int] = frozenset()  # images at which it saves a checkpoint for others

    @cached_property
    def run_id(self) -> str:
        """Hash that names the run and its folder."""
        return identity.run_id(self.config)


def grid(study: Study) -> list[PlannedRun]:
    """List the runs of a study, without repeats, in the order of their declaration.

    Points outside `min_images` to `max_images` are left out, so the list may be shorter than
    sizes x budgets x variants x seeds.
    """
    limits = study.min_images, study.max_images
    runs = [run for run in _declared(study) if limits[0] <= run.config.images <= limits[1]]
    return _with_trunks(runs) if study.branches else runs


def left_out(study: Study) -> int:
    """Count the runs outside `min_images` to `max_images`."""
    return len(_declared(study)) - len(grid(study))


def _declared(study: Study) -> list[PlannedRun]:
    variants = study.variants or (PLAIN,)
    runs = (plan_run(study, *point, variant) for point in _points(study) for variant in variants)
    return list(dict.fromkeys(runs))


def _with_trunks(runs: list[PlannedRun]) -> list[PlannedRun]:
    """Name the trunk of the runs that share their training up to the cooldown."""
    families: dict[RunConfig, list[int]] = {}
    for run in runs:
        families.setdefault(any_length(run.config), []).append(run.config.images)
    shared = {
        family: max(images)
        for family, images in families.items()
        if len(images) > 1 and family.optim.schedule == "wsd"
    }
    return [replace(run, trunk=shared.get(any_length(run.config), 0)) for run in runs]


def _points(study: Study) -> Iterator[tuple[Point, int]]:
    for budget in study.budgets:
        for size in study.sizes:
            for seed in range(study.seeds):
                yield Point(size=size.label, budget=budget), seed
    if study.replicated:
        for seed in range(study.replicates):
            yield study.replicated, seed
    if study.held_out:
        yield study.held_out, 0
    for addition in study.added:
        yield Point(size=addition.size.label, budget=addition.budget), 0


def plan_run(study: Study, point: Point, seed: int, variant: Variant = PLAIN) -> PlannedRun:
    """Return the run of a study at a size, a budget and a seed."""
    sizes = (*study.sizes, *(addition.size for addition in study.added))
    size = next(size for size in sizes if size.label == point.size)
    optim = replace(study.base.optim, lr=learning_rate(study, size.channels))
    model = sized_model(study.base.model, size)
    config = apply_variant(replace(study.base, model=model, optim=optim), variant)
    images = point.budget / cost.training_flops(config.model)
    config = replace(config, images=round_images(images, config.batch), seed=seed)
    label = f"{size.label}-{short(point.budget)}-s{seed}"
    if variant.name:
        label = f"{variant.name}-{label}"
    return PlannedRun(
        config=config, label=label, budget=point.budget, role=study.role, tags=study.tags
    )


def apply_variant(config: RunConfig, variant: Variant) -> RunConfig:
    """Return a config with a variant's changes.

    Raises:
        ConfigError: If the change makes no config, or changes what all runs must share.
    """
    if not variant.change:
        return config
    where = f"variant {variant.name}"
    for name in variant.change:
        if name not in CHANGEABLE:
            raise ConfigError(f"{where}: {did_you_mean(name, CHANGEABLE)}")
    plain = changed(configs.to_dict(config), variant.change)
    plain["images"] = plain["batch"]  # any multiple of the batch: the budget decides
    return configs.from_dict(RunConfig, plain, where)


def learning_rate(study: Study, channels: int) -> float:
    """Return the peak learning rate at a width, from a power law through the base, 3 digits."""
    ratio = channels / study.base.model.channels
    return float(f"{study.base.optim.lr * ratio**study.lr_power:.3g}")


def sized_model(base: ModelConfig, size: Size) -> ModelConfig:
    """Return the base model at another size."""
    return replace(base, channels=size.channels, blocks=size.blocks, layers=size.layers)


def override_study(study: Study, changes: Sequence[str]) -> Study:
    """Return a study with some fields changed, each written as NAME=VALUE.

    A name is a field of the study, or else of its base run by the path it has in a run's config. A
    field of a size, such as `model.channels`, is set in every size of the study, and sizes that
    become equal are one; `base.model.channels` is the width that learning rates are scaled from.

    Raises:
        UserError: If there is no such field, or if the grid sets it.
        ConfigError: If a value is wrong.
    """
    if not changes:
        return study
    in_sizes = {f"model.{each.name}": f"base.model.{each.name}" for each in fields(Size)}
    pairs = [name_and_value(change) for change in changes]
    for name, value in pairs:
        if name in BY_THE_GRID:
            raise ConfigError(
                f"--set {name}: a study derives it from its grid; write --set {BY_THE_GRID[name]}"
            )
        for size in in_sizes:
            if name == "model" and re.search(rf"\b{size.partition('.')[2]}\b", value):
                raise ConfigError(
                    f"--set model: set {size} by itself, in every size of the study, or "
                    f"{in_sizes[size]}, from which learning rates are scaled"
                )
    own = {path: path for path in leaves(Study) if "*" not in path}
    names = {path: f"base.{path}" for path in leaves(RunConfig)} | own
    others = [f"{name}={value}" for name, value in pairs if name not in in_sizes]
    sized = [f"{name}={value}" for name, value in pairs if name in in_sizes]
    plain = overridden(configs.to_dict(study), Study, others, names)
    change = overridden({"model": {}}, RunConfig, sized)["model"]
    return configs.from_dict(Study, resized(plain, change) if change else plain, WHERE)


def resized(plain: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study, as nested dictionaries, with the same change of every size.

    Points name their size by its label, and so follow it.

    Raises:
        ConfigError: If a size is wrong, before the change or after it.
    """
    labels = {}

    def change_size(size: Any) -> dict[str, Any]:
        before = configs.from_dict(Size, size, WHERE)
        after = configs.from_dict(Size, {**configs.to_dict(before), **change}, WHERE)
        labels[before.label] = after.label
        return configs.to_dict(after)

    result = {**plain}
    if isinstance(plain["sizes"], list):  # if not, the study is refused
        sizes = [change_size(size) for size in plain["sizes"]]
        result["sizes"] = [size for index, size in enumerate(sizes) if size not in sizes[:index]]
    if isinstance(plain["added"], list):
        added = [configs.to_dict(configs.from_dict(Addition, x, WHERE)) for x in plain["added"]]
        result["added"] = [{**each, "size": change_size(each["size"])} for each in added]
    for name in ("replicated", "held_out"):
        if isinstance(point := plain[name], Mapping) and "size" in point:
            result[name] = {**point, "size": labels.get(point["size"], point["size"])}
    return result


def short(number: float) -> str:
    """Format a budget briefly.

    >>> short(3e11), short(1.5e18)
    ('3e11', '1.5e18')
    """
    return f"{number:.3g}".replace("e+", "e")


def resolve_study(study: Study) -> Study:
    """Fill in what depends on the data and the machine, so that every run has an id.

    Raises:
        UserError: If there is no such data set, its images do not fit the model, or too few of
            them are held out.
    """
    base, described = data.match_data(study.base), data.describe(study.base.data)
    base.evaluation.check_held_out(getattr(described, base.evaluation.split))
    for variant in study.variants:
        data.match_data(apply_variant(base, variant))
    return replace(
        resolve_precision(replace(study, base=base)),
        train_images=described.train,
        validation_images=described.validation,
    )


def resolve_precision(study: Study) -> Study:
    """Replace `auto` by what it stands for, also in variants that need another precision."""
    base, variants = _resolved(study.base), []
    for variant in study.variants:
        precision = _resolved(apply_variant(study.base, variant)).precision
        if apply_variant(base, variant).precision != precision:
            variant = replace(variant, change={**variant.change, "precision": precision})
        variants.append(variant)
    return replace(study, base=base, variants=tuple(variants))


def _resolved(config: RunConfig) -> RunConfig:
    """Resolve the precision; on CPUs one precision has to serve all widths of a study."""
    if config.precision != "auto":
        return config
    cuda = config.execution.device != "cpu" and hardware.has_gpu()
    return replace(config, precision=config.accelerator_precision if cuda else "float32")


def did_you_mean(name: str, valid: object) -> str:
    """Say that a name is not among the valid ones, and which of them is meant, or could be.

    >>> did_you_mean("digts", ["digits", "tiny"])
    "'digts' is not known; did you mean 'digits'?"
    >>> did_you_mean("yes", ["digits", "tiny"])
    "'yes' is not known; write one such as 'tiny'"
    """
    known = list(valid)  # type: ignore[call-overload]
    if near := get_close_matches(name, known, n=1):
        return f"'{name}' is not known; did you mean '{near[0]}'?"
    far = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"'{name}' is not known" + (f"; write one such as '{far[0]}'" if far else "")
