"""Train a scaling study of TarFlow on Ray, fit its laws and write the report.

This file may be sent alone to a machine that has the package installed, as `ray submit` does.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console, RenderableType
from tyro.conf import UseAppendAction, arg

from sweeps.design.declared import declare, resolve_or_explain, study_folder, with_kept, with_tags
from sweeps.design.presets import folder_of
from sweeps.design.study import Study, grid
from sweeps.driver import (
    Command,
    StudyOptions,
    console_for_people,
    default,
    drive,
    run_command_line,
    study_asked_for,
)
from sweeps.pricing import expect, selection
from sweeps.pricing.limits import limits_from
from sweeps.pricing.plan import LEFT_OUT, Plan, finished, make_plan
from sweeps.pricing.words import study_summary, table
from sweeps.searching.sampler_space import FEWEST_SAMPLES
from tarflow import human, record
from tarflow.config import RunConfig
from tarflow.errors import UserError

if TYPE_CHECKING:
    from analysis.study.findings import Findings
    from sweeps.running.batch import BatchContext, Outcome


@dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Train a scaling study of TarFlow on Ray, fit its laws and write the report.

    The plan and its price come first. To resume after any interruption, run the same command
    again: finished runs stay as they are. After the grid, a short search samples from its best run
    with other guidance, attention temperature and denoising. The study folder then holds
    report.html, the tables runs.parquet and evaluations.parquet, and best.yaml, the run to train
    next.

    Exit codes: 0 done, 1 some runs failed or did not end, 2 the command was wrong.
    """

    sampler_trials: Annotated[int, arg(metavar="M")] = 6
    """Sampler settings to try on the best run; 0 tries none."""
    seeds: Annotated[int | None, default("the study's", "N")] = None
    """Runs per point, with seeds 0, 1, ..."""
    max_hours: Annotated[float | None, default("no limit", "H")] = None
    """Start nothing that should end later than this from now on."""
    until: Annotated[str | None, default("no limit", "TIME")] = None
    """Start nothing that should end after 18:30, or 2026-11-27T06:00 (local time)."""
    max_device_hours: Annotated[
        float | None, arg(aliases=["--max-gpu-hours"]), default("no limit", "H")
    ] = None
    """Start nothing that would occupy devices longer in all: GPUs, or cores without them."""
    max_cost: Annotated[float | None, default("no limit", "USD")] = None
    """Start nothing that would cost more in all: device-hours times their price."""
    retry: Annotated[Literal["failed"] | None, default("none", "failed")] = None
    """Carry out again also the runs that failed by themselves, such as by diverging."""
    only: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="CONDITION")] = ()
    """Carry out only these runs for now: channels=32,64 or 'channels>=32,budget<1e10'."""
    skip: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="RUN")] = ()
    """Leave out a run for now, by its id or by its name in the plan."""
    features: Annotated[str | None, default("the study's", "NAME")] = None
    """Feature extractor of KID."""
    accelerator: Annotated[str | None, default("the study's, or this machine", "NAME")] = None
    """Accelerator to plan and price for, such as H100."""
    devices: Annotated[int | None, default("those of this machine; 8 accelerators", "N")] = None
    """Number of devices to plan with."""
    price: Annotated[float | None, default("the accelerator's list price", "USD")] = None
    """Price of a device-hour."""
    pin: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="RUN")] = ()
    """Mark a run that is quoted, by its id or name, instead of those marked before."""
    note: Annotated[str | None, default("the study's", "TEXT")] = None
    """What the study is for, shown on its page; another text replaces it, '' removes it."""
    next: Annotated[int | None, default("none", "K")] = None
    """Add K runs to a finished study, those that tell most about its best run at 4 times the
    largest budget for their time. The study keeps them."""
    list: bool = False
    """List every preset with its cost and the data it needs, then stop."""
    watch: bool = False
    """Show the progress of a study that another process drives, perhaps on another machine."""


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2."""
    run_command_line(Options, "python sweeps/scaling.py", scale)


def scale(options: Options) -> int:
    """Plan, confirm, run and report a study, or watch another process do so; return the exit code.

    Raises:
        UserError: For a user's mistake.
    """
    if options.list:
        from sweeps.pricing.listing import listing

        for line in listing(options.devices, options.accelerator, options.price):
            print(line)
        return 0
    if options.watch:
        from sweeps.final import existing_folder
        from sweeps.watching.watch import watch

        return watch(existing_folder(str(options.out or options.study)), console_for_people())
    return drive(options, Scaling(options))


class Scaling(Command):
    """The grid of a study, the sampler settings it asks for, and its report."""

    again = f"{Command.again}, with --retry failed to try again what failed"

    def __init__(self, options: Options) -> None:
        if options.sampler_trials < 0:
            raise UserError(f"sampler-trials is {options.sampler_trials}: it must be 0 or more")
        study = chosen_study(options)
        self.out = study_folder(options.out or folder_of(options.study), study)
        study, missing = resolve_or_explain(study, self.out, options.dry_run)
        self.study = with_tags(with_kept(study, self.out), options.tag)
        if options.note is not None:
            self.study = replace(self.study, note=" ".join(options.note.split()))
        self.plan_of = partial(
            make_plan,
            out=self.out,
            devices=options.devices,
            accelerator=options.accelerator,
            price=options.price,
        )
        if options.pin:
            pinned = selection.pinned(options.pin, grid(self.study), self.out)
            self.study = replace(self.study, pinned=pinned)
        chosen: list[RenderableType] = []
        if options.next is not None:
            from sweeps.pricing.additions import grow  # pandas and SciPy are needed from here on

            self.study, chosen = grow(self.study, self.out, options.next, self.plan_of)
        if not grid(self.study):
            raise UserError(
                f"{study.name} has no run: every one would see fewer than min_images "
                f"{study.min_images} or more than max_images {study.max_images}"
            )
        self.left_out = selection.left_out(grid(self.study), options.only, options.skip)
        self.retry = options.retry == "failed"
        self.plan = plan = self.price()
        self.gpus = plan.gpus
        self.limits = limits_from(
            time.time(),
            plan.price.hourly,
            max_hours=options.max_hours,
            until=options.until,
            max_device_hours=options.max_device_hours,
            max_cost=options.max_cost,
        )
        self.lines = [*chosen, table(plan), *study_summary(self.study, plan)]
        self.lines += selection.in_words(plan)
        self.trials = options.sampler_trials
        self.trials_left = trials_left(plan, self.trials, self.out)
        self.todo = bool(plan.left or plan.samplings or self.trials_left)
        if self.trials_left:
            self.extra_seconds = self.trials_left * longest_setting(plan) / plan.slots
            self.lines.append(
                f"then {self.trials_left} sampler settings of the best run, about "
                f"{human.seconds(self.extra_seconds)}"
            )
        self.lines += missing

    def price(self) -> Plan:
        """Return the price of the study."""
        return replace(self.plan_of(self.study, left_out=self.left_out), retry=self.retry)

    def begin(self) -> None:
        """Write study.yaml, and forecasts of the runs that --next has added."""
        declare(self.study, self.out)
        if self.study.added:
            from sweeps.pricing.additions import foretell_additions

            foretell_additions(self.study, self.out, self.plan)

    def run(self, context: "BatchContext") -> "Outcome":
        """Carry out the grid, the settings the study asks for, and the search for a better one."""
        from sweeps.running.runner import run_all, sample_all

        expected = {row.run.run_id: row.left for row in self.plan.rows}
        runs = [row.run for row in self.plan.rows if row.state == "done" or row in self.plan.left]
        outcome = run_all(runs, expected, context)
        context = replace(context, used=outcome.occupied)
        samplings = {
            task: seconds
            for task, seconds in self.plan.samplings.items()
            if finished(self.out, task.model_id)
        }
        if samplings and not outcome.stopped:
            outcome += sample_all(samplings, context)
            context = replace(context, used=outcome.occupied)
        if self.trials_left and not outcome.stopped:
            outcome = self.search(outcome, context)
        return outcome

    def search(self, outcome: "Outcome", context: "BatchContext") -> "Outcome":
        """Search for a better way to sample from the best run of the grid."""
        from sweeps.running.trainable import resources
        from sweeps.searching.choice import best_checkpoint
        from sweeps.searching.explore import search_settings

        best = best_checkpoint(self.out)
        if best is None:
            return outcome
        context.console.print(f"sampler settings of {best.label}, the best run:")
        needs = resources([row.run.config for row in self.plan.rows], context)
        space = replace(best, search=self.study.search)
        return outcome + search_settings([space], self.trials, needs, context)

    def report(self, outcome: "Outcome | None", wall: float, console: Console) -> bool:
        """Fit the laws, and write report.html and best.yaml."""
        from analysis.report.page import material_of, write_page  # pandas and Plotly are needed
        from analysis.study.findings import find
        from analysis.study.folder import read_study
        from analysis.study.forecast import foretell, read_ledger
        from sweeps.pricing.additions import settle
        from sweeps.searching.choice import write_best

        if outcome:
            spent = {
                "wall_seconds": wall,
                "device_seconds": outcome.device_seconds,
                "devices": outcome.devices,
                "device": outcome.device,
                "occupied": outcome.occupied,
                "price": self.plan.price.hourly,
                "expected": self.expected,
                "revised": self.revised(outcome),
                "stopped": outcome.stopped,
                "missing": list(outcome.missing),
                "left_out": [row.run.label for row in self.plan.rows if row.state == LEFT_OUT],
            }
            record.write_json(self.out / "outcome.json", spent)  # for the report
        settle(self.out)
        runs, evaluations = read_study(self.out)
        findings = find(runs, evaluations, forecasts=read_ledger(self.out))
        if len(findings.runs):
            config, why = self.next_run(findings, console)
            foretell(findings, config, self.out, "best")
            findings = replace(findings, forecasts=read_ledger(self.out))
        page = write_page(material_of(self.out, runs, evaluations, findings, seed=0))
        console.print(f"report: {page}", soft_wrap=True)
        if len(findings.runs):
            write_best(config, why, self.out, console)
        return True

    def next_run(self, findings: "Findings", console: Console) -> tuple[RunConfig, str]:
        """Return the run to train next with the sampler setting found best, and why."""
        from analysis.study.advice import recommend
        from sweeps.searching.choice import best_checkpoint, verdict

        advice = recommend(findings)
        config = replace(advice.config, execution=self.study.base.execution)
        best = best_checkpoint(self.out)
        if best and (judged := verdict(best, self.out)):
            console.print(judged.words, soft_wrap=True)
            return replace(config, sampler=judged.sampler), f"{advice.explanation}\n{judged.words}"
        return config, advice.explanation


def chosen_study(options: Options) -> Study:
    """Return the study that the options name, with the changes they make."""
    study = study_asked_for(options)
    if options.seeds is not None:
        study = replace(study, seeds=options.seeds)
    if options.features is not None:
        evaluation = replace(study.base.evaluation, features=options.features)
        study = replace(study, base=replace(study.base, evaluation=evaluation))
    return study


def trials_left(plan: Plan, trials: int, out: Path) -> int:
    """Count the sampler settings that have not been tried on the best run of a grid."""
    grid = [row for row in plan.rows if row.run.role == "grid"]
    if not any(row.run.config.evaluation.samples >= FEWEST_SAMPLES for row in grid):
        return 0
    if plan.left or not trials:
        return trials  # which run will be the best is not known yet
    from sweeps.searching.choice import best_checkpoint  # pandas and Optuna are needed now
    from sweeps.searching.journal import tried

    best = best_checkpoint(out)
    return max(0, trials - len(tried(best, out))) if best else 0


def longest_setting(plan: Plan) -> float:
    """Return the expected seconds of one guided setting of the most expensive run."""
    return max(
        expect.sampling_seconds(row.run.config, plan.rate, guided=True) for row in plan.rows
    )


if __name__ == "__main__":
    main()
