"""SIGTERM: the machine is wanted back. Training saves its state and leaves."""

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 20.0  # an ending process waits this long for its state to be saved

_deferred: set[threading.Event] = set()  # events of `catch_sigterm` blocks outside the main thread


class Preempted(RuntimeError):
    """The process was told to end; its state is saved, and the same command resumes from it."""


@contextlib.contextmanager
def catch_sigterm() -> Iterator[threading.Event]:
    """Yield an event that is set when this process is told to end.

    In the main thread, SIGTERM sets it. In any other thread, such as Ray's workers use, SIGTERM
    sets it once the main thread has called `defer_sigterm`; before that the main thread exits on
    SIGTERM, and the interpreter waits up to `GRACE_SECONDS` for the block to end.
    """
    stop_requested, finished = threading.Event(), threading.Event()
    main = threading.current_thread() is threading.main_thread()

    def request_stop(*_: Any) -> None:
        stop_requested.set()

    def wait_for_block() -> None:
        stop_requested.set()
        finished.wait(GRACE_SECONDS)

    before = signal.signal(signal.SIGTERM, request_stop) if main else None
    if not main:
        _deferred.add(stop_requested)
        atexit.register(wait_for_block)
    try:
        yield stop_requested
    finally:
        finished.set()
        _deferred.discard(stop_requested)
        atexit.unregister(wait_for_block)
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def defer_sigterm() -> None:
    """Let SIGTERM only set the events of `catch_sigterm` while any such block runs.

    Call it in the main thread of workers that save together: if one of them exited at once, the
    others would be ended as well before they have saved.
    """
    before = signal.getsignal(signal.SIGTERM)

    def request_stop(*_: Any) -> None:
        for stop_requested in tuple(_deferred):
            stop_requested.set()
        if not _deferred:
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, request_stop)
