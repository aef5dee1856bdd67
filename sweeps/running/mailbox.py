"""What jobs report to the driver, in a process that imports little and so takes little memory."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Mailbox:
    """Holds what the jobs of a batch have reported last until the driver fetches it."""

    def __init__(self) -> None:
        self.latest: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[int, str]] = {}

    def put(self, run_id: str, latest: dict[str, Any]) -> None:
        """Replace the report of a run."""
        self.latest[run_id] = latest

    def place(self, run_id: str, rank: int, node: str) -> None:
        """Note on which machine a worker of a run has started."""
        self.nodes.setdefault(run_id, {})[rank] = node

    def forget(self, run_id: str) -> None:
        """Forget the machines of a run that is about to start."""
        self.nodes.pop(run_id, None)

    def get(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[int, str]]]:
        """Return the reports, and the node ids of the workers by rank, both by run id."""
        return self.latest, self.nodes


def start_mailbox() -> Any:
    """Start a mailbox on the machine of the driver."""
    on_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
    return mailbox.options(scheduling_strategy=on_driver).remote()
