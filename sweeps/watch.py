"""When to stop a batch of runs, and how it went."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from sweeps.lease import Lease
from sweeps.machines import Cluster
from sweeps.progress import Progress
from tarflow.errors import UserError

FIRST_FAILURES = 4  # so many failures before any success: the machine is sick, stop


@dataclass(frozen=True)
class Outcome:
    """How a batch of runs went."""

    rows: tuple[Mapping[str, Any], ...]  # of the runs that ended here, done or failed
    left: int  # runs that were not carried out to their end
    stopped: str  # why the rest was not carried out; empty if all were
    device_seconds: float  # that training and evaluation took here
    devices: float  # of the cluster
    device: str  # core or GPU: what runs hold

    def __add__(self, other: "Outcome") -> "Outcome":
        """Return how two batches on the same cluster went."""
        return Outcome(
            rows=self.rows + other.rows,
            left=self.left + other.left,
            stopped=self.stopped or other.stopped,
            device_seconds=self.device_seconds + other.device_seconds,
            devices=self.devices,
            device=self.device,
        )

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows of the runs that failed."""
        return [row for row in self.rows if row["status"] == "failed"]


class Here:
    """Lives in the driver: the copy that Tune pickles for a restore is empty, and never read."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to a pickle."""
        return {}


class Watch(Here, tune.Stopper):
    """When the rest of a batch is not worth starting: a sick machine, the hour, a lost lease."""

    def __init__(self, progress: Progress, held: Lease, limit: float | None) -> None:
        """Watch a batch; `limit` is on the monotonic clock."""
        self.progress, self.held, self.limit = progress, held, limit
        self.reason = ""
        self.mistake: UserError | None = None  # that only a worker could find

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never end a single run: that would be a hole in the study."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """Return whether to stop, and remember why."""
        failed = len(self.progress.failed)
        if self.mistake:
            self.reason = str(self.mistake)
        elif self.held.lost:
            self.reason = "another driver has taken the folder over"
        elif self.limit is not None and time.monotonic() > self.limit:
            self.reason = "the hours are used up"
        elif failed == len(self.progress.rows) >= FIRST_FAILURES:
            self.reason = f"the first {failed} runs all failed"
        return bool(self.reason)

    def outcome(self, total: int, device_seconds: float, where: Cluster, on_gpus: bool) -> Outcome:
        """Return how a batch of `total` went, at its end, on GPUs or on cores.

        Raises:
            UserError: the mistake that a worker found.
        """
        if self.mistake:
            raise self.mistake
        rows = tuple(self.progress.rows.values())
        devices, device = (where.gpus, "GPU") if on_gpus else (where.cpus, "core")
        return Outcome(rows, total - len(rows), self.reason, device_seconds, devices, device)
