"""The notice that a machine will be taken away: Ray drains it, as clouds and autoscalers ask.

Each training process looks whether its own machine is being drained. So runs of one worker and of
several need neither the driver nor Ray Train to tell them, and save however busy those are.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray

from tarflow.train.preemption import defer_sigterm, request_stop

LOOK_SECONDS = 2.0  # between looks, a millisecond each; the shortest notice of a cloud is 30 s


class DefersSigterm:
    """Part of Tune's actors: SIGTERM lets the run save its state and raise `Preempted`."""

    def setup(self, *arguments: Any, **keywords: Any) -> None:
        """Set up the actor, in the main thread of its process."""
        defer_sigterm()
        super().setup(*arguments, **keywords)  # type: ignore[misc]


def draining() -> set[str]:
    """Return the node ids of the machines that will be taken away."""
    return set(ray._private.state.state.get_draining_nodes())


@contextlib.contextmanager
def heeding_notices() -> Iterator[None]:
    """Let training in this process save and stop once its machine is to be taken away."""
    node, ended = ray.get_runtime_context().get_node_id(), threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # the head may be away for a while
                if node in draining():
                    request_stop()  # each time, as training may not have begun yet

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
