"""Lines that tell how far a long command has come."""

import sys
import time

from tarflow import human

PROGRESS_SECONDS = 5


def progress(verb: str) -> human.Progress:
    """Return what prints a line of progress every few seconds.

    Args:
        verb: What was done to the items that the numbers count.
    """
    printed = time.monotonic()

    def report(done: int, total: int, seconds: float) -> None:
        nonlocal printed
        if time.monotonic() - printed < PROGRESS_SECONDS:
            return
        printed = time.monotonic()
        left = human.seconds(seconds * (total / done - 1))
        print(f"{done / total:4.0%}  {done:,} {verb}, {left} left", file=sys.stderr)

    return report
