"""Live progress of many runs: a bar for each run in a terminal, plain lines elsewhere.

A snapshot of it is plain data, which `live.py` writes for watchers on other machines.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live

from sweeps.design.outcomes import stopped_early
from sweeps.failures import Machines, ProcessDied
from sweeps.watching.bars import as_table
from tarflow import human
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.train.interruptions import record_interruption

LINES = 20  # of the tasks that ended last, kept for watchers
QUIET_SECONDS = 60.0  # without a line, after which a log gets one
LATE = 0.1  # share of the time so far that a task past its expected time still takes
TELLING = 0.1  # share of a run from which its own pace tells when it ends
FIRST_RUNS = 3  # of a batch, whose times revise what it should take


class Task(Protocol):
    """What a batch carries out: a planned run, or one sampler setting of a finished run."""

    @property
    def run_id(self) -> str:
        """Name within the batch."""

    @property
    def label(self) -> str:
        """Name for people."""

    @property
    def config(self) -> RunConfig:
        """Config of the run."""


@dataclass(frozen=True)
class Revised:
    """What a batch should take from its start to its end, once its first runs have ended."""

    wall_seconds: float
    slot_seconds: float  # seconds times slots
    pace: float  # measured over expected seconds of these runs


def in_words(row: Mapping[str, Any], objective: str) -> str:
    """Return a score in words.

    >>> in_words({"bpd": 1.7077}, "bpd"), in_words({"kid": 0.0123}, "kid")
    ('1.708 bits per dimension', 'KID 0.0123')
    >>> in_words({"bpd": 1.7077, "bpd_kind": "latent"}, "bpd")
    '1.708 bits per latent dimension'
    """
    score = row[objective]
    return (
        f"{human.bits(score)} {human.bits_unit(row.get('bpd_kind', ''))}"
        if objective == "bpd"
        else f"KID {human.number(score)}"
    )


class Progress:
    """What of a batch is running, done and failed, as shown to the user."""

    def __init__(
        self,
        total: int,
        expected: Mapping[str, float],
        slots: int,
        console: Console,
        done: Sequence[Mapping[str, Any]] = (),
        objective: str = "bpd",
        widths: Mapping[str, float] | None = None,
    ) -> None:
        """Start with nothing running.

        Args:
            total: Number of tasks to carry out.
            expected: Expected seconds of each task by its name; empty if not known in advance.
            slots: Number of tasks at a time.
            console: Where to show the progress.
            done: Rows of tasks that were finished or pruned before.
            objective: Column of a row that is best when lowest, bpd or kid.
            widths: Slots that a task takes, by its name, where they are not one.
        """
        self.total, self.expected = total, dict(expected)
        self.slots, self.console = slots, console
        self.widths = widths or {}
        self.began = time.time()
        self.objective = objective
        self.before = len(done)  # number of rows
        self.failures, self.pruned = 0, sum(map(stopped_early, done))
        self.done = self.before - self.pruned
        self.best = min(
            (row for row in done if not stopped_early(row)), key=self._score, default=None
        )
        self.tasks: dict[str, Task] = {}  # started here
        self.running: dict[str, float] = {}  # start of each, on the monotonic clock
        self.waiting = {  # expected seconds times slots of those that have not started here
            name: seconds * self.width(name) for name, seconds in expected.items()
        }
        self.waiting_seconds = sum(self.waiting.values())
        self.latest: dict[str, Mapping[str, Any]] = {}  # last report of each
        self.seconds: dict[str, float] = {}  # of those that ended here, starts included
        self.slot_seconds = 0.0  # seconds times slots of all attempts that have ended
        self.worked: dict[str, float] = {}  # the same without the start of the process
        self.worked_seconds = self.foreseen_seconds = 0.0  # of all of them, measured and expected
        self.rows: dict[str, Mapping[str, Any]] = {}  # of those that ended here
        self.deaths: dict[str, int] = {}  # attempts of a run in a row that died without progress
        self.reached: dict[str, int] = {}  # images at which a run died last
        self.lines: list[str] = []  # one for each of those that ended here
        self.machines = Machines()
        self.revised: Revised | None = None
        self.printed = time.monotonic()  # when the last line was
        self.mistake: UserError | None = None  # a user's mistake that only a worker could find
        self._lock = threading.RLock()
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        """Start to show the progress."""
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def start(self, task: Task) -> None:
        """Note that a task has started."""
        with self._lock:
            self.tasks[task.run_id] = task
            self._waits_no_more(task.run_id)
            self.running[task.run_id] = time.monotonic()

    def _waits_no_more(self, name: str) -> None:
        self.waiting_seconds = max(0.0, self.waiting_seconds - self.waiting.pop(name, 0.0))

    def _attempt_ended(self, name: str) -> float:
        now = time.monotonic()
        seconds = now - self.running.pop(name, now)
        self.slot_seconds += seconds * self.width(name)
        return seconds

    def width(self, name: str) -> float:
        """Return the number of slots that a task takes."""
        return self.widths.get(name, 1.0)

    def _score(self, row: Mapping[str, Any]) -> float:
        score = row[self.objective]
        return math.inf if score is None else float(score)  # rows of earlier releases

    def note(self, text: str) -> None:
        """Print something that the user should know."""
        with self._lock:
            self._print(text, "yellow")

    def remind(self) -> None:
        """Print the counts to a log that has been quiet for a while."""
        with self._lock:
            if not self._live and time.monotonic() - self.printed >= QUIET_SECONDS:
                self._print(self.counts())

    def _print(self, line: str, style: str = "") -> None:
        self.printed = time.monotonic()
        log = not self.console.is_terminal  # which keeps a line as it is
        self.console.print(line, style=style, soft_wrap=log, markup=False)  # it may have brackets

    def interrupted(self, task: Task, error: Exception, out: Path, workers: int = 1) -> int:
        """Note that an attempt at a run has ended early, in its folder as well.

        Args:
            task: The run.
            error: What ended the attempt.
            out: Folder of the study.
            workers: Number of processes of the attempt.

        Returns:
            Number of attempts in a row that died without progress; 0 after a preemption.
        """
        with self._lock:
            name, seconds = task.run_id, self._attempt_ended(task.run_id)
        machine_lost = isinstance(error, ProcessDied) and error.machine_lost
        item = record_interruption(out / "runs" / name, seconds, workers, machine_lost)
        if item.kind == "preemption":
            self.deaths[name] = 0
            images = human.count(item.images)
            self.note(f"{task.label} has to leave its machine; resuming from {images} images")
            return 0
        reached = self.latest.get(name, {}).get("images", 0)
        progressed = reached > self.reached.get(name, 0)
        self.deaths[name] = 1 if progressed else self.deaths.get(name, 0) + 1
        self.reached[name] = reached
        return self.deaths[name]

    def lost(self, task: Task, error: Exception) -> None:
        """Note that a task is to start again because of an error, which counts for its machine."""
        reason = str(error).partition("\n")[0] or type(error).__name__
        self.note(f"{task.label}: {reason}; resuming from its last checkpoint")
        self._count_failure(task, f"{type(error).__name__}: {reason}")

    def _count_failure(self, task: Task, error: str) -> None:
        if news := self.machines.failed(task.run_id, error):
            self.note(news)

    def report(self, task: Task, latest: Mapping[str, Any]) -> None:
        """Note how far a task has come: {"images", "loss", "seconds"}."""
        with self._lock:
            self.latest[task.run_id] = latest

    def end(self, task: Task, row: Mapping[str, Any]) -> None:
        """Note the row of a task that has ended, and print a line."""
        with self._lock:
            name = task.run_id
            self._waits_no_more(name)
            self.seconds[name] = self._attempt_ended(name)
            self.worked[name] = min(row.get("wall_seconds") or math.inf, self.seconds[name])
            self.worked_seconds += self.worked[name]
            self.foreseen_seconds += self.expected.get(name, 0.0)
            self.rows[name] = row
            if len(self.rows) == FIRST_RUNS < self.total and self.objective == "bpd":
                self.revised = self._revise()
            if row["status"] == "failed":
                self.failures += 1
                line = f"{task.label} failed: {row['error']}"
                self._print(line, "red")
                self._count_failure(task, row["error"])
            else:
                if stopped_early(row):
                    self.pruned += 1
                    outcome = f"{row['error']}: {in_words(row, self.objective)} there"
                else:
                    self.done += 1
                    self.best = min(self.best or row, row, key=self._score)
                    outcome = in_words(row, self.objective)
                self.machines.ended_well(name)
                ended = f"{task.label} {outcome}, {human.seconds(self.seconds[name])}"
                line = f"{self.counts()} · {ended}"
                self._print(ended if self._live else line)  # a terminal shows the counts below
            self.lines.append(line)

    def expected_seconds(self, name: str = "") -> float:
        """Return the expected seconds of a task, at the pace of those that have ended here.

        A task not known in advance takes as long as the others did on average.
        """
        with self._lock:
            if name in self.expected:
                return self.expected[name] * self._pace
            return self.worked_seconds / max(1, len(self.worked))

    @property
    def _pace(self) -> float:
        """Measured over expected seconds of the tasks that have ended here."""
        return self.worked_seconds / self.foreseen_seconds if self.foreseen_seconds else 1.0

    def cautious_seconds(self, name: str = "") -> float:
        """Return the expected seconds of a task as a limit should take them.

        Runs that have ended count by their expected seconds against its own: a few short ones that
        were quick do not make a long one quick.
        """
        with self._lock:
            usual, first = self.expected_seconds(name), self.expected.get(name, 0.0)
            foreseen = self.foreseen_seconds + first
            return max(usual, first * (self.worked_seconds + first) / foreseen if first else 0.0)

    def seconds_since_start(self) -> dict[str, float]:
        """Return how long each running task has been running, in seconds."""
        with self._lock:
            now = time.monotonic()
            return {name: now - started for name, started in self.running.items()}

    def slot_seconds_used(self) -> float:
        """Return the seconds times slots that the tasks started here have taken so far."""
        with self._lock:
            running = self.seconds_since_start().items()
            return self.slot_seconds + sum(passed * self.width(name) for name, passed in running)

    def seconds_left(self) -> float:
        """Return the expected seconds until the last task ends: the work left over all slots."""
        with self._lock:
            return max([self.work_left() / self.slots, *self._running_left().values()])

    def work_left(self) -> float:
        """Return the expected seconds times slots of what has not ended."""
        with self._lock:
            unknown = self.total - len(self.rows) - len(self.running) - len(self.waiting)
            work = self._pace * self.waiting_seconds + self.expected_seconds() * unknown
            running = self._running_left().items()
            return work + sum(seconds * self.width(name) for name, seconds in running)

    def _running_left(self) -> dict[str, float]:
        return {
            name: self._left(name, passed) for name, passed in self.seconds_since_start().items()
        }

    def _revise(self) -> Revised:
        passed = time.time() - self.began
        slot_seconds = self.slot_seconds_used() + self.work_left()
        return Revised(passed + self.seconds_left(), slot_seconds, self._pace)

    def _left(self, name: str, passed: float) -> float:
        """Return the expected seconds until a running task ends; never none.

        A run that trains more slowly than expected is assumed to keep its pace.
        """
        left = max(self.expected_seconds(name) - passed, LATE * passed)
        if latest := self.latest.get(name):
            share = latest["images"] / self.tasks[name].config.images
            if share >= TELLING:
                left = max(left, latest["seconds"] * (1 - share) / share)
        return left

    def counts(self) -> str:
        """Return the progress of the whole batch in one line."""
        with self._lock:
            total = self.total + self.before
            things = " sampler settings" if self.objective == "kid" else ""
            parts = [f"{self.done} of {total}{things} done"]
            parts += [f"{len(self.running)} running"] if self.running else []
            parts += [f"{self.pruned} stopped early"] if self.pruned else []
            parts += [f"{self.failures} failed"] if self.failures else []
            if self.best and self._score(self.best) < math.inf:
                parts.append(f"best {in_words(self.best, self.objective)}")
            if self.done + self.pruned + self.failures < total and (left := self.seconds_left()):
                parts.append(f"{human.seconds(left)} left")
            return " · ".join(parts)

    def render(self) -> Group:
        """Return what a terminal shows."""
        return as_table(self.snapshot(), self.console.width)

    def snapshot(self) -> dict[str, Any]:
        """Return the progress as plain data, for `as_table` and for other processes.

        Returns:
            `began` and `written` (Unix times), `counts` (a line), `running` (label, share of the
            training images, loss and expected seconds left of each running task), `ended` (number
            of tasks), `lines` (of those that ended last).
        """
        with self._lock:
            running = []
            for name, passed in self.seconds_since_start().items():
                task, latest = self.tasks[name], self.latest.get(name)
                share = latest["images"] / task.config.images if latest else 0.0
                loss = float(latest["loss"]) if latest else None
                left = self._left(name, passed)
                running.append({"label": task.label, "share": share, "loss": loss, "left": left})
            return {
                "began": self.began,
                "written": time.time(),
                "counts": self.counts(),
                "running": running,
                "ended": len(self.lines),
                "lines": self.lines[-LINES:],
            }
