"""Runs of several workers side by side, and what they leave to runs of one worker.

A thread of the driver starts each run as soon as it fits on what the started runs leave of the
machines, the largest first; `room.py` has the rule. Ray Train gets a placement group only
for a run that fits, so none waits half-placed. An autoscaler learns of the others by placement
groups that stay pending, as far as the plan counts on more than the cluster has now.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from sweeps.design.study import PlannedRun
from sweeps.running.batch import RETRIES, BatchContext, StopConditions, cause_of, record_death
from sweeps.running.cluster import GROWING_SECONDS, answering, machines, unused
from sweeps.running.room import Occupant, capacity, free, longest_that_may_start, may_start
from sweeps.running.run_queue import RunQueue
from tarflow import human
from tarflow.errors import UserError
from tarflow.record import read_result

if TYPE_CHECKING:
    from sweeps.running.large import Processes

LOOK_SECONDS = 0.5  # between looks at runs and machines
IDLE_SECONDS = 10.0  # in which the room of runs that have ended becomes free


class Gang:
    """A run of several workers that has not ended."""

    def __init__(self, run: PlannedRun, needs: Mapping[str, float]) -> None:
        self.run, self.needs = run, needs  # needs of one worker
        self.workers = 0  # of the attempt that is under way; 0 while the run waits
        self.nodes: tuple[str, ...] = ()  # of these workers; empty until all have started
        self.error: Exception | None = None  # that ended the attempt
        self.thread: threading.Thread | None = None  # carries the attempt out
        self.short_since = math.inf  # since when there has been too little room for it alone

    @property
    def devices(self) -> float:
        """GPUs, or else cores, of all its workers."""
        return _devices(self.needs) * (self.workers or self.run.config.execution.workers)


class Gangs:
    """Carries out runs of several workers: a context manager around the other runs."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        small: RunQueue,
        small_needs: Mapping[str, float],
        context: BatchContext,
        stop: StopConditions,
    ) -> None:
        """Plan to carry out runs.

        Args:
            runs: Runs of several workers, those first that should start first at equal size.
            small: Runs of one worker, which from now on ask for room here.
            small_needs: Resources of one of these: "cpu", and "gpu" if it needs one.
            context: What all batches of the command share.
            stop: Stop conditions of the batch.
        """
        from sweeps.running.large import needs_of_worker  # imports torch

        gangs = [Gang(run, needs_of_worker(run, context.cluster)) for run in runs]
        self.left = sorted(gangs, key=lambda gang: -gang.devices)  # stable
        self.small, self.context, self.stop = small, context, stop
        self.small_needs = {name.upper(): amount for name, amount in small_needs.items()}
        self.machines = machines()
        self.first: Occupant | None = None  # the largest run that waits for others to end
        self.busy = time.monotonic()  # when a run was last under way
        self.requests: dict[str, Any] = {}  # placement groups for an autoscaler, by run id
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)
        small.longest = self.longest_small

    @cached_property
    def processes(self) -> "Processes":
        """The processes that serve all jobs, started before the first."""
        from sweeps.running.controllers import start_controllers
        from sweeps.running.large import Processes
        from sweeps.running.mailbox import start_mailbox

        return Processes(start_mailbox(), start_controllers())

    def __enter__(self) -> "Gangs":
        """Start what fits; a thread does the rest."""
        self.look()
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait until all have ended or there is a reason to stop; an error is one."""
        if error is not None:
            self.stop.reason = self.stop.reason or repr(error)
        while self.thread.is_alive():
            self.thread.join(LOOK_SECONDS)  # in short waits, which Ctrl-C ends
        if self.error:
            raise self.error

    def _work(self) -> None:
        try:
            while not self.stop.stop_all() and self._more_to_do():
                time.sleep(LOOK_SECONDS)
                self.look()
        except Exception as error:
            self.error = error
            self.stop.reason = str(error)  # ends the other runs
        finally:
            self._request({})

    @property
    def alive(self) -> bool:
        """Whether runs of several workers may still start or end."""
        return self.thread.is_alive()

    def _more_to_do(self) -> bool:
        """Tell whether to continue; if the cluster has been too small for too long, say so."""
        if any(gang.workers for gang in self.left):
            return True
        waiting = self._eligible()
        if self.small.started or (waiting and self.small.next()):
            return bool(self.left)
        since = min((gang.short_since for gang in waiting), default=math.inf)
        if time.monotonic() - since > GROWING_SECONDS:
            gang = min(waiting, key=lambda gang: gang.short_since)
            self.stop.reason = (
                f"{gang.run.label} waited {human.seconds(GROWING_SECONDS)} for {_in_words(gang)}, "
                f"there is room for {capacity(gang.needs, self.machines)}"
            )
        return bool(waiting) and not self.stop.reason

    def look(self) -> None:
        """Note what has happened to runs and machines, and start what fits."""
        running = [gang for gang in self.left if gang.workers]
        reports, nodes = ray.get(self.processes.mailbox.get.remote()) if running else ({}, {})
        for gang in running:
            placed = nodes.get(gang.run.run_id, {})
            gang.nodes = tuple(placed.values()) if len(placed) == gang.workers else ()
            if latest := reports.get(gang.run.run_id):
                self.stop.progress.report(gang.run, latest)
            if gang.thread and not gang.thread.is_alive():
                self._ended(gang)
        self.machines = machines()
        if self._choose(self.machines):
            self._request({})  # what is asked for would be in the way
            there = answering()
            self.machines = {node: has for node, has in self.machines.items() if node in there}
            with self.small.lock:
                while chosen := self._choose(self.machines, self._unused()):
                    self._start(*chosen)
        else:
            self._request(self._wanted())

    def _unused(self) -> dict[str, dict[str, float]]:
        return {node: has for node, has in unused().items() if node in self.machines}

    def _eligible(self) -> list[Gang]:
        """Return the runs that wait for nothing but room, in the order of their start."""
        return [
            gang
            for gang in self.left
            if not gang.workers
            and self.small.ready(gang.run)
            and self.stop.allows(gang.run.run_id)
        ]

    def _choose(
        self, having: Mapping[str, Mapping[str, float]], unused: Any = None
    ) -> tuple[Gang, int] | None:
        """Return the next run to start, with its workers, and note the first that has to wait.

        Args:
            having: All machines.
            unused: What no process has reserved there; None takes all that runs leave for unused.
        """
        from sweeps.running.large import enough

        first: Occupant | None = None
        occupants = self.occupants()
        self.busy = time.monotonic() if occupants else self.busy
        starting = [each for each in self._running() if not each.nodes]
        for gang in self._eligible():
            workers = enough(gang.run, capacity(gang.needs, having))
            if not workers:
                self._note_short(gang, having)
                continue
            seconds = self.stop.progress.cautious_seconds(gang.run.run_id)
            run = Occupant(gang.needs, workers, seconds)
            if may_start(run, first, having, occupants) and (
                unused is None or capacity(gang.needs, free(unused, starting)) >= workers
            ):
                break
            if (
                unused is not None
                and not occupants
                and time.monotonic() > self.busy + IDLE_SECONDS
            ):
                self._note_short(gang, unused)  # another study is in the way
            first = first or run
        else:
            gang, workers = None, 0
        self.first = first
        return (gang, workers) if gang else None

    def _note_short(self, gang: Gang, having: Mapping[str, Mapping[str, float]]) -> None:
        if gang.short_since == math.inf:
            gang.short_since = time.monotonic()
            self.stop.progress.note(
                f"{gang.run.label} waits for {_in_words(gang)} for at most "
                f"{human.seconds(GROWING_SECONDS)}, there is room for "
                f"{capacity(gang.needs, having)}"
            )

    def _running(self) -> list[Occupant]:
        return [
            Occupant(gang.needs, gang.workers, self._ends(gang.run.run_id), gang.nodes)
            for gang in self.left
            if gang.workers
        ]

    def occupants(self) -> list[Occupant]:
        """Return what all started runs occupy."""
        where = self.stop.progress.machines.where
        small = [
            Occupant(
                self.small_needs, 1, self._ends(name), (where[name],) if name in where else ()
            )
            for name in list(self.small.started.values())
        ]
        return self._running() + small

    def _ends(self, run_id: str) -> float:
        """Return the seconds in which a run should end; one that is late should soon."""
        progress = self.stop.progress
        passed = progress.seconds_since_start().get(run_id, 0.0)
        return max(progress.cautious_seconds(run_id) - passed, LOOK_SECONDS)

    def longest_small(self) -> float:
        """Return the seconds of the longest run of one worker that may start now.

        Without runs of several workers, all may: Tune lets those wait for which there is no room.
        """
        if not self.alive:
            return math.inf
        one = Occupant(self.small_needs, 1, math.inf)
        return longest_that_may_start(one, self.first, self.machines, self.occupants())

    def keeps_room(self) -> bool:
        """Tell whether idle processes are in the way of a run of several workers."""
        starting = any(gang.workers and not gang.nodes for gang in self.left)
        return self.alive and (starting or bool(self.first)) and self.small.next() is None

    def _start(self, gang: Gang, workers: int) -> None:
        """Start an attempt of a run in a thread."""
        from sweeps.running.large import train_on_workers

        run_id, progress = gang.run.run_id, self.stop.progress
        self.processes.mailbox.forget.remote(run_id)
        gang.workers, gang.nodes, gang.error, gang.short_since = workers, (), None, math.inf
        progress.start(gang.run)

        def attempt() -> None:  # not in the main thread, where Ray Train would take Ctrl-C
            try:
                train_on_workers(gang.run, workers, self.context, self.processes)
            except Exception as error:
                gang.error = error

        gang.thread = threading.Thread(target=attempt, daemon=True)
        gang.thread.start()

    def _ended(self, gang: Gang) -> None:
        """Note how an attempt has ended; after an error the run waits for room again."""
        from sweeps.running.large import why

        run, error, progress = gang.run, gang.error, self.stop.progress
        workers, gang.workers = gang.workers, 0
        if error is None:
            if result := read_result(self.context.out / "runs" / run.run_id):
                progress.end(run, result["run"])
            self.left.remove(gang)
            return
        cause, out = cause_of(error), self.context.out
        mistake = isinstance(cause, UserError)
        deaths = 0 if mistake else progress.interrupted(run, cause, out, workers)
        if mistake or deaths > RETRIES:
            record_death(run, out, error, progress)
            self.left.remove(gang)
        elif deaths:
            progress.note(f"{run.label} {why(error)}; resuming from its last checkpoint")

    def _wanted(self) -> dict[str, Gang]:
        """Return the runs to tell an autoscaler of: as many as the plan counts on devices.

        None while a run starts: it would lose its room to the next one.
        """
        if any(gang.workers and not gang.nodes for gang in self.left):
            return {}
        cluster, wanted = self.context.cluster, {}
        room = cluster.gpus or cluster.cpus
        room -= sum(each.workers * _devices(each.needs) for each in self.occupants())
        for gang in self._eligible():
            if gang.devices <= room or gang.short_since < math.inf:
                wanted[gang.run.run_id] = gang
            room -= gang.devices
        return wanted

    def _request(self, wanted: Mapping[str, Gang]) -> None:
        """Keep a pending placement group for each of these runs, and no other."""
        for run_id in self.requests.keys() - wanted.keys():
            remove_placement_group(self.requests.pop(run_id))
        for run_id, gang in wanted.items():
            if run_id not in self.requests:
                workers = gang.run.config.execution.workers
                self.requests[run_id] = placement_group([dict(gang.needs)] * workers)


def _devices(needs: Mapping[str, float]) -> float:
    return needs.get("GPU", needs["CPU"])


def _in_words(gang: Gang) -> str:
    return f"{gang.run.config.execution.workers} workers"
