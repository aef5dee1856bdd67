"""Which run may start next on a cluster where others run: EASY backfilling, as pure functions.

The largest run that waits is never delayed: its start is foreseen from the expected ends of what
runs, and another run may start only if that start stays where it is. Smaller runs so fill what
the large ones leave, and no large one starves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Machines = Mapping[str, Mapping[str, float]]  # amounts by Ray's names ("CPU", "GPU"), by node id


@dataclass(frozen=True)
class Occupant:
    """What a run occupies, or would if it started now."""

    needs: Mapping[str, float]  # of one worker, by Ray's names
    workers: int
    ends: float  # expected seconds from now until it ends
    nodes: tuple[str, ...] = ()  # node ids of its workers; empty until they are known


def capacity(needs: Mapping[str, float], machines: Machines) -> int:
    """Return how many workers fit.

    >>> capacity({"CPU": 2.0}, {"a": {"CPU": 5.0}, "b": {"CPU": 1.0}})
    2
    """
    return sum(_on_one(needs, amounts) for amounts in machines.values())


def _on_one(needs: Mapping[str, float], amounts: Mapping[str, float]) -> int:
    fit = min(amounts.get(name, 0.0) / amount for name, amount in needs.items() if amount)
    return max(0, math.floor(fit + 1e-6))  # quarters of a GPU may not add up exactly


def free(machines: Machines, occupants: Sequence[Occupant]) -> dict[str, dict[str, float]]:
    """Return what runs leave of the machines."""
    return _placed(machines, occupants)[0]


def _placed(
    machines: Machines, occupants: Sequence[Occupant]
) -> tuple[dict[str, dict[str, float]], list[Sequence[str]]]:
    """Return what runs leave of the machines, and the machines of each run's workers.

    A worker whose machine is not known yet is expected where Ray puts it: on the machine with the
    least room for it.
    """
    left = {node: dict(amounts) for node, amounts in machines.items()}
    nodes: list[Sequence[str]] = [
        [node for node in occupant.nodes if node in left]
        for occupant in occupants  # not lost
    ]
    for occupant, known in zip(occupants, nodes, strict=True):
        for node in known:
            _add(occupant.needs, left[node], -1)
    unknown = [index for index, occupant in enumerate(occupants) if not occupant.nodes]
    for index in sorted(unknown, key=lambda index: -sum(occupants[index].needs.values())):
        nodes[index] = tightest(occupants[index], left)
    return left, nodes


def tightest(run: Occupant, left: Mapping[str, dict[str, float]]) -> list[str]:
    """Take the room of a run's workers where the least is left; return the machines."""
    nodes: list[str] = []
    room = {node: _on_one(run.needs, amounts) for node, amounts in left.items()}
    for node in sorted(room, key=lambda node: room[node]):
        nodes += [node] * min(room[node], run.workers - len(nodes))
    for node in nodes:
        _add(run.needs, left[node], -1)
    return nodes


def _add(needs: Mapping[str, float], amounts: dict[str, float], times: int) -> None:
    for name, amount in needs.items():
        amounts[name] = amounts.get(name, 0.0) + times * amount


def start_of(run: Occupant, machines: Machines, occupants: Sequence[Occupant]) -> float:
    """Return in how many seconds a run can start if no other starts before; 0 if now."""
    left, nodes = _placed(machines, occupants)
    if capacity(run.needs, left) >= run.workers:
        return 0.0
    for index in sorted(range(len(occupants)), key=lambda index: occupants[index].ends):
        for node in nodes[index]:
            _add(occupants[index].needs, left[node], 1)
        if capacity(run.needs, left) >= run.workers:
            return occupants[index].ends
    return math.inf


def may_start(
    run: Occupant, first: Occupant | None, machines: Machines, occupants: Sequence[Occupant]
) -> bool:
    """Tell whether a run fits now, and delays nothing.

    Args:
        run: The run.
        first: The largest run that waits; None if none does.
        machines: All machines, as if they were empty.
        occupants: The runs that have started.
    """
    if capacity(run.needs, free(machines, occupants)) < run.workers:
        return False
    return first is None or start_of(first, machines, [*occupants, run]) <= start_of(
        first, machines, occupants
    )


def longest_that_may_start(
    run: Occupant, first: Occupant | None, machines: Machines, occupants: Sequence[Occupant]
) -> float:
    """Return how many seconds a run may take at most to start now by `may_start`; 0 if it may not.

    Args:
        run: The run, whatever its end.
        first: The largest run that waits; None if none does.
        machines: All machines, as if they were empty.
        occupants: The runs that have started.
    """
    if may_start(replace(run, ends=math.inf), first, machines, occupants):
        return math.inf
    start = start_of(first, machines, occupants) if first else 0.0
    return start if may_start(replace(run, ends=start), first, machines, occupants) else 0.0
