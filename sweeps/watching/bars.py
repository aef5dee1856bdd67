"""What a terminal shows of the progress of a study."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tarflow import human

SHORTEST_BAR, LONGEST_BAR, REST_WIDTH = 4, 16, 64  # columns of a terminal


def as_table(snapshot: Mapping[str, Any], columns: int) -> Group:
    """Return the counts of a snapshot, and a bar per running task.

    Args:
        snapshot: As of `Progress.snapshot`.
        columns: Width of the terminal.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column()  # the only one that a narrow terminal cuts
    for _ in range(4):
        table.add_column(no_wrap=True)
    width = min(max(columns - REST_WIDTH, SHORTEST_BAR), LONGEST_BAR)
    for task in snapshot["running"]:
        label = Text(task["label"], no_wrap=True, overflow="ellipsis")
        left = f"{human.seconds(task['left'])} left" if task.get("left") else ""
        if task["loss"] is None:  # imports and compilers, or samples of a finished run
            table.add_row(label, "", "", "started", left)
        else:
            bar = ProgressBar(total=1.0, completed=task["share"], width=width)
            table.add_row(label, bar, f"{task['share']:4.0%}", f"loss {task['loss']:.3f}", left)
    return Group(table, Text(snapshot["counts"]))
