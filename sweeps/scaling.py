"""Train a scaling study of TarFlow on Ray, fit its laws and write the report.

This file may be sent alone to a machine that has the package installed (`ray submit` does so).
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from tyro.conf import arg

from analysis import human
from sweeps import commands
from sweeps.declaration import declare
from sweeps.lease import lease
from sweeps.plan import Plan, finished, make_plan, sampling_seconds, summary, table
from sweeps.presets import load
from sweeps.settings import Sampling
from sweeps.space import FEWEST_SAMPLES
from sweeps.study import Planned, Study
from tarflow import record
from tarflow.config import SamplerConfig, to_yaml
from tarflow.errors import UserError

if TYPE_CHECKING:
    from sweeps.explore import Place
    from sweeps.watch import Outcome


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a scaling study of TarFlow on Ray, fit its laws and write the report.

    The plan and its price come first. To resume after any interruption, run the same command
    again: finished runs stay as they are. After the grid, a short search samples from its best run
    with other guidance, attention temperature and denoising. The study folder then holds
    report.html, the tables runs.parquet and evaluations.parquet, and best.yaml, the next run to
    train.

    Studies: digits (real MNIST, minutes on two cores), tiny (half a minute, for trying things
    out), cifar10 and imagenet64 (accelerators); or a YAML file, such as study.yaml of a study.

    Exit codes: 0 done, 1 some runs failed, 2 the command was wrong.
    """

    study: tyro.conf.Positional[str] = "digits"  # preset, YAML file or folder of a study
    out: Annotated[Path | None, arg(metavar="DIR")] = None  # or s3://...; default studies/<name>
    sampler_trials: Annotated[int, arg(metavar="M")] = 6  # sampler settings of the best run
    dry_run: bool = False  # print the plan and stop
    yes: bool = False  # do not ask before an expensive study
    seeds: Annotated[int | None, arg(metavar="N")] = None  # of every point
    max_hours: Annotated[float | None, arg(metavar="H")] = None  # stop then; resume as above
    features: Annotated[str | None, arg(metavar="NAME")] = None  # feature extractor of KID
    accelerator: Annotated[str | None, arg(metavar="NAME")] = None  # to price, such as H100
    devices: Annotated[int | None, arg(metavar="N")] = None  # to plan with
    price: Annotated[float | None, arg(metavar="USD")] = None  # of a device-hour


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2."""
    commands.command(Options, "python sweeps/scaling.py", scale)


def scale(options: Options) -> int:
    """Plan, ask, run and report a study.

    Returns:
        The exit code: 0, or 1 if some runs failed.

    Raises:
        UserError: for a user's mistake.
    """
    if options.max_hours is not None and options.max_hours <= 0:
        raise UserError(f"max-hours is {options.max_hours:g}: it must be positive")
    if options.sampler_trials < 0:
        raise UserError(f"sampler-trials is {options.sampler_trials}: it must be 0 or more")
    study = chosen(options)
    out = commands.study_folder(options.out, study)
    study, missing = commands.resolved(study, options.dry_run)
    plan = make_plan(study, out, options.devices, options.accelerator, options.price)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(plan))
    for line in summary(study, plan):
        console.print(line)
    seconds = 0.0
    if settings := to_try(plan, options.sampler_trials, out):
        seconds = settings * setting_seconds(plan) / plan.slots
        console.print(
            f"then {settings} sampler settings of the best run, about {human.seconds(seconds)}"
        )
    if missing:
        console.print(f"the data are not here yet ({missing}), so run ids are provisional")
    if options.dry_run:
        return 0
    if not commands.agreed(options.yes, commands.expensive(plan, seconds)):
        return 0
    return carry_out(study, plan, out, options, console)


def to_try(plan: Plan, trials: int, out: Path) -> int:
    """Count the sampler settings that the best run of a grid still lacks."""
    grid = [line for line in plan.lines if line.run.role == "grid"]
    if not any(line.run.config.evaluation.samples >= FEWEST_SAMPLES for line in grid):
        return 0
    if plan.left or not trials:
        return trials  # which run will be the best is not known yet
    from sweeps.journal import begun  # pandas and Optuna are needed from here on only
    from sweeps.tuned import best_checkpoint

    best = best_checkpoint(out)
    return max(0, trials - len(begun(best, out))) if best else 0


def setting_seconds(plan: Plan) -> float:
    """Expect the seconds of one guided setting of the dearest run."""
    guided = (Sampling(line.run, SamplerConfig(guidance=1.0)) for line in plan.lines)
    return max(sampling_seconds(each, plan.rate) for each in guided)


def carry_out(study: Study, plan: Plan, out: Path, options: Options, console: Console) -> int:
    """Run what is not done yet, write the tables and the report, and say how it went.

    Returns:
        The exit code: 0, or 1 if some runs failed or are left.
    """
    started = time.monotonic()
    limit = started + 3600 * options.max_hours if options.max_hours is not None else None
    with lease(out) as held:
        declare(study, out)
        outcome = None
        if plan.left or plan.samplings or to_try(plan, options.sampler_trials, out):
            from sweeps import machines  # Ray is needed from here on only
            from sweeps.explore import Place

            with machines.cluster(plan.gpus) as where:
                place = Place(out, where, held, console, seed=0, limit=limit)
                outcome = train(plan, place)
                if not outcome.stopped and to_try(plan, options.sampler_trials, out):
                    outcome = try_settings(outcome, plan, options.sampler_trials, place)
        record.gather(out)
        if outcome:
            note_overhead(outcome, time.monotonic() - started, out)
        report(study, out, console)
    if outcome is None:
        console.print("every run is done already")
        return 0
    return commands.tell(outcome, time.monotonic() - started, out, console)


def train(plan: Plan, place: "Place") -> "Outcome":
    """Carry out the runs, then sample from them in the other ways that the study asks for."""
    from sweeps import runner, sampling

    outcome = runner.run_all(
        [line.run for line in plan.lines],
        place.out,
        {line.run.run_id: line.left for line in plan.lines},
        place.where,
        place.held,
        place.console,
        place.limit,
    )
    ready = [each for each in plan.samplings if trained(each.run, place.out)]
    if ready and not outcome.stopped:
        expected = {each.run_id: seconds for each, seconds in plan.samplings.items()}
        outcome += sampling.sample_all(ready, expected, place)
    return outcome


def try_settings(outcome: "Outcome", plan: Plan, trials: int, place: "Place") -> "Outcome":
    """Search for a better way to sample from the best run of the grid."""
    from sweeps.sampling import search_settings
    from sweeps.trainable import resources, single_threaded
    from sweeps.tuned import best_checkpoint

    best = best_checkpoint(place.out)
    if best is None:
        return outcome
    place.console.print(f"sampler settings of {best.label}, the best run:")
    needs = resources([single_threaded(line.run) for line in plan.lines], place.where.gpus)
    return outcome + search_settings([best], trials, needs, place)


def trained(run: Planned, out: Path) -> bool:
    """Tell whether there is a model to sample from."""
    return finished(out, run.run_id) is not None


def note_overhead(outcome: "Outcome", wall: float, out: Path) -> None:
    """Write how much of the devices' time was spent in runs, for the report."""
    spent = {
        "wall_seconds": wall,
        "device_seconds": outcome.device_seconds,
        "devices": outcome.devices,
        "device": outcome.device,
    }
    record.write_json(out / "outcome.json", spent)


def report(study: Study, out: Path, console: Console) -> None:
    """Fit the laws of what has been run, and write report.html and best.yaml."""
    from analysis.advice import recommend  # pandas and Plotly are needed from here on only
    from analysis.findings import find
    from analysis.report.page import render
    from analysis.study import read_study
    from sweeps.tuned import best_checkpoint, verdict

    table, evaluations = read_study(out)
    findings = find(table, evaluations)
    page, best = out / "report.html", out / "best.yaml"
    record.write_text(page, render(out, table, evaluations, findings, seed=0))
    console.print(f"report: {page}", soft_wrap=True)
    if len(findings.runs):
        found = recommend(findings)
        config, why = replace(found.config, execution=study.base.execution), found.explanation
        searched = best_checkpoint(out)
        if searched and (judged := verdict(searched, out)):
            config, why = replace(config, sampler=judged.sampler), f"{why}\n{judged.words}"
            console.print(judged.words, soft_wrap=True)
        train = f"python -m tarflow train {best}"
        record.write_text(best, to_yaml(config, f"{why}\nTrain it: {train}"))
        console.print(f"train next: {train}", soft_wrap=True)


def chosen(options: Options) -> Study:
    """Return the study that is asked for, with what the flags change."""
    study = load(options.study)
    if options.seeds is not None:
        study = replace(study, seeds=options.seeds)
    if options.features is not None:
        evaluation = replace(study.base.evaluation, features=options.features)
        study = replace(study, base=replace(study.base, evaluation=evaluation))
    return study


if __name__ == "__main__":
    main()
