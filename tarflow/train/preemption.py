"""SIGTERM: the machine is wanted back. Training saves its state and leaves."""

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 20.0  # that an ending process waits for the state to be saved


_noting: set[threading.Event] = set()  # of the blocks that go on outside of the main thread


class Preempted(RuntimeError):
    """The process was told to end; the state has been saved, the same command goes on from it."""


@contextlib.contextmanager
def notice() -> Iterator[threading.Event]:
    """Give an event that is set when this process is told to end.

    In the main thread that is SIGTERM itself, and also in any other thread, such as Ray's workers
    use, once the main thread has called `listen`. Until then the main thread acts on SIGTERM by
    leaving, and the interpreter waits for the block to end.
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
        _noting.add(wanted)
        atexit.register(leave)
    try:
        yield wanted
    finally:
        over.set()
        _noting.discard(wanted)
        atexit.unregister(leave)
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def listen() -> None:
    """Let the main thread, which calls this, only note SIGTERM while a block of `notice` goes on.

    For workers that save together: one that began to leave would be missed, and the others ended
    for it before they have saved.
    """
    before = signal.getsignal(signal.SIGTERM)

    def told(*_: Any) -> None:
        for wanted in tuple(_noting):
            wanted.set()
        if not _noting:
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, told)
