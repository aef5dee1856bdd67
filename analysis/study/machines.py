"""How long a run would take, and what it would cost, on machines whose speed is known.

A study knows the speed of its own machine from its runs; that of accelerators is predicted by
`tarflow.step_time` from their data sheets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tarflow import cost
from tarflow.config import RunConfig
from tarflow.human import count
from tarflow.step_time import smallest_cluster, step_time

SEVERAL = 8  # devices of a node
WORTHWHILE = 2.0  # times faster: several devices are offered if the largest run gains this much


@dataclass(frozen=True)
class Machine:
    """One or several equal devices."""

    name: str
    price: float | None  # US dollars per hour of all devices at list prices; None if unknown
    seconds: Callable[[RunConfig], float | None]  # of training; None if the run does not fit
    basis: str  # a sentence: where the speed comes from


def machines(runs: pd.DataFrame, largest: RunConfig) -> list[Machine]:
    """Return the machine of the study, if its runs tell its speed, and known accelerators.

    Args:
        runs: Finished runs of the study.
        largest: The largest run that is planned.
    """
    single = [_accelerators(name, 1) for name in cost.ACCELERATORS]
    several = [_accelerators(name, SEVERAL) for name in cost.ACCELERATORS]
    gains = [
        many
        for one, many in zip(single, several, strict=True)
        if (slow := one.seconds(largest)) is None
        or ((fast := many.seconds(largest)) is not None and slow > WORTHWHILE * fast)
    ]
    own = own_machine(runs)
    return [*([own] if own else []), *single, *gains]


def own_machine(runs: pd.DataFrame) -> Machine | None:
    """Return the machine that trained the runs, at the speed that sizes had on it."""
    rates = (runs["flops"] / runs["train_seconds"]).replace([0, np.inf], np.nan)
    speeds = rates.groupby(runs["params"]).median().dropna()
    if speeds.empty:
        return None
    sizes = speeds.index.to_numpy(float)

    def seconds(config: RunConfig) -> float:
        nearest = np.abs(np.log(sizes / cost.params(config.model))).argmin()
        return float(cost.run_flops(config) / speeds.iloc[nearest])

    ends = f"{count(sizes.min())} to {count(sizes.max())} parameters"
    basis = (
        f"Training time at the speed that runs of the nearest size had in this study ({ends}), "
        "side by side on its machine."
    )
    return Machine("the study's machine", None, seconds, basis)


def _accelerators(name: str, devices: int) -> Machine:
    device, price = cost.ACCELERATORS[name], cost.price_of(name)
    cluster = smallest_cluster(device, devices)

    def seconds(config: RunConfig) -> float | None:
        if config.batch < devices or cost.memory(config, device.memory).total > device.memory:
            return None
        return config.images / config.batch * step_time(config, cluster).seconds

    basis = (
        "Training time predicted from the data sheet of the device by a model that was checked on "
        f"an H100 only; price ${price.hourly:g} per device and hour, {price.basis}."
    )
    label = name if devices == 1 else f"{devices} x {name}"
    return Machine(label, devices * price.hourly, seconds, basis)
