"""More trials at a time on a cluster that grows while they run."""

import time
from collections.abc import Mapping
from typing import Any

from ray.tune.search import ConcurrencyLimiter, Searcher

from sweeps.running.cluster import current, slots
from sweeps.running.placement import NotPickled
from sweeps.watching.progress import Progress
from tarflow.errors import UserError

LOOK_SECONDS = 5.0  # between looks at the cluster


class GrowingLimiter(NotPickled, ConcurrencyLimiter):
    """Lets as many trials run at a time as the cluster holds, counting machines that join later.

    It never lets fewer run than at the start: Tune itself waits for machines that are not there.
    """

    def __init__(self, search: Searcher, needs: Mapping[str, float], progress: Progress) -> None:
        """Limit a searcher.

        Args:
            search: Suggests configs.
            needs: Resources of one trial; see `slots`.
            progress: Knows the number of trials at a time, and is told when it grows.
        """
        self.needs, self.progress = needs, progress
        self.looked = time.monotonic()
        super().__init__(search, max_concurrent=progress.slots)

    def get_state(self) -> dict[str, Any]:
        """Return nothing: what Tune saves for a restore is never read."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return what the searcher suggests; None if no more trials fit."""
        if time.monotonic() - self.looked > LOOK_SECONDS:
            self.looked = time.monotonic()
            self.grow()
        return super().suggest(trial_id)

    def grow(self) -> None:
        """Let more trials run if there is room for more than ever before."""
        cluster = current()
        try:
            count = slots(self.needs, cluster)
        except UserError:
            return  # it has shrunk to nothing
        if count > self.max_concurrent:
            self.max_concurrent = self.progress.slots = count
            self.progress.note(f"{cluster.nodes} machines by now: {count} runs at a time")
