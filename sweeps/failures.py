"""Failures of runs: which to try again, the commonest cause, and which machine is sick."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FAILURES = 4  # in a row that mean that the rest would fail as well: stop
SICK_RUNS = 2  # runs in a row that a machine has to lose to be avoided
TRANSIENT = re.compile(  # what a machine does to a run, as opposed to what the run does itself
    r"the process died|lost a worker|out of memory|MemoryError|can't allocate memory"
    r"|CUDA error|CUDNN|CUBLAS|NCCL|Input/output error|Stale file handle"
    r"|Connection (refused|reset|closed)",
    re.IGNORECASE,
)


class ProcessDied(RuntimeError):
    """The process of a run ended without an error that it could raise."""

    def __init__(self, machine_lost: bool) -> None:
        how = "with its machine" if machine_lost else "(out of memory?)"
        super().__init__(f"the process died {how}")
        self.machine_lost = machine_lost


def transient(error: str) -> bool:
    """Tell whether an error may not come again elsewhere or later.

    >>> transient("RuntimeError: CUDA error: uncorrectable ECC error encountered")
    True
    >>> transient("Diverged: loss is nan after 640 images")
    False
    """
    return bool(TRANSIENT.search(error))


def last_errors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the errors of all runs so far, or of the last few; empty unless all of these failed.

    After the first success, only errors count for which the machines are to blame.
    """
    if rows[-1]["status"] != "failed":
        return []
    errors = [row["error"] for row in rows if row["status"] == "failed"]
    if len(errors) == len(rows):
        return errors
    last = rows[-FAILURES:]
    failed = all(row["status"] == "failed" and transient(row["error"]) for row in last)
    return errors[-FAILURES:] if failed else []


def commonest(errors: Iterable[str]) -> str:
    """Return the error that occurs most, with the number of times; numbers in it do not count.

    >>> commonest(["MemoryError: 3 GB", "Diverged: at 5", "MemoryError: 4 GB"])
    '2 like MemoryError: 3 GB'
    """
    by_kind: dict[str, list[str]] = {}
    for error in errors:
        by_kind.setdefault(re.sub(r"[\d.]+", "", error), []).append(error)
    most = max(by_kind.values(), key=len)
    return f"{len(most)} {'with' if len(set(most)) == 1 else 'like'} {most[0]}"


class Machines:
    """Counts the failures of each machine since a run ended well there."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}  # of the machines, by node id
        self.where: dict[str, str] = {}  # node id by the run that started there last
        self.lost: dict[str, dict[str, str]] = {}  # by node: runs it has lost, with the error

    def started(self, run_id: str, node: str, name: str) -> None:
        """Note on which machine a run has started."""
        self.where[run_id], self.names[node] = node, name

    def name_of(self, run_id: str) -> str:
        """Return the name of the machine of a run; empty if it is not known."""
        return self.names.get(self.where.get(run_id, ""), "")

    def ended_well(self, run_id: str) -> None:
        """Forget what a machine has lost before."""
        self.lost.pop(self.where.get(run_id, ""), None)

    def failed(self, run_id: str, error: str) -> str:
        """Count a failure for its machine; return a line about it if it has just become sick."""
        node = self.where.get(run_id)
        if node is None or not transient(error):
            return ""
        lost = self.lost.setdefault(node, {})
        before = len(lost)
        lost[run_id] = error
        if before >= SICK_RUNS or len(lost) < SICK_RUNS:
            return ""
        why = commonest(lost.values())
        return f"{self.names[node]} has lost {len(lost)} runs, {why}; other machines go first"

    def avoided(self, run_id: str = "") -> list[str]:
        """Return the node ids of sick machines, and of those that have lost this run."""
        return sorted(
            node for node, lost in self.lost.items() if len(lost) >= SICK_RUNS or run_id in lost
        )


def by_machine(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each machine that several runs failed on, with the commonest error.

    >>> by_machine([{"host": "a", "error": "MemoryError: 3 GB"}] * 2)
    ['2 runs failed on a, 2 with MemoryError: 3 GB']
    """
    errors: dict[str, list[str]] = {}
    for row in rows:
        errors.setdefault(row.get("host", "a machine"), []).append(row["error"])
    return [
        f"{len(each)} runs failed on {host}, {commonest(each)}"
        for host, each in errors.items()
        if len(each) > 1
    ]
