"""What an interruption has cost, from the clock and the newest checkpoint."""

import pytest

from tarflow.record import write_json
from tarflow.train.interruptions import (
    interruption_columns,
    read_interruptions,
    record_interruption,
)


@pytest.fixture
def saved(tmp_path):
    """Write the metadata of a checkpoint."""

    def write(images, seconds, resumed, resumed_seconds, preempted):
        metadata = {"images": images, "seconds": seconds, "resumed": resumed}
        metadata |= {"resumed_seconds": resumed_seconds, "preempted": preempted}
        write_json(tmp_path / "state" / f"{images:015d}.json", metadata)

    return write


def test_what_no_checkpoint_holds_is_lost_once(tmp_path, saved):
    saved(640, 30.0, resumed=0, resumed_seconds=0.0, preempted=True)
    first = record_interruption(tmp_path, 34.0, workers=2, machine_lost=True)
    assert (first.kind, first.images, first.worker_seconds) == ("preemption", 640, 8.0)

    # it dies before it saves anything: the checkpoint of the first attempt says nothing of it
    second = record_interruption(tmp_path, 5.0, workers=2, machine_lost=True)
    assert (second.kind, second.resumed, second.worker_seconds) == ("lost machine", None, 10.0)

    saved(960, 45.0, resumed=640, resumed_seconds=30.0, preempted=False)
    third = record_interruption(tmp_path, 21.0, workers=1, machine_lost=False)
    assert (third.kind, third.resumed, third.worker_seconds) == ("lost process", 640, 6.0)

    assert read_interruptions(tmp_path) == [first, second, third]
    assert interruption_columns(tmp_path, devices=2.0) == {
        "preemptions": 1,
        "lost_machines": 1,
        "lost_processes": 1,
        "lost_seconds": 48.0,
    }


def test_time_that_a_trunk_took_is_not_kept_by_the_branch(tmp_path, saved):
    saved(640, 30.0, resumed=600, resumed_seconds=28.0, preempted=True)
    assert record_interruption(tmp_path, 5.0, 1, machine_lost=False).worker_seconds == 3.0
