"""Where Tune's trials run: on any machine but those that lose runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from sweeps.failures import Machines

AVOIDED = "avoided"  # key of a trial's config: node ids of machines that it must not use


class NotPickled:
    """Stays in the driver: Tune's pickles for a restore are never read, so they hold nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class HealthyMachines(NotPickled, SearchGenerator):
    """Makes the trials that a searcher suggests, each with the sick machines that it avoids.

    While room is kept for others, the search counts as finished, so that Tune frees the room of
    idle processes, and ends if no trial runs.
    """

    def __init__(
        self, search: Searcher, machines: Machines, keeps_room: Callable[[], bool]
    ) -> None:
        super().__init__(search)
        self.machines, self.keeps_room = machines, keeps_room

    def is_finished(self) -> bool:
        """Tell whether no more trials come for now."""
        return super().is_finished() or self.keeps_room()

    def next_trial(self) -> Trial | None:
        """Return the next trial; None if there is none now."""
        trial: Trial | None = super().next_trial()  # type: ignore[no-untyped-call]
        if trial and (sick := self.machines.avoided()):
            trial.config[AVOIDED] = sick  # makes its resources
        return trial


def placement(needs: Mapping[str, float], avoided: Sequence[str]) -> tune.PlacementGroupFactory:
    """Return the resources of a trial, on other machines if one of those has them.

    Args:
        needs: Amounts by Ray's names ("CPU", "GPU").
        avoided: Node ids of machines to avoid.
    """
    able = {
        node["NodeID"]
        for node in (ray.nodes() if avoided else ())  # type: ignore[no-untyped-call]
        if node["Alive"]
        and all(node["Resources"].get(name, 0) >= amount for name, amount in needs.items())
    }
    if able <= set(avoided):
        return tune.PlacementGroupFactory([dict(needs)])
    others = {"ray.io/node-id": f"!in({','.join(avoided)})"}
    return tune.PlacementGroupFactory([dict(needs)], bundle_label_selector=[others])
