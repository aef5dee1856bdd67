"""A forecast as a study writes it down."""

from dataclasses import replace

from tarflow.forecasts import Forecast

WRITTEN = Forecast(
    time="2026-01-02T03:04:05+00:00",
    run_id="a",
    origin="best",
    table_hash="5eed",
    git="0123",
    config="",
    flops=1e9,
    law="E",
    predicted=2.0,
    low=1.9,
    high=2.1,
    level=0.9,
    split="validation",
    in_words="Expected 2.",
)


def written(predicted: float, low: float, high: float, **changes) -> Forecast:
    """Return a forecast of these bits per dimension."""
    words = f"Expected {predicted:.3f} bits per dimension."
    return replace(WRITTEN, predicted=predicted, low=low, high=high, in_words=words, **changes)
