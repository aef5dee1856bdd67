"""The price of a study before launch: runs, FLOPs, memory, seconds, money, what is done."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis import human
from sweeps import expect, hardware
from sweeps.branches import Start, starts
from sweeps.expect import Rate, Seconds
from sweeps.settings import Sampling, to_sample
from sweeps.study import Planned, Study, grid, left_out
from sweeps.timetable import Job, timetable
from tarflow import cost, record
from tarflow.errors import UserError

STARTING_SECONDS = 12.0  # Ray, imports and the report of a whole study


@dataclass(frozen=True)
class Line:
    """One run of the plan."""

    run: Planned
    state: str  # done, partly, failed or to do
    seconds: Seconds  # of the whole run
    left: float  # seconds still to spend
    epochs: float
    start: Start
    saved: float  # training FLOPs that a trunk has spent, or will have

    def seconds_to(self, images: int) -> float:
        """Return after how many seconds of its own the run has come so far."""
        return self.seconds.train * (images - self.start.images) / self.run.config.images

    @property
    def expected(self) -> float:
        """Seconds of the run without what a trunk is trained on."""
        own = 1 - self.start.inherited / self.run.config.images
        return self.seconds.train * own + self.seconds.evaluate

    @property
    def device_seconds(self) -> float:
        """Seconds still to spend, times the devices that the run holds."""
        return self.left * self.run.config.execution.workers


@dataclass(frozen=True)
class Plan:
    """What a study will cost."""

    lines: tuple[Line, ...]  # longest expected first
    rate: Rate
    devices: int  # that runs are spread over
    price: float  # US dollars per device-hour; 0 is not priced
    corrected_by: int  # finished runs that corrected the expectation
    spread: float  # relative, of one run's expected seconds
    samplings: Mapping[Sampling, float] = field(default_factory=dict)  # left, and their seconds

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole study."""
        return sum(cost.run_flops(line.run.config) for line in self.lines)

    @property
    def saved(self) -> float:
        """Training FLOPs of the whole study that need not be spent, as runs share them."""
        return sum(line.saved for line in self.lines)

    @property
    def device_hours(self) -> float:
        """Device-hours still to spend."""
        runs = sum(line.device_seconds for line in self.lines)
        return (runs + sum(self.samplings.values())) / self.rate.sharing / 3600

    @property
    def money(self) -> float:
        """US dollars still to spend."""
        return self.device_hours * self.price

    @property
    def wall_seconds(self) -> float:
        """Expected seconds from start to end on the devices."""
        if not self.left and not self.samplings:
            return 0.0
        sampling = sum(self.samplings.values()) / self.slots
        return STARTING_SECONDS + wall_seconds(self.left, self.slots) + sampling

    @property
    def slots(self) -> int:
        """Runs at a time."""
        return self.devices * self.rate.sharing

    @property
    def gpus(self) -> int:
        """Accelerators that the plan counts on."""
        return self.devices if self.rate.accelerator else 0

    @property
    def room(self) -> float:
        """Bytes of memory of one device; infinite for cores, which share this machine's."""
        name = self.rate.accelerator
        return cost.ACCELERATORS[name].memory if name else math.inf

    @property
    def left(self) -> tuple[Line, ...]:
        """The runs that are not done."""
        return tuple(line for line in self.lines if line.state != "done")


def make_plan(
    study: Study,
    out: Path,
    devices: int | None = None,
    accelerator: str | None = None,
    price: float | None = None,
    runs: Sequence[Planned] | None = None,
) -> Plan:
    """Price the runs of a study, given what its folder already holds.

    Args:
        study: resolved.
        out: the folder of the study; it need not exist.
        devices: to spread runs over; by default this machine's GPUs, or else its cores; of an
            accelerator that is asked for 8, or as many as a run wants.
        accelerator: a name of `cost.ACCELERATORS`; by default the study's, or this machine.
        price: US dollars per device-hour; by default the list price of what is asked for.
        runs: to price; by default the grid of the study.

    Raises:
        UserError: if the accelerator is not known, or a number makes no sense.
    """
    if devices is not None and devices < 1:
        raise UserError(f"devices is {devices}: it must be at least 1")
    asked = accelerator or study.accelerator
    here = [] if study.base.execution.device == "cpu" else hardware.accelerators()
    device = asked or (here[0] if here else "")
    precision = study.base.precision
    samplings = to_sample(study, grid(study), out) if runs is None else []
    runs = grid(study) if runs is None else runs
    together = expect.sharing(run.config for run in runs)
    rate = expect.accelerator_rate(device, precision, together) if device else expect.core_rate()
    listed = cost.ACCELERATORS[asked].price if asked else 0.0
    largest = max((run.config.execution.workers for run in runs), default=1)
    folders = [path.name for path in (out / "runs").glob("*")]
    rows = {name: row for name in sorted(folders) if (row := finished(out, name))}
    train, evaluate, spread = expect.correction(rows.values(), study.validation_images, rate)
    begin = starts([run for run in runs if run.run_id not in rows], out)
    lines = []
    for run in runs:
        raw = expect.expected_seconds(run.config, study.validation_images, rate)
        seconds = Seconds(raw.train * train, raw.evaluate * evaluate)
        epochs = run.config.images / study.train_images
        if row := rows.get(run.run_id):
            saved = row["flops"] - row["flops_marginal"]
            start = Start(row["images"], round(row["images"] * saved / row["flops"]))
            lines.append(Line(run, "done", seconds, 0.0, epochs, start, saved))
            continue
        start = begin[run.run_id]
        left = seconds.train * (1 - start.images / run.config.images) + seconds.evaluate
        saved = float(cost.training_flops(run.config.model)) * start.inherited
        lines.append(Line(run, state(out, run, start), seconds, left, epochs, start, saved))
    return Plan(
        lines=tuple(sorted(lines, key=lambda line: -line.seconds.total)),
        rate=rate,
        devices=devices or (max(8, largest) if asked else len(here) or hardware.cores()),
        price=listed if price is None else price,
        corrected_by=len(rows),
        spread=spread,
        samplings={each: sampling_seconds(each, rate) * evaluate for each in samplings},
    )


def sampling_seconds(wanted: Sampling, rate: Rate) -> float:
    """Expect the seconds of one more way to sample from a run; guidance needs two passes."""
    return expect.drawing_seconds(wanted.config, rate) * (2 if wanted.sampler.guidance else 1)


def finished(out: Path, run_id: str) -> dict[str, Any] | None:
    """Return the row of a run that is done, or None."""
    result = record.read_result(out / "runs" / run_id)
    return result["run"] if result and result["run"]["status"] == "done" else None


def state(out: Path, run: Planned, start: Start) -> str:
    """Return the state of a run that is not done."""
    if start.images > start.inherited:
        return "partly"
    return "failed" if record.read_result(out / "runs" / run.run_id) else "to do"


def wall_seconds(lines: Sequence[Line], devices: int) -> float:
    """Return the end of the last run when each starts, longest first, as devices fall free.

    A branch does not start before its trunk has come so far; runs of several workers come last.

    >>> wall_seconds([], 2)
    0.0
    """
    named = {line.run.run_id: line for line in lines}
    large = sum(line.left for line in lines if line.run.config.execution.workers > 1)
    jobs = []
    for name, line in named.items():
        if line.run.config.execution.workers == 1:
            trunk = named.get(line.start.after)
            delay = trunk.seconds_to(line.start.images) if trunk else 0.0
            jobs.append(Job(name, line.left, line.start.after, delay))
    return max((end for _, end in timetable(jobs, devices).values()), default=0.0) + large


def table(plan: Plan) -> Table:
    """Lay out every run of a plan for the terminal."""
    columns = ("run", "id", "params", "images", "epochs", "FLOPs", "memory", "expected", "state")
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        shown.add_column(name, justify="left" if index in (0, 1, 8) else "right", no_wrap=True)
    for line in plan.lines:
        config = line.run.config
        memory = human.count(cost.memory(config, plan.room).total) + "B"
        shown.add_row(
            line.run.label,
            line.run.run_id,
            human.count(cost.params(config.model)),
            human.count(config.images),
            f"{line.epochs:.3g}",
            f"{cost.run_flops(config):.2g}",
            memory + " sharded" * cost.sharded(config, plan.room),
            human.seconds(line.expected),
            line.state + ", branch" * (line.start.inherited > 0),
        )
    return shown


def summary(study: Study, plan: Plan) -> list[str]:
    """Say in a few lines what the grid of a study comes to."""
    lines = comes_to(plan)
    if skipped := left_out(study):
        lines.insert(
            2,
            f"left out of what was asked for, {skipped}: fewer than {study.min_images} "
            f"or more than {study.max_images} images",
        )
    return lines


def comes_to(plan: Plan) -> list[str]:
    """Say in a few lines what the runs of a plan cost."""
    device = plan.rate.accelerator or "core"
    count, done = len(plan.lines), len(plan.lines) - len(plan.left)
    lines = [
        f"{count} run{'s' * (count != 1)} ({done} done), {plan.flops:.2g} training FLOPs; to do: "
        f"{plan.device_hours:.3g} {device}-hours"
        + (f", about ${plan.money:,.2f} at ${plan.price:g} an hour" if plan.price else "")
        + f", {human.seconds(plan.wall_seconds)} on {plan.devices} {device}s",
        f"seconds from a {plan.rate.source}"
        + (f", corrected by {plan.corrected_by} finished runs" if plan.corrected_by else "")
        + (
            "; nothing measured yet, the first finished runs will correct it"
            if plan.rate.accelerator and not plan.corrected_by
            else f"; a single run is within about {plan.spread:.0%}"
        ),
    ]
    if plan.saved:
        share = human.percent(plan.saved / plan.flops)
        lines.insert(1, f"shared trunks save {plan.saved:.2g} of these FLOPs, {share}")
    if plan.samplings:
        spent = sum(plan.samplings.values())
        lines.insert(
            1,
            f"of that, {len(plan.samplings)} more ways to sample from finished runs: "
            f"{human.seconds(spent / plan.slots)}",
        )
    if plan.rate.accelerator:
        sharded = [x.run.label for x in plan.left if cost.sharded(x.run.config, plan.room)]
        if sharded:
            more = f" and {len(sharded) - 1} more" * (len(sharded) > 1)
            lines.append(f"sharded: {sharded[0]}{more}; no {device} holds their whole state")
        needs = [(x.run.label, cost.memory(x.run.config, plan.room)) for x in plan.left]
        tight = [label for label, memory in needs if memory.total > plan.room]
        if tight:
            lines.append(
                f"{len(tight)} runs need more memory than one {device} has, {tight[0]} the first: "
                "set base.execution.micro_batch lower"
            )
    return lines
