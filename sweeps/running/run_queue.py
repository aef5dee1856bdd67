"""The order in which the tasks of a batch start, one at a time as Ray Tune asks for them."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from sweeps.design.branches import StartPoint, checkpoint_saved
from sweeps.running.batch import StopConditions
from sweeps.running.placement import NotPickled
from sweeps.watching.progress import Task
from tarflow import human

LOOK_SECONDS = 0.5  # between looks for a checkpoint that a run waits for, perhaps far away
LATE_SECONDS = 600.0  # for a checkpoint to be written, perhaps far away, after its step


class RunQueue(NotPickled, Searcher):
    """Hands out tasks in order, those that a limit allows.

    A branch waits until its trunk has saved its checkpoint or has ended.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        stop: StopConditions,
        starts: Mapping[str, StartPoint] | None = None,
    ) -> None:
        """Queue the tasks of a batch.

        Args:
            tasks: Runs or sampler settings, in the order in which they should start.
            stop: Stop conditions of the batch.
            starts: Start of each run by run id; says which runs have to wait.
        """
        super().__init__()
        self.left = list(enumerate(tasks))
        self.stop, self.starts = stop, starts or {}
        self.started: dict[str, str] = {}  # names of tasks that have not ended, by trial
        self.lock = threading.RLock()  # held while a task is chosen
        self.longest: Callable[[], float] = lambda: math.inf  # seconds of a task that may start
        self.looked: dict[str, float] = {}  # when the checkpoint of each run was last looked for
        self.due: dict[str, float] = {}  # since when the checkpoint of each run should be there

    def suggest(self, trial_id: str) -> Any:
        """Return the first task that may start; None if all wait, FINISHED if none ever may."""
        with self.lock:
            if chosen := self.next():
                self.left.remove(chosen)
                self.started[trial_id] = chosen[1].run_id
                return {"index": chosen[0]}
        return None if self.started else Searcher.FINISHED

    def next(self) -> tuple[int, Task] | None:
        """Return the first task that may start, with its number; None if all wait."""
        longest = self.longest() if self.left else 0.0
        progress, allows = self.stop.progress, self.stop.allows
        for index, task in self.left if longest else ():
            short = longest == math.inf or progress.cautious_seconds(task.run_id) <= longest
            if short and self.ready(task) and allows(task.run_id):
                return index, task
        return None

    def wait(self, busy: Callable[[], bool]) -> bool:
        """Wait for a task that may start; False if none ever may, or there is a reason to stop.

        Args:
            busy: Tells whether something else runs, whose end may allow more.
        """
        while not self.stop.stop_all():
            if self.next():
                return True
            if not self.left or not busy():
                return False
            time.sleep(LOOK_SECONDS)
        return False

    def ready(self, run: Task) -> bool:
        """Tell whether a run need not wait any longer for its trunk."""
        start, now = self.starts.get(run.run_id, StartPoint()), time.monotonic()
        progress = self.stop.progress
        if not start.after or start.after in progress.rows:
            return True
        reached = progress.latest.get(start.after, {}).get("images", 0)
        looked = self.looked.get(run.run_id, -LOOK_SECONDS)
        if reached < start.images or now - looked < LOOK_SECONDS:
            return False
        self.looked[run.run_id] = now
        if checkpoint_saved(run.config, start.images, self.stop.context.out):
            return True
        late = now - self.due.setdefault(run.run_id, now) > LATE_SECONDS
        if late:
            progress.note(
                f"{run.label} starts without the checkpoint of its trunk, which did not come in "
                f"{human.seconds(LATE_SECONDS)}"
            )
        return late

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note the end, whatever the result."""
        del result, error
        self.started.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study's folder has it all."""
