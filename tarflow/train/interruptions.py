"""What interrupted a run and what that cost, kept in its folder, so that no driver forgets it."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tarflow.record import read_json, write_json
from tarflow.train.checkpoint import newest_metadata

FILE = "interruptions.json"
COLUMNS = {  # of `runs.parquet`, by kind of interruption
    "preemption": "preemptions",
    "lost process": "lost_processes",
    "lost machine": "lost_machines",
}


@dataclass(frozen=True)
class Interruption:
    """The early end of an attempt at a run; the next attempt resumes from what it has saved."""

    kind: str  # a key of `COLUMNS`
    resumed: int | None  # training images when the attempt began; None if it saved nothing
    images: int  # training images in the newest checkpoint when the attempt ended
    worker_seconds: float  # start-up and training that no checkpoint holds, over all workers


def record_interruption(
    folder: Path, seconds: float, workers: int, machine_lost: bool
) -> Interruption:
    """Write down that an attempt at a run has ended early, and return the record.

    An attempt that saved its state because it had to leave was preempted, however it ended.

    Args:
        folder: Folder of the run.
        seconds: Time from the start of the attempt's processes to their end.
        workers: Number of processes of the attempt.
        machine_lost: Whether its machine is known to be gone.
    """
    before = read_interruptions(folder)
    saved = newest_metadata(folder / "state")
    images = saved.get("images", 0)
    if images > (before[-1].images if before else 0):  # otherwise an earlier attempt saved it
        kept = saved["seconds"] - saved.get("resumed_seconds", 0.0)
        preempted, resumed = saved.get("preempted", False), saved.get("resumed", 0)
    else:
        kept, preempted, resumed = 0.0, False, None
    kind = "preemption" if preempted else "lost machine" if machine_lost else "lost process"
    item = Interruption(kind, resumed, images, max(seconds - kept, 0.0) * workers)
    write_json(folder / FILE, [asdict(each) for each in (*before, item)])
    return item


def read_interruptions(folder: Path) -> list[Interruption]:
    """Return the interruptions of a run so far, oldest first."""
    return [Interruption(**item) for item in read_json(folder / FILE) or []]


def interruption_columns(folder: Path, devices: float) -> dict[str, Any]:
    """Return the columns of a run's row on its interruptions.

    Args:
        folder: Folder of the run.
        devices: Number of devices that a worker occupies.
    """
    items = read_interruptions(folder)
    kinds = Counter(item.kind for item in items)
    counts = {column: kinds[kind] for kind, column in COLUMNS.items()}
    return {**counts, "lost_seconds": sum(item.worker_seconds for item in items) * devices}
