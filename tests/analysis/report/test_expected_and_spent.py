import pandas as pd
import pytest

from analysis.report import spending

OUTCOME = {
    "wall_seconds": 330.0,
    "device_seconds": 480.0,
    "devices": 2,
    "device": "core",
    "occupied": 600.0,
    "price": 3.0,
    "expected": {"wall_seconds": 300.0, "device_seconds": 540.0},
    "stopped": "what is left would pass --max-cost 1",
    "missing": ["c8-b2-l1-4e09-s0"],
}


def test_expected_and_spent_stand_side_by_side():
    (table,) = spending.expected_and_spent(OUTCOME)
    assert table.rows == (
        ("from start to end", "5 min", "5.5 min"),
        ("device time of runs", "9 core-minutes", "10 core-minutes"),
        ("price of that, $3 per core-hour", "$0.45", "$0.50"),
    )
    revised = {"wall_seconds": 360.0, "device_seconds": 660.0}
    (table,) = spending.expected_and_spent(OUTCOME | {"price": 0.0, "revised": revised})
    assert table.columns == ("the last command", "expected", "after the first runs", "spent")
    assert table.rows[0] == ("from start to end", "5 min", "6 min", "5.5 min")
    assert len(table.rows) == 2


@pytest.mark.parametrize("old", ["missing", "expected"])
def test_outcomes_of_older_versions_are_read(old):
    outcome = {key: value for key, value in OUTCOME.items() if key != old}
    assert not (spending.missing_runs if old == "missing" else spending.expected_and_spent)(
        outcome
    )


def test_missing_runs_are_named_with_the_reason():
    assert spending.missing_runs(OUTCOME) == (
        " Missing: c8-b2-l1-4e09-s0 (what is left would pass --max-cost 1); the same command "
        "resumes."
    )


def test_interruptions_and_their_cost_are_one_sentence():
    table = pd.DataFrame(
        {
            "device_seconds": [6000.0, 3959.0, None],
            "preemptions": [2, 1, None],
            "lost_machines": [0, 1, None],
            "lost_processes": [0, 0, None],
            "lost_seconds": [30.0, 11.0, None],
        }
    )
    assert spending.interruptions(table, OUTCOME) == (
        " 3 preemptions and 1 lost machine cost 41 core-seconds (0.41%, $0.03)."
    )
    assert (
        spending.interruptions(table[:1], {}) == " 2 preemptions cost 30 device-seconds (0.50%)."
    )
    assert spending.interruptions(table[2:], OUTCOME) == ""
    assert spending.interruptions(table[["device_seconds"]], OUTCOME) == ""
