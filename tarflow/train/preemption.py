"""The machine is wanted back: training saves its state and leaves, at SIGTERM or when asked."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

_blocks: set[threading.Event] = set()  # events of the `catch_sigterm` blocks that run


class Preempted(RuntimeError):
    """The process was told to end; its state is saved, and the same command resumes from it."""


@contextlib.contextmanager
def catch_sigterm() -> Iterator[threading.Event]:
    """Yield an event that is set when this process is told to end, or by `request_stop`.

    In the main thread, SIGTERM sets it. In any other thread, such as Ray's workers use, SIGTERM
    sets it once the main thread has called `defer_sigterm`.
    """
    stop_requested = threading.Event()
    main = threading.current_thread() is threading.main_thread()

    def set_event(*_: Any) -> None:
        stop_requested.set()

    before = signal.signal(signal.SIGTERM, set_event) if main else None
    _blocks.add(stop_requested)
    try:
        yield stop_requested
    finally:
        _blocks.discard(stop_requested)
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def request_stop() -> bool:
    """Set the events of all `catch_sigterm` blocks of this process; return whether any runs."""
    for stop_requested in tuple(_blocks):
        stop_requested.set()
    return bool(_blocks)


def defer_sigterm() -> None:
    """Let SIGTERM only set the events of `catch_sigterm` while any such block runs.

    Call it in the main thread of Ray's workers, which would exit at once: the driver would hear of
    it before the state is saved, and of workers that save together the others would be ended too.
    """
    before = signal.getsignal(signal.SIGTERM)

    def stop_or_end(*_: Any) -> None:
        if not request_stop():
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop_or_end)
