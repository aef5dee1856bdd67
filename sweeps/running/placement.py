"""Where Tune's trials run: on any machine but those that lose runs or will be taken away."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from sweeps.failures import Machines
from sweeps.running.notice import draining

AVOIDED = "avoided"  # key of a trial's config: the last two arguments of `placement`


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
        if trial is None:
            return None
        sick, leaving = self.machines.avoided(), sorted(draining())
        if sick or leaving:
            trial.config[AVOIDED] = sick, leaving  # makes its resources
        return trial


def placement(
    needs: Mapping[str, float], avoided: Collection[str], leaving: Collection[str]
) -> tune.PlacementGroupFactory:
    """Return the resources of a trial, on a machine that stays.

    Args:
        needs: Amounts by Ray's names ("CPU", "GPU").
        avoided: Node ids of machines to avoid if another one has these amounts.
        leaving: Node ids of machines that will be taken away.
    """
    able = {
        node["NodeID"]
        for node in (ray.nodes() if avoided else ())  # type: ignore[no-untyped-call]
        if node["Alive"]
        and all(node["Resources"].get(name, 0) >= amount for name, amount in needs.items())
    }
    excluded = set(leaving) if able <= {*avoided, *leaving} else {*avoided, *leaving}
    if not excluded:
        return tune.PlacementGroupFactory([dict(needs)])
    others = {"ray.io/node-id": f"!in({','.join(sorted(excluded))})"}
    return tune.PlacementGroupFactory([dict(needs)], bundle_label_selector=[others])
