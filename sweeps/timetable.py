"""When runs begin and end on devices that take the longest one that is ready as they fall free."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NEVER = float("inf")


@dataclass(frozen=True)
class Job:
    """One run on one device."""

    name: str
    seconds: float
    after: str = ""  # name of a job that must have begun
    delay: float = 0.0  # seconds after the beginning of that one, at least


def timetable(jobs: Iterable[Job], devices: int) -> Mapping[str, tuple[float, float]]:
    """Return begin and end of each job, in seconds.

    >>> timetable([Job("a", 4.0), Job("b", 1.0, after="a", delay=2.0)], 2)
    {'a': (0.0, 4.0), 'b': (2.0, 3.0)}
    """
    waiting = sorted(jobs, key=lambda job: -job.seconds)
    names = {job.name for job in waiting}
    ready = {job.name: NEVER if job.after in names else 0.0 for job in waiting}
    free, found = [0.0] * devices, {}
    while waiting:
        now = max(free[0], min(ready[job.name] for job in waiting))
        job = next(job for job in waiting if ready[job.name] <= now)
        waiting.remove(job)
        heapq.heapreplace(free, now + job.seconds)
        found[job.name] = (now, now + job.seconds)
        ready |= {each.name: now + each.delay for each in waiting if each.after == job.name}
    return found
