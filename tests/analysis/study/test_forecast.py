"""Forecasts of several studies, and what is said of them."""

from dataclasses import replace

from written_forecasts import WRITTEN

from analysis.study.forecast import calibration, claim
from tarflow.forecasts import write_forecast

INSIDE, OUTSIDE = replace(WRITTEN, achieved=2.05), replace(WRITTEN, achieved=2.5)
ON_TEST = replace(WRITTEN, test_bpd=9.0)  # of an earlier release
BOUNDLESS = replace(INSIDE, low=None, high=None)


def test_the_claim_counts_what_was_judged():
    assert claim([]) == claim([BOUNDLESS]) == claim([ON_TEST]) == ""
    assert claim([WRITTEN]) == "One forecast is written down for a run that has not ended."
    assert claim([WRITTEN] * 2).startswith("2 forecasts are written down for runs that have not")
    assert claim([OUTSIDE, WRITTEN]).endswith("came out outside its 90% interval.")
    assert claim([INSIDE, OUTSIDE, INSIDE, WRITTEN, ON_TEST]) == (
        "Of 3 forecasts written before training, 2 came out inside their 90% interval."
    )


def test_calibration_is_that_of_all_studies_in_the_folder(tmp_path):
    assert calibration(tmp_path / "one") is None
    for name, forecast in (("one", INSIDE), ("two", OUTSIDE), ("three", WRITTEN)):
        write_forecast(tmp_path / name, forecast)
    (tmp_path / "link").symlink_to("one")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "forecasts.parquet").write_text("no table")
    found = calibration(tmp_path / "one")
    assert str(found) == (
        f"1 of 2 forecasts in {tmp_path.name}/ inside their 90% interval, 11% off on average"
    )
