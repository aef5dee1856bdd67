"""Live progress of many runs: one quiet table in a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from analysis import human
from tarflow.config import RunConfig


class Task(Protocol):
    """What goes on: a planned run, or the sampling of one."""

    @property
    def run_id(self) -> str:
        """Name within the batch."""

    @property
    def label(self) -> str:
        """Name for people."""

    @property
    def config(self) -> RunConfig:
        """Of the run."""


def in_bits(row: Mapping[str, Any]) -> str:
    """Say how good a run is."""
    return f"{human.bits(row['bpd'])} bits per dimension"


class Progress:
    """What is running, done and failed; told by the runner, shown to the user."""

    def __init__(
        self,
        total: int,
        expected: Mapping[str, float],
        slots: int,
        console: Console,
        done: Sequence[Mapping[str, Any]] = (),
        objective: str = "bpd",
        in_words: Callable[[Mapping[str, Any]], str] = in_bits,
    ) -> None:
        """Begin with nothing running.

        Args:
            total: runs that are to be carried out.
            expected: seconds of each, by run id; empty if they are not known in advance.
            slots: runs that go on at a time.
            console: to show progress on.
            done: rows of runs that were finished before.
            objective: column of a row that is best when lowest.
            in_words: says how good a row is.
        """
        self.total, self.expected = total, dict(expected)
        self.slots, self.console = slots, console
        self.objective, self.in_words = objective, in_words
        self.runs: dict[str, Task] = {}  # that have begun
        self.before = list(done)
        self.running: dict[str, float] = {}  # when each began
        self.latest: dict[str, Mapping[str, Any]] = {}  # last report of each
        self.seconds: dict[str, float] = {}  # of those that ended here
        self.rows: dict[str, Mapping[str, Any]] = {}  # of those that ended here
        self._lock = threading.RLock()
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        """Begin to show."""
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
        """Leave the last state on the screen."""
        if self._live:
            self._live.stop()

    def start(self, run: Task) -> None:
        """Note that a run has begun."""
        with self._lock:
            self.runs[run.run_id] = run
            self.running[run.run_id] = time.monotonic()

    def note(self, text: str) -> None:
        """Say what the user should know."""
        with self._lock:
            self.console.print(text, style="yellow", soft_wrap=True, markup=False)

    def report(self, run: Task, latest: Mapping[str, Any]) -> None:
        """Note how far a run has come: {"images", "loss", "seconds"}."""
        with self._lock:
            self.latest[run.run_id] = latest

    def end(self, run: Task, row: Mapping[str, Any]) -> None:
        """Note the row of a run that is over, and say so."""
        with self._lock:
            run_id = run.run_id
            began = self.running.pop(run_id, time.monotonic())
            self.seconds[run_id] = time.monotonic() - began
            self.rows[run_id] = row
            if row["status"] == "failed":
                self.console.print(
                    f"{run.label} failed: {row['error']}",
                    style="red",
                    soft_wrap=True,
                    markup=False,  # errors hold brackets
                )
            elif not self._live:
                self.console.print(
                    f"{self.counts()} · {run.label} {self.in_words(row)}, "
                    f"{human.seconds(self.seconds[run_id])}",
                    soft_wrap=True,
                )

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows of the runs that failed here."""
        return [row for row in self.rows.values() if row["status"] == "failed"]

    def seconds_left(self) -> float:
        """Expect when the last run ends: the work left, shared by all slots."""
        with self._lock:
            ended = sum(self.expected.get(run_id, 0.0) for run_id in self.seconds)
            pace = sum(self.seconds.values()) / ended if ended else 1.0
            usual = sum(self.seconds.values()) / max(1, len(self.seconds)) / pace
            now = time.monotonic()
            left = [
                max(self.expected.get(run_id, usual) * pace - (now - began), 0.0)
                for run_id, began in self.running.items()
            ]
            begun = self.rows.keys() | self.running.keys()
            known = [seconds for run_id, seconds in self.expected.items() if run_id not in begun]
            unknown = self.total - len(begun) - len(known)
            work = sum(left) + pace * (sum(known) + usual * unknown)
            return max([work / self.slots, *left])

    def counts(self) -> str:
        """Say in one line how far the whole is."""
        with self._lock:
            done = [row for row in self.rows.values() if row["status"] == "done"] + self.before
            total = self.total + len(self.before)
            parts = [f"{len(done)} of {total} done", f"{len(self.running)} running"]
            parts += [f"{len(self.failed)} failed"] if self.failed else []
            if done:
                best = min(done, key=lambda row: float(row[self.objective]))
                parts.append(f"best {self.in_words(best)}")
            if len(self.rows) < self.total:
                parts.append(f"{human.seconds(self.seconds_left())} left")
            return " · ".join(parts)

    def render(self) -> Group:
        """Return what a terminal shows: the counts, and a line for each running run."""
        with self._lock:
            table = Table(box=None, pad_edge=False, show_header=False)
            for run_id in self.running:
                run, latest = self.runs[run_id], self.latest.get(run_id)
                share = latest["images"] / run.config.images if latest else 0.0
                loss = f"loss {latest['loss']:.4f}" if latest else "starting"
                table.add_row(f"  {run.label}", f"{share:4.0%}", loss)
            return Group(self.counts(), table)
