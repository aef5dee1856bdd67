"""Show the progress of a study that another process drives, perhaps on another machine."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from sweeps import lease
from sweeps.design.outcomes import PRUNED
from sweeps.watching.bars import as_table
from sweeps.watching.live import FILE
from tarflow import record

LOOK_SECONDS = 2.0


def watch(out: Path, console: Console) -> int:
    """Show the progress of a study until its driver ends or Ctrl-C; change nothing.

    Args:
        out: Folder of the study, local or on an object store.
        console: Where to show it: a table in a terminal, elsewhere a line per task that ends.

    Returns:
        The exit code, 0.
    """
    owner = lease.read_owner(out / lease.FILE)
    if not lease.alive(owner):
        console.print(f"no process drives {out}; {so_far(out)}", soft_wrap=True)
        return 0
    console.print(f"{out} is driven by process {owner['pid']} on {owner['host']}", soft_wrap=True)
    try:
        owner = follow(out, console)
    except KeyboardInterrupt:
        return 0
    how = "stopped without an end: nothing heard of it since" if owner else "has ended"
    since = f" {time.strftime('%H:%M', time.localtime(owner['beat']))}" if owner else ""
    console.print(f"its process {how}{since}; {so_far(out)}", soft_wrap=True)
    return 0


def follow(out: Path, console: Console) -> dict[str, Any]:
    """Show every change until no process drives the study; return its last owner, if it died."""
    batch, seen = 0.0, 0
    with Live(console=console, auto_refresh=False, transient=True) as table:
        while lease.alive(owner := lease.read_owner(out / lease.FILE)):
            snapshot = record.read_json(out / FILE)
            if snapshot and snapshot["written"] >= owner["since"]:  # not of an earlier driver
                if snapshot["began"] != batch:
                    batch, seen = snapshot["began"], 0
                if console.is_terminal:
                    table.update(as_table(snapshot, console.width), refresh=True)
                print_new(snapshot, seen, console)
                seen = snapshot["ended"]
            time.sleep(LOOK_SECONDS)
    return owner


def print_new(snapshot: dict[str, Any], seen: int, console: Console) -> None:
    """Print a line for each task that has ended since so many had; of many, only the last."""
    new = min(snapshot["ended"] - seen, len(snapshot["lines"]))
    for line in snapshot["lines"][len(snapshot["lines"]) - new :]:
        console.print(line, soft_wrap=True)


def so_far(out: Path) -> str:
    """Say how many runs of a study have ended, from their results."""
    results = [record.read_result(path.parent) for path in out.glob("runs/*/result.json")]
    states = [result["run"]["status"] for result in results if result]
    done, early, failed = (states.count(state) for state in ("done", PRUNED, "failed"))
    words = f"{done} run{'s' * (done != 1)} done" + f", {early} stopped early" * bool(early)
    return words + f", {failed} failed" * bool(failed)
