"""What a law predicts for one run before it is trained, and how that compares afterwards."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from analysis.findings import Findings
from analysis.laws.allocation import best_run
from analysis.laws.intervals import LEVEL, NORMAL_90
from analysis.rows import read_config
from tarflow import cost
from tarflow.config import RunConfig, from_dict, to_dict
from tarflow.human import bits, interval, percent
from tarflow.record import read_json


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A prediction written down before the run; the last three fields are filled in after it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    run_id: str
    flops: float
    law: str  # formula; empty if no law applies to this run
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
        findings: What the study shows.
        config: Config of the run.
        run_id: Id of the run.
    """
    flops = cost.run_flops(config)
    law = findings.surface or findings.frontier
    reason = "too few runs for a law" if law is None else _difference(findings, config)
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
    beyond = math.log(flops / float(findings.runs["flops"].max()))
    words = " ".join(filter(None, [words, law.discrepancy.caution(beyond)]))
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
    files = [read_json(path) for path in sorted((study / "final").glob("*.json"))]
    return [from_dict(Forecast, plain) for plain in files if plain]


def achieved(prediction: Forecast, row: Mapping[str, Any]) -> Forecast:
    """Compare a forecast with the row of the run.

    The law was fitted to scores on other images than those of the test split. An error that this
    difference alone may cause is not counted against the law.
    """
    value, error = float(row["bpd"]), float(row["bpd_se"] or 0.0)
    words = f"Achieved {bits(value)} ± {bits(error)} bits per dimension on {row['split']} images"
    if prediction.predicted is None:
        words += "; no law had predicted it."
    else:
        off = prediction.predicted / value - 1
        words += f", predicted {bits(prediction.predicted)}: {percent(abs(off))} too "
        words += "high" if off > 0 else "low"
        words += _place(prediction, value, error)
    return replace(prediction, achieved=value, achieved_se=error, verdict=words)


def _place(prediction: Forecast, value: float, error: float) -> str:
    """Say whether a value lies in the interval, or in the wider one that other images allow."""
    if prediction.low is None or prediction.high is None or prediction.predicted is None:
        return "; too few runs for an interval."
    span = f"the {LEVEL:.0%} interval {interval((prediction.low, prediction.high), bits)}"
    if prediction.low <= value <= prediction.high:
        return f"; inside {span}."
    images = NORMAL_90 * math.sqrt(2) * error  # both means carry this error
    low = prediction.predicted - math.hypot(prediction.predicted - prediction.low, images)
    high = prediction.predicted + math.hypot(prediction.high - prediction.predicted, images)
    if low <= value <= high:
        return f"; outside {span}, but by no more than other images may move it."
    return f"; outside {span}: the law does not hold here."


def _difference(findings: Findings, config: RunConfig) -> str:
    """Say how a run differs from those the laws were fitted to, apart from size and data."""
    runs = findings.runs
    known = set(zip(runs["blocks"], runs["layers"], strict=True))
    if (config.model.blocks, config.model.layers) not in known:
        return f"the grid has no {config.model.blocks} blocks of {config.model.layers} layers"
    grid = _shared_by_grid(read_config(best_run(runs)))
    for name, value in _shared_by_grid(config).items():
        if grid[name] != value:
            return f"{name} is {grid[name]} in the grid, {value} in this run"
    return ""


def _shared_by_grid(config: RunConfig) -> dict[str, Any]:
    """Return the settings that all runs of a grid share, by name such as `noise.std`."""
    plain = to_dict(config)
    for name in ("channels", "blocks", "layers"):
        del plain["model"][name]
    del plain["optim"]["lr"]
    shared = {name: plain[name] for name in ("batch", "precision")}
    for part in ("model", "data", "noise", "optim"):
        shared |= {f"{part}.{name}": value for name, value in plain[part].items()}
    return shared
