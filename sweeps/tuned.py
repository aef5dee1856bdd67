"""What the inner search of a checkpoint has found, and whether that is worth a change.

A setting is picked on one half of the draws. On the other half, which did not pick it, it has to
beat the run's own setting by more than chance; else the run's own is kept.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.human import number
from analysis.laws.intervals import NORMAL_90
from analysis.laws.validation import levels
from analysis.rows import choose
from analysis.settings import SETTING, best_setting, setting_in_words
from sweeps.space import SEED, SamplingSpace
from tarflow import record
from tarflow.config import SamplerConfig, to_dict
from tarflow.identity import HALVES


@dataclass(frozen=True)
class Verdict:
    """The sampler setting to go on with, and why in plain sentences."""

    sampler: SamplerConfig
    words: str


def best_checkpoint(out: Path) -> SamplingSpace | None:
    """Return what can be searched of the run of lowest BPD at a study's largest budget.

    None if there is no finished run of a grid, or it was not sampled.
    """
    results = [record.read_result(folder) for folder in sorted((out / "runs").glob("*"))]
    runs = [result["run"] for result in results if result]
    rows, _ = choose(pd.DataFrame(runs, columns=record.RUNS.names))
    if rows.empty:
        return None
    largest = rows.iloc[levels(rows["flops"].to_numpy(float))[-1].tolist()]
    best = largest.sort_values(["bpd", "run_id"]).iloc[0]
    space = SamplingSpace.of(best["run_id"], best["label"], best["config"])
    return space if space.searchable else None


def verdict(space: SamplingSpace, out: Path) -> Verdict | None:
    """Judge the settings that were sampled of a run; None before there are two.

    The interval is that of the difference of two KIDs taken as independent. They share noise and
    held-out images, which makes them differ less by chance: the interval is on the safe side.
    """
    files = (out / "runs" / space.run_id / "evaluations").glob("*.json")
    rows = [row for path in sorted(files) for row in record.read_json(path) or []]
    table = pd.DataFrame(rows, columns=record.EVALUATIONS.names)
    table = table[(table["seed"] == SEED) & table["half"].isin(HALVES) & table["kid"].notna()]
    own = to_dict(space.own)
    same = [name for name in SETTING if name in own]
    fresh = table[table["half"] == HALVES[1]]
    default = fresh[(fresh[same] == pd.Series(own)[same]).all(axis=1)]
    if len(fresh) < 2 or default.empty:
        return None
    before, best = default.iloc[0], best_setting(table.assign(bpd=0.0)).iloc[0]
    gain = float(before["kid"] - best["kid"])
    chance = NORMAL_90 * float(np.hypot(before["kid_se"], best["kid_se"]))
    words = [
        f"Sampler: of {len(fresh)} settings tried on {space.label} ({space.run_id}), the one of "
        "lowest KID on one half of the draws,",
        f"scored on the other half: {setting_in_words(best)}: KID "
        f"{number(best['kid'])} ± {number(best['kid_se'])};",
        f"the run's own, {setting_in_words(before)}: KID {number(before['kid'])} ± "
        f"{number(before['kid_se'])}, on the same noise.",
    ]
    if (best[same] == before[same]).all():
        return Verdict(space.config.sampler, "\n".join([*words[:1], "is the run's own: kept."]))
    said = f"Lower by {number(gain)}, the 90% interval of a difference is ± {number(chance)}: "
    if gain > chance:
        return Verdict(sampler_of(best), "\n".join([*words, said + "it is used."]))
    return Verdict(space.config.sampler, "\n".join([*words, said + "the run's own is kept."]))


def sampler_of(row: pd.Series) -> SamplerConfig:
    """Return the sampler setting of a row."""
    return SamplerConfig(
        guidance=float(row["guidance"]),
        rule=row["rule"],
        part=row["part"],
        guided_blocks=row["guided_blocks"],
        annealed=bool(row["annealed"]),
        temperature=float(row["temperature"]),
        denoise=float(row["denoise"]),
    )
