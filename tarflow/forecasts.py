"""Forecasts: what a law predicted for a run before it was trained, and what came out.

`forecasts.parquet` of a study has one row per forecast. What was predicted is written once; the
columns of the outcome are filled in when the run ends.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from tarflow.human import bits, interval, missing, percent
from tarflow.record import METADATA, read_json, read_table, write_table

FORECASTS = pa.schema(
    [
        pa.field("time", pa.string(), nullable=False),  # ISO 8601, UTC
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),  # final, best or next
        ("table_hash", pa.string()),  # of the rows that the law was fitted to
        ("git", pa.string()),
        ("config", pa.string()),  # of the run, as JSON
        ("flops", pa.float64()),
        ("law", pa.string()),  # formula; empty if no law applies to this run
        ("predicted", pa.float64()),  # bits per dimension
        ("low", pa.float64()),  # ends of the interval; null if it is unbounded
        ("high", pa.float64()),
        ("level", pa.float64()),  # probability of the interval
        ("split", pa.string()),  # images that the law predicts the bits of
        ("in_words", pa.string()),
        ("achieved", pa.float64()),  # bits per dimension on the same split
        ("achieved_se", pa.float64()),
        ("test_bpd", pa.float64()),  # bits per dimension on test images
        ("test_se", pa.float64()),
        ("shift", pa.float64()),  # test bits minus those on `split`, of the best run of the grid
        ("ended", pa.string()),  # when the outcome was written, ISO 8601, UTC
    ],
    metadata=METADATA,
)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A row of `forecasts.parquet`; the fields with a default are its outcome."""

    time: str
    run_id: str
    origin: str
    table_hash: str
    git: str
    config: str
    flops: float
    law: str
    predicted: float | None
    low: float | None
    high: float | None
    level: float
    split: str
    in_words: str
    achieved: float | None = None
    achieved_se: float | None = None
    test_bpd: float | None = None
    test_se: float | None = None
    shift: float | None = None
    ended: str | None = None

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return self.achieved is not None or self.test_bpd is not None

    @property
    def inside(self) -> bool | None:
        """Whether the run came out inside the interval; None if that cannot be said (yet)."""
        if self.achieved is None or self.low is None or self.high is None:
            return None
        return self.low <= self.achieved <= self.high

    @property
    def error(self) -> float | None:
        """Relative error of the prediction, positive if it is too high; None before the end."""
        if self.achieved is None or self.predicted is None:
            return None
        return self.predicted / self.achieved - 1

    @property
    def test_predicted(self) -> float | None:
        """Bits per dimension expected on test images; None if the shift is not known."""
        if self.predicted is None or self.shift is None:
            return None
        return self.predicted + self.shift

    @property
    def verdict(self) -> str:
        """How the run compares with the forecast, in sentences; empty before it ends."""
        if not self.done:
            return ""
        return " ".join(filter(None, [self._on_its_split(), self._on_test()]))

    def _on_its_split(self) -> str:
        if self.predicted is None:
            if self.achieved is None:
                return "No law predicted this run."
            achieved = f"it achieved {bits(self.achieved)} on {self.split} images"
            return f"No law predicted this run; {achieved}."
        words = f"Predicted {bits(self.predicted)}{self._interval()}"
        if self.achieved is None or self.error is None:
            return f"{words} on {self.split} images, on which the run was not scored."
        off = f"{percent(abs(self.error))} too {'high' if self.error > 0 else 'low'}"
        words += f", achieved {bits(self.achieved)} on the same {self.split} images"
        if self.inside is None:
            return f"{words}: {off}; too few runs for an interval."
        place = "inside" if self.inside else "outside"
        return f"{words}: {place} the {percent(self.level)} interval, {off}."

    def _interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f" ({interval((self.low, self.high), bits)})"

    def _on_test(self) -> str:
        if self.test_bpd is None:
            return ""
        words = f"On test images {bits(self.test_bpd)}"
        if self.shift is None:
            return f"{words}."
        higher = self.shift > 0
        place = f"{bits(abs(self.shift))} {'higher' if higher else 'lower'} there"
        words += f"; the grid's best run is {place}"
        if self.achieved is not None and (self.test_bpd > self.achieved) == higher:
            words += " too"
        return f"{words}."


def now() -> str:
    """Return the time as the tables write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_forecasts(study: Path) -> list[Forecast]:
    """Return the forecasts of a study in the order in which they were written.

    Earlier releases wrote a JSON file for each final run, which they scored on test images only.

    Raises:
        UserError: If the table is damaged or has another version.
    """
    path = study / "forecasts.parquet"
    names = [field.name for field in fields(Forecast)]
    rows = read_table(path).to_pylist() if path.is_file() else []
    forecasts = [Forecast(**{name: row.get(name) for name in names}) for row in rows]
    known = {item.run_id for item in forecasts}
    return [item for item in _earlier(study) if item.run_id not in known] + forecasts


def _earlier(study: Path) -> list[Forecast]:
    files = [read_json(path) for path in sorted((study / "final").glob("*.json"))]
    return [
        Forecast(
            time="",
            run_id=plain["run_id"],
            origin="final",
            table_hash="",
            git="",
            config="",
            flops=plain["flops"],
            law=plain["law"],
            predicted=plain["predicted"],
            low=plain["low"],
            high=plain["high"],
            level=0.9,
            split="validation",
            in_words=plain["in_words"],
            test_bpd=plain["achieved"],
            test_se=plain["achieved_se"],
        )
        for plain in files
        if plain
    ]


def forecast_of(study: Path, run_id: str) -> Forecast | None:
    """Return the forecast of a run, or None."""
    return next((item for item in read_forecasts(study) if item.run_id == run_id), None)


def write_forecast(study: Path, forecast: Forecast) -> Forecast:
    """Write down a forecast, unless the run has one already; return the one that stands."""
    forecasts = read_forecasts(study)
    standing = next((item for item in forecasts if item.run_id == forecast.run_id), None)
    if standing is None:
        _write(study, [*forecasts, forecast])
    return standing or forecast


def write_outcome(
    study: Path,
    run: Mapping[str, Any],
    test: Mapping[str, Any] | None = None,
    shift: float | None = None,
) -> Forecast | None:
    """Put what a run achieved beside its forecast; what was written before stays.

    Args:
        study: Folder of the study.
        run: Row of `runs.parquet` of the finished run.
        test: Its `bpd` and `bpd_se` on test images, if they are known.
        shift: Test bits minus those on validation images, of the best run of the grid.

    Returns:
        The forecast with its outcome; None if the run has none.
    """
    forecasts = read_forecasts(study)
    forecast = next((item for item in forecasts if item.run_id == run["run_id"]), None)
    if forecast is None:
        return None
    scores: dict[str, Any] = {"shift": shift}
    if run["split"] == forecast.split:
        scores |= {"achieved": run["bpd"], "achieved_se": run["bpd_se"]}
    else:  # scored on test images, as earlier releases did
        test = run
    if test:
        scores |= {"test_bpd": test["bpd"], "test_se": test["bpd_se"]}
    new = {name: value for name, value in scores.items() if missing(getattr(forecast, name))}
    settled = replace(forecast, **new, ended=forecast.ended or now())
    if settled != forecast:
        _write(study, [settled if item is forecast else item for item in forecasts])
    return settled


def _write(study: Path, forecasts: list[Forecast]) -> None:
    write_table(study / "forecasts.parquet", map(asdict, forecasts), FORECASTS)
