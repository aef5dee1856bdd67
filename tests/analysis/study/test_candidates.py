"""The candidates of a search in order, with those that were stopped early, and what decided it."""

import json

import numpy as np
import pandas as pd

from analysis.report.figures.search import importances, slices
from analysis.report.sections.quality import _stopped_early
from analysis.study.candidates import candidates, importance

WHOLE = 1000  # images of a candidate


def table(*rows):
    """Return runs of a search from (id, status, share of the budget, BPD) and their columns."""
    plain = {"role": "search", "error": None, "layer_split": None, "layers": 1, "blocks": 4}
    plain |= {"channels": 16, "lr": 0.01, "noise_std": 0.25}
    shown = {"name": "run", "bpd_se": 0.01, "params": 1e4, "patch": 4, "batch": 16, "seed": 0}
    config = json.dumps({"images": WHOLE})
    return pd.DataFrame(
        {"config": config, **plain, **shown, "run_id": name, "status": status, "bpd": bpd}
        | {"images": share * WHOLE, "flops": share * 1e9, **more}
        for name, status, share, bpd, more in rows
    )


def test_candidates_stand_in_the_order_of_how_far_they_came():
    runs = table(
        ("quarter", "pruned", 0.25, 1.0, {}),  # lower than any: not comparable
        ("diverged", "failed", 1.0, np.nan, {"error": "Diverged: not finite"}),
        ("crashed", "failed", 1.0, np.nan, {"error": "OSError: no space"}),
        ("good", "done", 1.0, 2.0, {}),
        ("half", "pruned", 0.5, 2.5, {}),
        ("bad", "done", 1.0, 3.0, {}),
        ("grid", "done", 1.0, 1.0, {"role": "grid"}),
        ("expensive", "done", 1.0, 1.5, {"flops": 4e9}),  # of another search
    )
    tried = candidates(runs)
    assert tried["run_id"].tolist() == ["good", "bad", "half", "quarter", "diverged"]
    assert tried["share"].tolist() == [1.0, 1.0, 0.5, 0.25, 0.0]
    assert candidates(runs[runs["role"] == "grid"]).empty


def planted(count, decides):
    """Return a search of which one column decides, a third stopped early."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        more = {"lr": float(10 ** rng.uniform(-3, -1)), "channels": int(rng.integers(1, 8)) * 8}
        more |= {"noise_std": float(rng.uniform(0.1, 0.5))}
        bpd = 2 + (np.log10(more["lr"]) + 2) ** 2 if decides else float(rng.uniform(2, 3))
        stopped = bpd > 2.4
        share, status = (0.25, "pruned") if stopped else (1.0, "done")
        more |= {"error": "stopped at 1/4 of its budget"} if stopped else {}
        rows.append((str(number), status, share, bpd + 2 * stopped, more))
    return candidates(table(*rows))


def test_the_hyperparameter_that_decides_is_important():
    found = importance(planted(40, decides=True), seed=0).set_index("name")
    assert found.index[0] == "learning rate"
    assert set(found.index) == {"learning rate", "channels", "noise"}  # what does not vary is out
    assert found.loc["learning rate", "explained"] > 0.8
    assert found.loc["noise", "explained"] < 2 * found.loc["noise", "chance"]


def test_chance_is_told_apart():
    found = importance(planted(40, decides=False), seed=0)
    assert (found["explained"] < 1.5 * found["chance"]).all()
    assert found["chance"].between(0.05, 0.25).all()
    assert importance(planted(7, decides=True), seed=0).empty


def test_slices_set_apart_what_was_stopped():
    tried = planted(40, decides=True)
    shown = slices(tried)
    whole = [trace for trace in shown.data if trace.name == "trained to the end"]
    above = [trace for trace in shown.data if trace.name == "stopped early, or diverged"]
    assert len(whole) == len(above) == 3
    done = tried[tried["status"] == "done"]
    assert sorted(whole[0].meta) == sorted(done["run_id"])
    assert all(height > done["bpd"].max() for trace in above for height in trace.y)
    assert above[0].text[0].startswith("stopped at 1/4 of its budget, ")
    assert slices(tried[tried["status"] == "pruned"]) is None
    assert importances(importance(tried, 0)).data[0].y[-1] == "learning rate"
    assert importances(importance(tried[:3], 0)) is None


def test_the_page_says_how_many_were_stopped_and_when():
    runs = table(
        ("a", "done", 1.0, 2.0, {}),
        ("b", "pruned", 0.25, 2.5, {}),
        ("c", "pruned", 0.26, 2.5, {}),  # whole batches
        ("d", "pruned", 0.5, 2.5, {}),
    )
    words = _stopped_early(candidates(runs))
    assert words.startswith(
        " Of 4 candidates, 3 were stopped early, 2 at 1/4 and 1 at 1/2 of their"
    )
    assert _stopped_early(candidates(runs[:1])) == ""
