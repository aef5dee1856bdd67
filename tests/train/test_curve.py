"""The curve of a run as a file, while it trains."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from training_runs import config

import tarflow.train.curve
from tarflow.config import ExecutionConfig
from tarflow.mirror.recorded import read_recorded
from tarflow.record import read_table
from tarflow.run import run
from tarflow.train.curve import CurveFile


def row(images):
    return {"images": images, "loss": 1.0, "seconds": images / 10}


def test_the_file_follows_the_training_at_intervals_and_on_the_first_worker_only(tmp_path):
    state = SimpleNamespace(curve=[row(1)], seconds=19.9)
    curve, path = CurveFile(tmp_path, first=True), tmp_path / "curve.parquet"
    curve(state)
    assert not path.exists()
    state.seconds = 20.0
    CurveFile(tmp_path, first=False)(state)
    assert not path.exists()
    curve(state)
    assert read_table(path).num_rows == 1
    state.curve.append(row(2))
    state.seconds = 30.0
    curve(state)
    assert read_table(path).num_rows == 1
    state.seconds = 40.0
    curve(state)
    assert read_table(path).num_rows == 2
    path.unlink()
    state.seconds = 60.0
    curve(state)  # no row has come
    assert not path.exists()


def test_a_disk_that_fails_stops_no_run(tmp_path):
    (tmp_path / "file").write_text("no folder")
    CurveFile(tmp_path / "file", first=True)(SimpleNamespace(curve=[row(1)], seconds=99.0))


def test_a_run_can_be_mirrored_while_it_trains_under_the_name_that_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(tarflow.train.curve, "WRITE_SECONDS", 0.0)
    seen = []
    chosen = config(precision="float32", execution=ExecutionConfig(device="cpu"))
    chosen = replace(chosen, execution=replace(chosen.execution, report_seconds=0.0))
    run(chosen, tmp_path, label="c16", report=lambda _: seen.append(read_recorded(tmp_path)))
    ended = read_recorded(tmp_path)
    assert len(seen) > 1
    for position, recorded in enumerate(seen):
        assert not recorded.ended
        assert (recorded.name, recorded.config) == (ended.name, ended.config)
        assert recorded.curve == ended.curve[: position + 1]
    assert ended.ended
    assert ended.name.startswith("c16 ")
    last = ended.curve[-1]
    assert last["images_per_second"] == pytest.approx(
        (last["images"] - ended.curve[-2]["images"])
        / (last["seconds"] - ended.curve[-2]["seconds"])
    )
