"""What a law says of one run before it is trained, and how that compares afterwards."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from analysis.findings import Findings
from analysis.human import bits, interval, percent
from analysis.laws.allocation import best_run
from analysis.laws.intervals import LEVEL
from analysis.rows import read_config
from tarflow import cost
from tarflow.config import RunConfig, from_dict, to_dict
from tarflow.record import read_json

_NORMAL = 1.645  # standard deviations to either end of a 90% interval


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A prediction, written down before the run; the rest is filled in after it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    run_id: str
    flops: float
    law: str  # formula; empty if no law speaks of this run
    predicted: float | None  # bits per dimension
    low: float | None  # ends of the 90% interval; None if it is unbounded
    high: float | None
    in_words: str  # a sentence for people
    achieved: float | None = None  # bits per dimension
    achieved_se: float | None = None  # standard error over images
    verdict: str = ""  # a sentence for people


def forecast(findings: Findings, config: RunConfig, run_id: str) -> Forecast:
    """Predict the bits per dimension of a run by the law L(N, D), or L(C) without one.

    Args:
        findings: of the study.
        config: of the run.
        run_id: of the run.
    """
    flops = cost.run_flops(config)
    law = findings.surface or findings.frontier
    reason = "too few runs for a law" if law is None else _stranger(findings, config)
    if law is None or reason:
        words = f"No law of this study predicts this run: {reason}."
        return Forecast(
            run_id=run_id, flops=flops, law="", predicted=None, low=None, high=None, in_words=words
        )
    at = {
        "flops": flops,
        "params": float(cost.params(config.model)),
        "tokens": float(config.images * config.model.tokens),
    }
    inputs = {name: at[name] for name in law.form.inputs}
    predicted = float(law.predict(**inputs))
    ends = tuple(float(end) for end in law.band(LEVEL, **inputs))
    low, high = (end if math.isfinite(end) else None for end in ends)
    words = f"Predicted by {law.formula}: {bits(predicted)} bits per dimension"
    if low is not None and high is not None:
        words += f", {LEVEL:.0%} interval {interval((low, high), bits)}"
    words += f", {flops / findings.budgets[-1].flops:.3g} times the largest budget of the study."
    return Forecast(
        run_id=run_id,
        flops=flops,
        law=law.formula,
        predicted=predicted,
        low=low,
        high=high,
        in_words=words,
    )


def read_forecasts(study: Path) -> list[Forecast]:
    """Return the forecasts of a study, by run id."""
    found = [read_json(path) for path in sorted((study / "final").glob("*.json"))]
    return [from_dict(Forecast, plain) for plain in found if plain]


def achieved(said: Forecast, row: Mapping[str, Any]) -> Forecast:
    """Compare a forecast with the row of the run.

    The law was fitted on other images than those of the test split; what that alone may move a
    mean by is told apart from the law's own error.
    """
    value, error = float(row["bpd"]), float(row["bpd_se"] or 0.0)
    words = f"Achieved {bits(value)} ± {bits(error)} bits per dimension on {row['split']} images"
    if said.predicted is None:
        words += "; no law had predicted it."
    else:
        off = said.predicted / value - 1
        words += f", predicted {bits(said.predicted)}: {percent(abs(off))} too "
        words += "high" if off > 0 else "low"
        words += _place(said, value, error)
    return replace(said, achieved=value, achieved_se=error, verdict=words)


def _place(said: Forecast, value: float, error: float) -> str:
    """Say where a value lies by an interval, and by one that other images may widen."""
    if said.low is None or said.high is None or said.predicted is None:
        return "; too few runs for an interval."
    where = f"the {LEVEL:.0%} interval {interval((said.low, said.high), bits)}"
    if said.low <= value <= said.high:
        return f"; inside {where}."
    images = _NORMAL * math.sqrt(2) * error  # both means have it
    low = said.predicted - math.hypot(said.predicted - said.low, images)
    high = said.predicted + math.hypot(said.high - said.predicted, images)
    if low <= value <= high:
        return f"; outside {where}, but by no more than other images may move it."
    return f"; outside {where}: the law does not hold here."


def _stranger(findings: Findings, config: RunConfig) -> str:
    """Say in what a run differs from those the laws were fitted to, but for size and data."""
    runs = findings.runs
    known = set(zip(runs["blocks"], runs["layers"], strict=True))
    if (config.model.blocks, config.model.layers) not in known:
        return f"the grid has no {config.model.blocks} blocks of {config.model.layers} layers"
    there, here = (_family(each) for each in (read_config(best_run(runs)), config))
    for part, fields in here.items():
        for name, value in fields.items():
            if there[part][name] != value:
                return (
                    f"{part}.{name}".removeprefix("run.")
                    + f" is {there[part][name]} in the grid, {value} here"
                )
    return ""


def _family(config: RunConfig) -> dict[str, dict[str, Any]]:
    plain = to_dict(config)
    for name in ("channels", "blocks", "layers"):
        del plain["model"][name]
    del plain["optim"]["lr"]
    alone = {"run": {name: plain[name] for name in ("batch", "precision")}}
    return alone | {part: plain[part] for part in ("model", "data", "noise", "optim")}
