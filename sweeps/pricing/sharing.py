"""How many small runs share a GPU: what its memory holds, and of that what is fastest."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tarflow import cost, record
from tarflow.config import RunConfig

MOST = 8  # runs on a GPU; more has never been measured
USUAL = 4  # without a measurement: on an H100 1, 4 and 8 small runs take 768, 770 and 765 steps/s
LEAST_MEMORY = 16e9  # bytes of a GPU of which nothing is known
CONTEXT_BYTES = 0.6e9  # that CUDA itself takes in each process
BEST = 0.97  # of the highest rate counts as the highest
FILE = "sharing.json"  # in the folder of a study


@dataclass(frozen=True)
class Sharing:
    """What runs side by side on one GPU were measured to do, once per study."""

    kinds: tuple[str, ...]  # of the cluster's GPUs, by Ray's names
    memory: float  # bytes of the GPU
    rates: Mapping[int, float]  # training steps per second in all, by number of runs at a time

    def gain(self, count: int) -> float:
        """Return the rate of some runs at a time over that of one alone."""
        return self.rates[count] / self.rates[1]

    def write(self, out: Path) -> None:
        """Write it to the folder of a study."""
        record.write_json(out / FILE, asdict(self))


def read_sharing(out: Path) -> Sharing | None:
    """Return what was measured for the study in a folder; None if nothing was."""
    written = record.read_json(out / FILE)
    if not written:
        return None
    rates = {int(count): rate for count, rate in written["rates"].items()}
    return Sharing(tuple(written["kinds"]), written["memory"], rates)


def most_per_device(configs: Iterable[RunConfig], memory: float, cores: float = math.inf) -> int:
    """Return how many runs a GPU holds at a time, at most `MOST`; 1 if not even one fits.

    Args:
        configs: The runs; each must fit beside the largest.
        memory: Bytes of the GPU.
        cores: Cores for each GPU, in units of those that a run takes.
    """
    largest = max((cost.memory(config).total for config in configs), default=math.inf)
    fit = cost.ROOM * memory / (largest + CONTEXT_BYTES)
    return max(1, int(min(MOST, fit, cores)))


def runs_per_device(
    configs: Iterable[RunConfig], sharing: Sharing | None = None, cores: float = math.inf
) -> int:
    """Return how many of these runs share a GPU.

    Of the numbers that fit, the largest whose rate is the highest within `BEST`: steps take turns
    on a GPU, but scoring and sampling often wait for the host.

    Args:
        configs: The runs.
        sharing: What was measured; None for `USUAL` on the smallest GPU.
        cores: See `most_per_device`.
    """
    if sharing is None:
        return min(USUAL, most_per_device(configs, LEAST_MEMORY, cores))
    most = most_per_device(configs, sharing.memory, cores)
    rates = {count: rate for count, rate in sharing.rates.items() if count <= most}
    return max(count for count, rate in rates.items() if rate >= BEST * max(rates.values()))
