"""Previews of a run while it trains: what they leave, cost and do not disturb."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from training_runs import Stop, config, losses, stop_at

from tarflow.config import ExecutionConfig
from tarflow.errors import ConfigError
from tarflow.execution import resolve_execution
from tarflow.identity import run_id
from tarflow.previews import SAMPLES, Previews
from tarflow.record import read_table
from tarflow.sample.grid import LONGER_SIDE
from tarflow.train.loop import train


def previewed(folder, every, report=lambda _: None, **changes):
    plain = config(**changes)
    evaluation = replace(plain.evaluation, samples=64)
    execution = replace(plain.execution, preview_images=every)
    run = replace(plain, evaluation=evaluation, execution=execution)
    how = resolve_execution(run)
    return train(run, folder, report, None, how, Previews(run, folder, how))


def previews(folder):
    return read_table(folder / "previews.parquet").to_pylist()


def test_previews_show_a_run_learn_and_disturb_nothing(tmp_path):
    plain = train(config(), tmp_path / "plain")
    assert losses(previewed(tmp_path / "seen", 100)) == losses(plain)
    rows = previews(tmp_path / "seen")
    assert [row["images"] for row in rows] == [112, 208, 304, 320]  # ends of steps of 16
    assert rows[-1]["loss"] < rows[0]["loss"]
    first, *_, last = (np.asarray(Image.open(io.BytesIO(row["samples"]))) for row in rows)
    scale = -(-LONGER_SIDE // (SAMPLES * 30 + 2))
    assert first.shape == last.shape == (scale * (28 + 4), scale * (SAMPLES * 30 + 2))
    assert (first != last).any()
    assert run_id(config()) == run_id(config(execution=ExecutionConfig(preview_images=100)))
    with pytest.raises(ConfigError, match="preview_images"):
        ExecutionConfig(preview_images=-1)


def test_a_resumed_run_keeps_earlier_previews_and_repeats_none(tmp_path):
    previewed(tmp_path / "whole", 80)
    with pytest.raises(Stop):
        previewed(tmp_path / "cut", 80, stop_at(224))
    assert [row["images"] for row in previews(tmp_path / "cut")] == [80, 160]
    previewed(tmp_path / "cut", 80)
    cut, whole = previews(tmp_path / "cut"), previews(tmp_path / "whole")
    for row in (*cut, *whole):
        del row["seconds"]
    assert cut == whole


def test_by_default_previews_take_a_fiftieth_of_training_or_are_left_out(tmp_path):
    state = previewed(tmp_path, 0)
    assert not (tmp_path / "previews.parquet").exists()
    run = replace(config(images=16_000), evaluation=replace(config().evaluation, samples=64))
    patient = Previews(run, tmp_path, resolve_execution(run))
    state.seconds = 100.0
    for state.images in range(16, run.images + 1, 16):
        patient(state)
    assert [row["images"] for row in previews(tmp_path)] == [2000, 4000, 8000, 16000]
    assert patient.spent < 2.0
