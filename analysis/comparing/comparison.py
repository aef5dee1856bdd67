"""Compare studies of the same images: at equal compute, at equal quality, and run by run.

Lower bits are better. The first study is the one others are compared with.
Legend: `R` draws of a law.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.comparing.differences import image_differences, mean_interval
from analysis.laws.allocation import Sizes, best_run
from analysis.laws.forms import Array
from analysis.laws.frontier import Frontier, frontier_of
from analysis.laws.intervals import NORMAL_90, TAIL, Interval
from analysis.study.findings import Findings, find
from analysis.study.folder import read_settings, read_study
from analysis.study.names import are_latent, bits_unit_of, run_names
from analysis.study.rows import as_text, commonest, group_budgets, read_config
from tarflow.errors import UserError
from tarflow.human import number

SAME = ["data_hash", "split", "label", "seed"]  # what the two runs of a pair share
UNPAIRED = ("search", "final")  # roles whose labels name other configs in another study
ASIDE = ("name", "note", "tags", "pinned")  # of study.yaml: names and marks


@dataclass(frozen=True, eq=False)
class Compared:
    """One study of a comparison."""

    name: str
    path: Path
    settings: Mapping[str, Any]  # study.yaml; empty if there is none
    findings: Findings
    frontier: Frontier | None  # lowest bits of every budget; None with too few runs

    @property
    def runs(self) -> pd.DataFrame:
        """The finished runs that laws read or an ablation compares; without those, all."""
        findings = self.findings
        return findings.compared if len(findings.compared) else findings.finished

    @property
    def bits_unit(self) -> str:
        """Unit of the likelihoods of the study."""
        return self.findings.bits_unit

    @property
    def best(self) -> float:
        """Bits of the best config, averaged over its seeds; nan without a law's runs."""
        return float(self.findings.frontier_points["bpd"].min())


@dataclass(frozen=True, eq=False)
class Pairs:
    """The runs that two studies share: same data, split, label and seed."""

    rows: pd.DataFrame  # run_id and other_id, name, seed, flops, params, bpd_first, bpd_second,
    # difference (second minus first) and its standard error over images; nan without them
    mean: float  # difference over all pairs; nan without pairs
    interval: Interval  # its 90% interval over images and over trainings


@dataclass(frozen=True)
class EqualCompute:
    """Two laws at the largest budget that both studies reached."""

    flops: float
    difference: float  # bits of the second minus those of the first
    interval: Interval  # 90%


@dataclass(frozen=True)
class Reach:
    """The compute with which one study reaches what another reaches with its largest budget."""

    reaching: str
    reached: str
    bits: float  # of the reached study, by its law at its largest budget
    bits_unit: str
    flops: float  # that budget
    ratio: float  # that budget over the compute of the reaching study: 2 is half the compute
    interval: Interval  # 90%
    limit: float  # the ratio at its cheapest budget, if that is a bound; else nan
    caution: str  # "" or that it lies beyond what roll-outs have tested


@dataclass(frozen=True, eq=False)
class Contrast:
    """A study beside the first one."""

    first: Compared
    second: Compared
    pairs: Pairs
    equal: EqualCompute | None  # None without laws, or if the budgets do not overlap
    reaches: tuple[Reach, ...]  # the second to the best of the first, then the other way round

    @property
    def savings(self) -> tuple[Reach, ...]:
        """The reach with less compute, which asks no law beyond its runs; none without laws."""
        return tuple(sorted(self.reaches, key=lambda item: -item.ratio))[:1]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Studies of the same images."""

    studies: tuple[Compared, ...]
    contrasts: tuple[Contrast, ...]  # of every other study with the first one
    settings: pd.DataFrame  # settings that differ: one row each, one column per study


def compare(paths: Sequence[Path], seed: int = 0) -> Comparison:
    """Read studies, fit their laws and compare them with the first one.

    Args:
        paths: Folders of at least two studies.
        seed: Seed of all draws.

    Raises:
        UserError: If a folder holds no study or no finished run, if two are the same, if they
            were not trained on the same images, or if their likelihoods are of different
            quantities.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same study is named twice: name different studies to compare")
    names = _names(paths)
    tables = [read_study(path) for path in paths]
    finished = [_finished(name, runs) for name, (runs, _) in zip(names, tables, strict=True)]
    _check_same_quantity(names, finished)
    _check_same_images(names, finished)
    studies = []
    for name, path, (runs, evaluations) in zip(names, paths, tables, strict=True):
        findings = find(runs, evaluations, seed=seed)
        frontier = frontier_of_findings(findings)
        studies.append(Compared(name, path, read_settings(path), findings, frontier))
    contrasts = tuple(_contrast(studies[0], other, seed) for other in studies[1:])
    return Comparison(tuple(studies), contrasts, differing_settings(studies))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of folders, with that of the folder above if two are equal."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) == len(names):
        return names
    return ["/".join(path.resolve().parts[-2:]) for path in paths]


def frontier_of_findings(findings: Findings) -> Frontier | None:
    """Return the frontier of the surface law; of the law of compute if there is none."""
    runs, surface = findings.runs, findings.surface
    if surface is not None and surface.known:
        try:
            sizes = Sizes(read_config(best_run(runs)).model)
        except UserError:  # a table from elsewhere
            pass
        else:
            return frontier_of(
                surface, _ends(runs["flops"]), _ends(runs["params"]), sizes.flops_per_token
            )
    law = findings.frontier
    return frontier_of(law, _ends(runs["flops"])) if law else None


def _ends(values: pd.Series) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _finished(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    finished = runs[runs["status"] == "done"]
    if finished.empty:
        raise UserError(f"{name} has no finished run to compare")
    return finished


def _check_same_quantity(names: Sequence[str], tables: Sequence[pd.DataFrame]) -> None:
    """Refuse likelihoods of latents beside those of pixels, or at another noise."""
    units = [bits_unit_of(runs) for runs in tables]
    noises = [commonest(as_text(runs[["noise_type", "noise_std"]])) for runs in tables]
    for name, unit, noise in zip(names[1:], units[1:], noises[1:], strict=True):
        if unit != units[0]:
            raise UserError(
                f"{names[0]} is scored in {units[0]} and {name} in {unit}: likelihoods of latents "
                "and of pixels are different quantities and cannot be compared"
            )
        if are_latent(tables[0]) and noise != noises[0]:
            raise UserError(
                f"{names[0]} and {name} add different noise to latents (std {noises[0][1]}, and "
                f"{noise[1]}): their {unit} are those of the noisy latents and cannot be compared"
            )


def _check_same_images(names: Sequence[str], tables: Sequence[pd.DataFrame]) -> None:
    data = [commonest(as_text(runs[["data", "data_hash"]])) for runs in tables]
    for name, other in zip(names[1:], data[1:], strict=True):
        if other != data[0]:
            raise UserError(
                f"{names[0]} and {name} were not trained on the same images (data "
                f"{' '.join(data[0])}, and {' '.join(other)}): their {bits_unit_of(tables[0])} "
                "cannot be compared"
            )


def _contrast(first: Compared, second: Compared, seed: int) -> Contrast:
    rng = np.random.default_rng(seed)
    equal = _equal_compute(first.frontier, second.frontier, rng)
    reaches = (reach(second, first, rng), reach(first, second, rng))
    known = tuple(item for item in reaches if item is not None)
    return Contrast(first, second, paired(first, second), equal, known)


def _equal_compute(
    a: Frontier | None, b: Frontier | None, rng: np.random.Generator
) -> EqualCompute | None:
    if a is None or b is None:
        return None
    flops = min(a.largest, b.largest)
    if flops < max(a.flops[0], b.flops[0]):
        return None
    difference = b.at(flops)[:, 0] - _for_draws_of(b, a.at(flops)[:, 0], rng)
    return EqualCompute(flops, float(difference[0]), _interval(difference, a, b))


def reach(reaching: Compared, reached: Compared, rng: np.random.Generator) -> Reach | None:
    """Compare the compute with which one study's law reaches the best bits of another's law.

    Returns:
        The ratio to the largest budget of the reached study; None without two laws.
    """
    a, b = reached.frontier, reaching.frontier
    if a is None or b is None:
        return None
    best = a.at(a.largest)[:, 0]
    needed = b.compute_for(_for_draws_of(b, best, rng))
    with np.errstate(divide="ignore"):
        ratio = a.largest / needed
    limit, caution = float("nan"), ""
    if needed[0] == 0:
        limit = float(a.largest / b.flops[0])
    elif np.isfinite(needed[0]):
        caution = b.discrepancy.caution(max(0.0, float(np.log(needed[0] / b.largest))))
    return Reach(
        reaching=reaching.name,
        reached=reached.name,
        bits=float(best[0]),
        bits_unit=reached.bits_unit,
        flops=a.largest,
        ratio=float(ratio[0]),
        interval=_interval(ratio, a, b),
        limit=limit,
        caution=caution,
    )


def _for_draws_of(b: Frontier, values: Array, rng: np.random.Generator) -> Array:
    """Return values (1 + R,) of one law as (1 + S,): one for each draw of another, at random.

    Draws of two studies come from the same seed, so that equal places hold like errors.
    """
    drawn = values[1:] if len(values) > 1 else values
    matched: Array = np.concatenate([values[:1], rng.choice(drawn, len(b.values) - 1)])
    return matched


def _interval(values: Array, a: Frontier, b: Frontier) -> Interval:
    if not (a.known and b.known):
        return -np.inf, np.inf
    # Draws may be infinite, between which nothing can be interpolated.
    low, high = np.quantile(values[1:], [TAIL, 1 - TAIL], method="nearest")
    return float(low), float(high)


def paired(first: Compared, second: Compared) -> Pairs:
    """Return the finished runs that two studies share.

    Both runs of a pair are scored on the same images with the same noise draws, so the error of
    their difference is far smaller than the errors of both.
    """
    one, two = (_pairable(study.findings.finished) for study in (first, second))
    both = one.merge(two[[*SAME, "run_id", "bpd"]], on=SAME, suffixes=("", "_other"))
    both = both.rename(
        columns={"bpd": "bpd_first", "bpd_other": "bpd_second", "run_id_other": "other_id"}
    )
    if both.empty:
        return Pairs(both.assign(name=[], difference=[], error=[]), np.nan, (-np.inf, np.inf))
    both = group_budgets(both)[0].sort_values(["budget", "params", "seed"], ignore_index=True)
    images = image_differences(first.path, second.path, both)
    counted = images.notna().sum()
    errors = (images.std(ddof=1) / np.sqrt(counted)).where(counted > 1)
    both = both.assign(
        name=run_names(both),
        difference=both["bpd_second"] - both["bpd_first"],
        error=errors.reindex(both.index).to_numpy(float),
    )
    return Pairs(both, float(both["difference"].mean()), mean_interval(both, images))


def _pairable(finished: pd.DataFrame) -> pd.DataFrame:
    return finished[~finished["role"].isin(UNPAIRED)].drop_duplicates(SAME)


def interval_of_pair(pair: Mapping[Any, Any]) -> Interval:
    """Return the 90% interval of the difference of two runs over images; nan without images."""
    half = NORMAL_90 * float(pair["error"])
    return float(pair["difference"]) - half, float(pair["difference"]) + half


def differing_settings(studies: Sequence[Compared]) -> pd.DataFrame:
    """Return the settings of study.yaml that differ, one row each, in the order of the files."""
    flat = [_flat({k: v for k, v in s.settings.items() if k not in ASIDE}) for s in studies]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [[name, *(settings.get(name, "") for settings in flat)] for name in names]
    table = [row for row in rows if len(set(row[1:])) > 1]
    return pd.DataFrame(table, columns=["setting", *(study.name for study in studies)])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings by their dotted names, as text.

    >>> _flat({"base": {"noise": {"std": 0.25}}, "budgets": [4e10, 1.26e11]})
    {'base.noise.std': '0.25', 'budgets': '4e10, 1.26e11'}
    """
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        if set(value) == {"channels", "blocks", "layers"}:
            return f"{value['channels']} channels {value['blocks']}x{value['layers']}"
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return number(value) if isinstance(value, float) else str(value)
