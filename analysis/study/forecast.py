"""Forecasts of a study: made by its laws before a run is trained, and compared afterwards."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.laws.intervals import LEVEL
from analysis.study.findings import Findings
from analysis.study.rows import difference
from tarflow import cost, forecasts
from tarflow.config import RunConfig
from tarflow.config_files import to_dict
from tarflow.errors import UserError
from tarflow.forecasts import Forecast
from tarflow.human import bits, interval, percent
from tarflow.identity import run_id
from tarflow.record import environment

READ = ["run_id", "params", "tokens", "flops", "bpd"]  # columns of the rows that name a table


def forecast(findings: Findings, config: RunConfig, origin: str) -> Forecast:
    """Predict the bits per dimension of a run by the law L(N, D), or L(C) without one.

    Args:
        findings: What the study shows.
        config: Config of the run, resolved.
        origin: Why the run is trained: final, best or next.
    """
    flops = cost.run_flops(config)
    law = findings.surface or findings.frontier
    reason = "too few runs for a law" if law is None else difference(findings.runs, config)
    predicted, low, high = None, None, None
    words = f"No law of this study predicts this run: {reason}."
    if law is not None and not reason:
        at = {
            "flops": flops,
            "params": float(cost.params(config.model)),
            "tokens": float(config.images * config.model.tokens),
        }
        inputs = {name: at[name] for name in law.form.inputs}
        predicted = float(law.predict(**inputs))
        ends = tuple(float(end) for end in law.band(LEVEL, **inputs))
        low, high = (end if math.isfinite(end) else None for end in ends)
        words = f"Expected {bits(predicted)} {findings.bits_unit} on validation images"
        if low is not None and high is not None:
            words += f" ({percent(LEVEL)} interval {interval((low, high), bits)})"
        words += f", at {flops / findings.budgets[-1].flops:.3g} times the largest budget of the "
        beyond = math.log(flops / float(findings.runs["flops"].max()))
        words = f"{words}study. {law.discrepancy.caution(beyond)}".rstrip()
    return Forecast(
        time=forecasts.now(),
        run_id=run_id(config),
        origin=origin,
        table_hash=table_hash(findings.runs),
        git=environment()["git"],
        config=json.dumps(to_dict(config)),
        flops=flops,
        law=law.formula if law is not None and not reason else "",
        predicted=predicted,
        low=low,
        high=high,
        level=LEVEL,
        split="validation",
        in_words=words,
    )


def foretell(findings: Findings, config: RunConfig, study: Path, origin: str) -> Forecast:
    """Write down the forecast of a run before it is trained; return the one that stands.

    A run that has a forecast already keeps it. Arguments are those of `forecast`, and the folder
    of the study.
    """
    return forecasts.write_forecast(study, forecast(findings, config, origin))


def table_hash(rows: pd.DataFrame) -> str:
    """Return a hash of the rows that a law reads: of their ids, sizes, data and results."""
    text = rows[READ].sort_values("run_id").to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def read_ledger(study: Path) -> tuple[Forecast, ...]:
    """Return the forecasts of a study in the order in which they were written.

    Raises:
        UserError: If the table is damaged or has another version.
    """
    return tuple(forecasts.read_forecasts(study))


def claim(ledger: Sequence[Forecast]) -> str:
    """Say in a sentence how forecasts came out; empty if none was written.

    Only those with an interval count.
    """
    made = [item for item in ledger if item.low is not None and item.high is not None]
    ended = [item for item in made if item.inside is not None]
    if not ended:
        waiting = sum(not item.done for item in made)
        if waiting == 1:
            return "One forecast is written down for a run that has not ended."
        many = f"{waiting} forecasts are written down for runs that have not ended."
        return many if waiting else ""
    inside = sum(bool(item.inside) for item in ended)
    level = percent(ended[-1].level)
    if len(ended) == 1:
        place = "inside" if inside else "outside"
        return f"The one forecast whose run has ended came out {place} its {level} interval."
    return (
        f"Of {len(ended)} forecasts written before training, {inside} came out inside their "
        f"{level} interval."
    )


@dataclass(frozen=True)
class Calibration:
    """How the forecasts of all studies in a folder came out."""

    folder: str  # name
    ended: int  # forecasts with an interval whose run has ended
    inside: int
    error: float  # mean of |predicted / achieved - 1|
    level: float  # probability of the intervals

    def __str__(self) -> str:
        return (
            f"{self.inside} of {self.ended} forecasts in {self.folder}/ inside their "
            f"{percent(self.level)} interval, {percent(self.error)} off on average"
        )


def calibration(study: Path) -> Calibration | None:
    """Count how the forecasts of a study and of those beside it came out; None if none has ended.

    Tables that cannot be read do not count.
    """
    folder = study.resolve().parent
    ended = []
    tables = {path.resolve() for path in folder.glob("*/forecasts.parquet")}  # links count once
    for path in sorted(tables):
        try:
            ended += [item for item in read_ledger(path.parent) if item.inside is not None]
        except UserError:
            continue
    if not ended:
        return None
    return Calibration(
        folder=folder.name,
        ended=len(ended),
        inside=sum(bool(item.inside) for item in ended),
        error=float(np.mean([abs(item.error or 0.0) for item in ended])),
        level=ended[-1].level,
    )
