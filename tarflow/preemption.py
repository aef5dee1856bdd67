"""SIGTERM: the machine is wanted back. Training saves its state and leaves."""

import atexit
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 20.0  # that an ending process waits for the state to be saved


class Preempted(RuntimeError):
    """The process was told to end; the state has been saved, the same command goes on from it."""


@contextlib.contextmanager
def notice() -> Iterator[threading.Event]:
    """Give an event that is set when this process is told to end.

    In the main thread that is SIGTERM itself. In any other thread, such as Ray's workers use, the
    main thread acts on SIGTERM by leaving: the interpreter then waits for the block to end.
    """
    wanted, over = threading.Event(), threading.Event()
    main = threading.current_thread() is threading.main_thread()

    def told(*_: Any) -> None:
        wanted.set()

    def leave() -> None:
        wanted.set()
        over.wait(GRACE_SECONDS)

    before = signal.signal(signal.SIGTERM, told) if main else None
    if not main:
        atexit.register(leave)
    try:
        yield wanted
    finally:
        over.set()
        atexit.unregister(leave)
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
