"""Train the final run of a study, read the test split once, and compare with what the law said.

This file may be sent alone to a machine that has the package installed (`ray submit` does so).
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import arg

from analysis.advice import check_budget, recommend
from analysis.findings import Findings, find
from analysis.forecast import Forecast, achieved, forecast
from analysis.report.page import write_report
from analysis.study import read_study
from sweeps import commands
from sweeps.lease import lease
from sweeps.plan import comes_to, finished, make_plan, table
from sweeps.presets import PRESETS, load
from sweeps.study import Planned, Size, Study, resolve, short
from tarflow import cost, record
from tarflow.config import RunConfig, from_dict, read_yaml, to_dict
from tarflow.errors import UserError
from tarflow.storage import locate

THREAD_FLOPS = 1e9  # of a layer's step: with less to do, threads cost more than they give


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the final run of a study and compare it with what the law predicted.

    The run is best.yaml of the study; with --flops, what the law recommends for that budget; with
    --config, any other config. What the law predicts is written down before training begins. The
    run is then scored on the test split, which nothing else of a study ever reads, and the study
    folder gets final/<run id>.json and a report with predicted against achieved.

    To resume after any interruption, run the same command again. Exit codes: 0 done, 1 the run
    failed, 2 the command was wrong.
    """

    study: tyro.conf.Positional[str] = "digits"  # folder of a study, or the preset it is of
    flops: Annotated[float | None, arg(metavar="FLOPS")] = None  # training budget for the law
    config: Annotated[Path | None, arg(metavar="FILE")] = None  # by default best.yaml
    dry_run: bool = False  # print plan and prediction and stop
    yes: bool = False  # do not ask before an expensive run


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2."""
    commands.command(Options, "python sweeps/final.py", final)


def final(options: Options) -> int:
    """Choose, predict, ask, train and compare.

    Returns:
        The exit code: 0, or 1 if the run failed.

    Raises:
        UserError: for a user's mistake.
    """
    out = folder(options.study)
    study = resolve(load(str(out)))
    fits = cache(lambda: find(*read_study(out)))  # seconds long: not before mistakes are told
    config, why = chosen(options, out, fits)
    run = planned(study, config)
    before = finished(out, run.run_id)
    if before and before["split"] != "test":
        raise UserError(
            f"run {run.run_id} was trained already, to be compared on the {before['split']} "
            "split: a final run is a new one, ask for another --flops"
        )
    said = read_forecast(out, run) or forecast(fits(), run.config, run.run_id)
    plan = make_plan(study, out, runs=[run])
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(plan))
    for line in [*comes_to(plan), *why.splitlines(), said.in_words, *read_before(fits(), run)]:
        console.print(line, soft_wrap=True)
    if options.dry_run:
        return 0
    if not commands.agreed(options.yes, commands.expensive(plan)):
        return 0
    expected = {line.run.run_id: line.left for line in plan.lines}
    return carry_out(run, said, expected, out, console)


def folder(name: str) -> Path:
    """Return the folder of a study.

    Raises:
        UserError: if it holds none.
    """
    path = locate(name).expanduser().absolute()
    if not path.is_dir() and name in PRESETS:
        path = commands.study_folder(None, load(name))
    if not (path / "study.yaml").is_file():
        raise UserError(
            f"{path} holds no study: run one first, with python sweeps/scaling.py {path.name}"
        )
    return path


def chosen(options: Options, out: Path, fits: Callable[[], Findings]) -> tuple[RunConfig, str]:
    """Return the config to train, and why this one.

    Raises:
        UserError: if there is none, two were asked for, or the budget is not positive.
    """
    if options.flops is not None:
        if options.config:
            raise UserError("give --flops or --config, not both")
        check_budget(options.flops)
        found = recommend(fits(), options.flops)
        return found.config, found.explanation
    path = locate(options.config or out / "best.yaml")
    if not path.is_file():
        raise UserError(f"there is no {path}: give --flops, or --config FILE")
    return read_yaml(RunConfig, path), f"the run is that of {path}"


def planned(study: Study, config: RunConfig) -> Planned:
    """Return the final run: resolved, and scored on the test split.

    Raises:
        UserError: if the config does not fit its data.
    """
    model, budget = config.model, cost.run_flops(config)
    size = Size(channels=model.channels, blocks=model.blocks, layers=model.layers)
    alone = replace(study, base=config, sizes=(size,), replicated=None, held_out=None)
    config = resolve(alone).base
    config = replace(config, evaluation=replace(config.evaluation, split="test"))
    label = f"final-{size.label}-{short(budget)}"
    return Planned(config=config, label=label, budget=budget, role="final")


def carry_out(
    run: Planned, said: Forecast, expected: dict[str, float], out: Path, console: Console
) -> int:
    """Train the run unless it is done, and compare it with the forecast.

    Returns:
        The exit code: 0, or 1 if the run failed.
    """
    from sweeps import machines, runner  # Ray is needed from here on only

    started = time.monotonic()
    code = 0
    with lease(out) as held:
        record.write_json(path_of(out, run), to_dict(said))
        if not finished(out, run.run_id):
            with machines.cluster(run.config.execution.workers) as where:
                wide = spread(run, where.cpus // where.nodes)
                outcome = runner.run_all([wide], out, expected, where, held, console)
            code = commands.tell(outcome, time.monotonic() - started, out, console)
        record.gather(out)
        if row := finished(out, run.run_id):
            said = achieved(said, row)
            record.write_json(path_of(out, run), to_dict(said))
            console.print(said.verdict, soft_wrap=True)
        console.print(f"report: {write_report(out)}", soft_wrap=True)
    return code


def spread(run: Planned, cores: int) -> Planned:
    """Give a run that goes on alone the cores it can use, unless it says how many."""
    config = run.config
    if config.execution.threads or config.execution.workers > 1:
        return run
    layers = config.model.blocks * config.model.layers
    layer = cost.training_flops(config.model) * config.batch / layers
    threads = max(1, min(cores, int(layer / THREAD_FLOPS)))
    return replace(
        run, config=replace(config, execution=replace(config.execution, threads=threads))
    )


def path_of(out: Path, run: Planned) -> Path:
    """Return the file of the forecast of a run."""
    return out / "final" / f"{run.run_id}.json"


def read_forecast(out: Path, run: Planned) -> Forecast | None:
    """Return what was predicted of a run when it was begun, if it was."""
    plain = record.read_json(path_of(out, run))
    return from_dict(Forecast, plain) if plain else None


def read_before(findings: Findings, run: Planned) -> list[str]:
    """Say that the test split is no longer fresh, if it is not."""
    done = findings.finished
    others = done[(done["split"] == "test") & (done["run_id"] != run.run_id)]
    if others.empty:
        return []
    return [
        f"the test split has been read {len(others)} times in this study: the more often, the "
        "less it says about images not seen"
    ]


if __name__ == "__main__":
    main()
