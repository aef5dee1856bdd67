"""The price of a study before launch: runs, FLOPs, memory, seconds, money, and what is done."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sweeps import hardware
from sweeps.design.branches import StartPoint, start_points
from sweeps.design.outcomes import stopped_early
from sweeps.design.sampling import SamplingTask, to_sample
from sweeps.design.study import PlannedRun, Study, grid
from sweeps.failures import transient
from sweeps.pricing import expect
from sweeps.pricing.expect import Job, Rate, Seconds, timetable
from sweeps.pricing.sharing import read_sharing
from tarflow import cost, record
from tarflow.config import RunConfig
from tarflow.config_files import from_dict
from tarflow.errors import UserError

FAILS_AGAIN = "failed for good"  # state of a run that only another try by the user may save
LEFT_OUT = "left out"  # state of a run that this command is not to carry out
STARTING_SECONDS = 12.0  # Ray, imports and the report of a whole study


@dataclass(frozen=True)
class PlanRow:
    """One run of the plan."""

    run: PlannedRun
    state: str  # done, partly, failed, `FAILS_AGAIN`, `LEFT_OUT` or to do
    seconds: Seconds  # of the whole run
    left: float  # seconds still to spend
    epochs: float
    start: StartPoint
    saved: float  # training FLOPs that a trunk has spent on this run, or will spend

    def seconds_to(self, images: int) -> float:
        """Return the seconds from the start of the run to this number of images."""
        return self.seconds.train * (images - self.start.images) / self.run.config.images

    @property
    def expected(self) -> float:
        """Seconds of the run without what its trunk trains."""
        own = 1 - self.start.inherited / self.run.config.images
        return self.seconds.train * own + self.seconds.evaluate

    @property
    def device_seconds(self) -> float:
        """Seconds still to spend, times the devices of the run."""
        return self.left * self.run.config.execution.workers


@dataclass(frozen=True)
class Plan:
    """The price of a study."""

    rows: tuple[PlanRow, ...]  # longest expected first
    rate: Rate
    devices: int  # devices that the runs are spread over
    price: cost.Price  # of a device; 0 if it is not known
    corrected_by: int  # finished runs that corrected the expectation
    spread: float  # relative error of one run's expected seconds
    samplings: Mapping[SamplingTask, float] = field(default_factory=dict)  # missing, with seconds
    retry: bool = True  # whether to carry out again what fails for good
    left_out: Mapping[str, str] = field(default_factory=dict)  # ids of runs, and why

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole study."""
        return sum(cost.run_flops(row.run.config) for row in self.rows)

    @property
    def saved(self) -> float:
        """Training FLOPs that shared trunks save in the whole study."""
        return sum(row.saved for row in self.rows)

    @property
    def device_hours(self) -> float:
        """Device-hours still to spend."""
        sampling = sum(self.samplings.values()) / self.rate.runs_per_device
        return (self.runs_device_seconds + sampling) / 3600

    @property
    def runs_device_seconds(self) -> float:
        """Device-seconds still to spend on runs."""
        return sum(row.device_seconds for row in self.left) / self.rate.runs_per_device

    @property
    def money(self) -> float:
        """US dollars still to spend."""
        return self.device_hours * self.price.hourly

    @property
    def wall_seconds(self) -> float:
        """Expected seconds from start to end."""
        if not self.left and not self.samplings:
            return 0.0
        return STARTING_SECONDS + self.runs_seconds + sum(self.samplings.values()) / self.slots

    @property
    def runs_seconds(self) -> float:
        """Expected seconds from the start of the first run to the end of the last."""
        return wall_seconds(self.left, self.slots, self.rate.runs_per_device)

    @property
    def slots(self) -> int:
        """Number of runs at a time."""
        return self.devices * self.rate.runs_per_device

    @property
    def gpus(self) -> int:
        """Number of accelerators that the plan counts on."""
        return self.devices if self.rate.accelerator else 0

    @property
    def memory(self) -> float:
        """Bytes of memory of one device; infinite for cores, which share this machine's."""
        name = self.rate.accelerator
        return cost.ACCELERATORS[name].memory if name else math.inf

    @property
    def left(self) -> tuple[PlanRow, ...]:
        """Rows of the runs that are to be carried out."""
        over = {"done", LEFT_OUT} if self.retry else {"done", LEFT_OUT, FAILS_AGAIN}
        return tuple(row for row in self.rows if row.state not in over)

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """Configs of the runs that are to be carried out or sampled from."""
        return (
            *(row.run.config for row in self.left),
            *(task.config for task in self.samplings),
        )

    @property
    def given_up(self) -> int:
        """Number of runs that have failed and are not tried again."""
        return 0 if self.retry else sum(row.state == FAILS_AGAIN for row in self.rows)


def make_plan(
    study: Study,
    out: Path,
    devices: int | None = None,
    accelerator: str | None = None,
    price: float | None = None,
    runs: Sequence[PlannedRun] | None = None,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Price the runs of a study, given what its folder already holds.

    Args:
        study: Resolved study.
        out: Folder of the study; it need not exist.
        devices: Devices to spread runs over; by default this machine's GPUs, or else its cores.
            For a named accelerator the default is 8, or as many as a run asks for.
        accelerator: Name in `cost.ACCELERATORS`; by default the study's, or else this machine.
        price: US dollars per device-hour; by default the user's for the device, or else the list
            price of the named accelerator.
        runs: Runs to price; by default the grid of the study.
        left_out: Ids of runs that are not to be carried out, and why.

    Raises:
        UserError: If the accelerator is not known, or the number of devices is not positive.
    """
    if devices is not None and devices < 1:
        raise UserError(f"devices is {devices}: it must be at least 1")
    named = accelerator or study.accelerator
    local = [] if study.base.execution.device == "cpu" else hardware.accelerators()
    device = named or (local[0] if local else "")
    tasks = []
    if runs is None:
        runs = grid(study)
        tasks = to_sample(study, [run for run in runs if run.run_id not in left_out], out)
    shared = read_sharing(out), [run.config for run in runs]
    rate = (
        expect.accelerator_rate(device, study.base.precision, *shared)
        if device
        else expect.core_rate()
    )
    largest = max((run.config.execution.workers for run in runs), default=1)
    names = sorted(path.name for path in (out / "runs").glob("*"))
    done = {name: row for name in names if (row := finished(out, name))}
    configs = {run.run_id: run.config for run in runs}
    measured = [
        (configs.get(name) or from_dict(RunConfig, json.loads(row["config"])), row)
        for name, row in done.items()
    ]
    correction = expect.correction(measured, study.validation_images, rate)
    over = {*done, *left_out}
    starts = start_points([run for run in runs if run.run_id not in over], out)
    rows = []
    for run in runs:
        raw = expect.expected_seconds(run.config, study.validation_images, rate)
        seconds = correction.apply(raw)
        epochs = run.config.images / study.train_images
        if row := done.get(run.run_id):
            saved = row["flops"] - row["flops_marginal"]
            start = StartPoint(row["images"], round(row["images"] * saved / row["flops"]))
            rows.append(PlanRow(run, "done", seconds, 0.0, epochs, start, saved))
            continue
        start = starts.get(run.run_id, StartPoint())
        left = seconds.train * (1 - start.images / run.config.images) + seconds.evaluate
        saved = float(cost.training_flops(run.config.model)) * start.inherited
        now = LEFT_OUT if run.run_id in left_out else state(out, run, start)
        rows.append(PlanRow(run, now, seconds, left, epochs, start, saved))
    return Plan(
        rows=tuple(sorted(rows, key=lambda row: -row.seconds.total)),
        rate=rate,
        devices=devices or (max(8, largest) if named else len(local) or hardware.cores()),
        price=price_of(price, named, device or cost.CORE),
        corrected_by=len(done),
        spread=correction.spread,
        samplings={task: sampling_seconds(task, rate) * correction.evaluate for task in tasks},
        left_out=left_out,
    )


def price_of(asked: float | None, named: str, device: str) -> cost.Price:
    """Return the price of a device: as asked, or the user's, or that of a named accelerator.

    This machine costs nothing unless the user says otherwise.
    """
    if asked is not None:
        return cost.Price(asked, "--price")
    if named:
        return cost.price_of(named)
    return cost.Price(cost.own_prices().get(device, 0.0), "your price")


def sampling_seconds(task: SamplingTask, rate: Rate) -> float:
    """Return the expected seconds of one more sampler setting of a run."""
    return expect.sampling_seconds(task.config, rate, guided=task.sampler.guidance > 0)


def finished(out: Path, run_id: str) -> dict[str, Any] | None:
    """Return the row of a run that is done, or None."""
    result = record.read_result(out / "runs" / run_id)
    return result["run"] if result and result["run"]["status"] == "done" else None


def state(out: Path, run: PlannedRun, start: StartPoint) -> str:
    """Return the state of a run that is not done."""
    result = record.read_result(out / "runs" / run.run_id)
    pruned = result and stopped_early(result["run"])  # by a search: a hole in a grid
    if result and not pruned and not transient(result["run"]["error"]):
        return FAILS_AGAIN
    if start.images > start.inherited:
        return "partly"
    return "failed" if result and not pruned else "to do"


def wall_seconds(rows: Sequence[PlanRow], slots: int, share: int = 1) -> float:
    """Return when the last run ends if each starts, largest first, as soon as there is room.

    A branch starts after its trunk has reached the branch point.

    Args:
        rows: The runs.
        slots: Number of single-worker runs at a time.
        share: Number of these that share a device. Several workers take a device each.

    >>> wall_seconds([], 2)
    0.0
    """
    by_id = {row.run.run_id: row for row in rows}
    jobs = []
    for name, row in by_id.items():
        trunk, workers = by_id.get(row.start.after), row.run.config.execution.workers
        delay = trunk.seconds_to(row.start.images) if trunk else 0.0
        width = workers * share if workers > 1 else 1
        jobs.append(Job(name, row.left, row.start.after, delay, width))
    return max((end for _, end in timetable(jobs, slots).values()), default=0.0)
