"""Many Ray Train jobs of one driver at the price of one.

Ray Train gives each job a controller and four helpers: processes on the head that take 850 MB
together. Here the controllers of all jobs are threads of one process. Two helpers are left out:
one distributes datasets, which runs read themselves; the other frees the room of a controller that
has died, which Ray does anyway when the driver ends.
"""

import asyncio
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.logging import LoggingManager
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

JOBS = 1000  # at a time, more than a driver ever has


class Controllers:
    """Carries out the control loops of Ray Train jobs, each in a thread.

    They write no log: each would set up Ray's logging again, and two that do so at once can wait
    for each other's locks for ever.
    """

    def __init__(self) -> None:
        LoggingManager.configure_controller_logger = staticmethod(lambda *_: None)  # type: ignore[assignment]

    def run(self, **arguments: Any) -> Result:
        """Control one job until it ends, and return its result."""

        async def control() -> Result:
            controller: Any = TrainController(**arguments)
            await controller.run()
            result: Result = controller.get_result()
            return result

        return asyncio.run(control())


def start_controllers() -> Any:
    """Start the process that controls the jobs, on the machine of the driver."""
    on_driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    alone: Any = ray.remote(Controllers)
    return alone.options(
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=JOBS,
        scheduling_strategy=on_driver,
        runtime_env={"env_vars": get_env_vars_to_propagate()},
    ).remote()


class Trainer(TorchTrainer):
    """A Ray Train job that is controlled by a process that others share."""

    def __init__(self, *arguments: Any, controllers: Any, **keywords: Any) -> None:
        """Prepare a job.

        Args:
            arguments: See `TorchTrainer`.
            controllers: See `start_controllers`.
            keywords: See `TorchTrainer`.
        """
        self.controllers = controllers
        super().__init__(*arguments, **keywords)

    def _create_default_callbacks(self) -> list[Any]:
        left_out = (DatasetsCallback, PlacementGroupCleanerCallback)
        usual = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in usual if type(each) not in left_out]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        result: Result = ray.get(self.controllers.run.remote(**arguments))
        return result
