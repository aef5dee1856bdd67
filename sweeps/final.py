"""Train the final run of a study, read the test split once, and compare with what the law said.

This file may be sent alone to a machine that has the package installed, as `ray submit` does.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from tyro.conf import arg

from sweeps.driver import Command, default, drive, run_command_line, study_folder
from sweeps.driver import Options as CommonOptions
from sweeps.plan import finished, make_plan, summary, table
from sweeps.presets import PRESETS, load
from sweeps.study import PlannedRun, Size, Study, resolve_study, short
from tarflow import cost, record
from tarflow.config import RunConfig, from_dict, read_yaml, to_dict
from tarflow.errors import UserError
from tarflow.storage import expand, locate

if TYPE_CHECKING:
    from analysis.findings import Findings
    from analysis.forecast import Forecast
    from sweeps.batch import BatchContext, Outcome

THREAD_FLOPS = 1e9  # of a layer's step: with less work, threads cost more than they give


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Train the final run of a study and compare it with what the law predicted.

    The run is best.yaml of the study, or what the law recommends for --flops, or any --config.
    The prediction is written down before training starts. The run is then scored on the test
    split, which nothing else in a study ever reads. The study folder gets final/RUN_ID.json and a
    report of predicted against achieved.

    To resume after any interruption, run the same command again.

    Exit codes: 0 done, 1 the run failed or did not end, 2 the command was wrong.
    """

    study: Annotated[tyro.conf.Positional[str], arg(metavar="[STUDY]")] = "digits"
    """Folder of a study, or the preset it came from."""
    flops: Annotated[float | None, default("that of --config", "FLOPS")] = None
    """Training budget for which the law recommends a run."""
    config: Annotated[Path | None, default("best.yaml of the study", "FILE")] = None
    """Config to train."""


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 2."""
    run_command_line(Options, "python sweeps/final.py", final)


def final(options: Options) -> int:
    """Choose, predict, confirm, train and compare; return the exit code.

    Raises:
        UserError: For a user's mistake.
    """
    return drive(options, Final(options))


class Final(Command):
    """The final run of a study, predicted, trained once and compared."""

    def __init__(self, options: Options) -> None:
        from analysis.findings import find  # pandas and SciPy are needed from here on
        from analysis.forecast import forecast
        from analysis.study import read_study

        self.out = existing_folder(options.study)
        study = resolve_study(load(str(self.out)))
        findings = cache(lambda: find(*read_study(self.out)))  # takes seconds: mistakes come first
        config, why = chosen_config(options, self.out, findings)
        self.final_run = final_run(study, config)
        run_id = self.final_run.run_id
        row = finished(self.out, run_id)
        if row and row["split"] != "test":
            raise UserError(
                f"run {run_id} was trained already, to be compared on the {row['split']} "
                "split: a final run is a new one, ask for another --flops"
            )
        self.file = self.out / "final" / f"{run_id}.json"
        self.forecast = read_forecast(self.file) or forecast(
            findings(), self.final_run.config, run_id
        )
        self.todo = row is None
        self.gpus = self.final_run.config.execution.workers
        self.plan = make_plan(study, self.out, runs=[self.final_run])
        self.lines = [table(self.plan), *summary(self.plan), *why.splitlines()]
        self.lines += [self.forecast.in_words, *read_before(findings(), run_id)]

    def begin(self) -> None:
        """Write the prediction down."""
        record.write_json(self.file, to_dict(self.forecast))

    def run(self, context: "BatchContext") -> "Outcome":
        """Train the run."""
        from sweeps.runner import run_all

        cores = context.cluster.cpus // context.cluster.nodes
        expected = {row.run.run_id: row.left for row in self.plan.rows}
        return run_all([multi_threaded(self.final_run, cores)], expected, context)

    def report(self, outcome: "Outcome | None", wall: float, console: Console) -> bool:
        """Compare the run with the prediction, and write the report."""
        from analysis.forecast import achieved
        from analysis.report.page import write_report

        del outcome, wall
        if row := finished(self.out, self.final_run.run_id):
            compared = achieved(self.forecast, row)
            record.write_json(self.file, to_dict(compared))
            console.print(compared.verdict, soft_wrap=True)
        console.print(f"report: {write_report(self.out)}", soft_wrap=True)
        return True


def existing_folder(name: str) -> Path:
    """Return the folder of a study that has been run.

    Raises:
        UserError: If there is none.
    """
    path = expand(locate(name)).absolute()
    if not path.is_dir() and name in PRESETS:
        path = study_folder(None, load(name))
    if not (path / "study.yaml").is_file():
        raise UserError(
            f"{path} holds no study: run one first, with python sweeps/scaling.py "
            f"{shlex.quote(path.name)}"
        )
    return path


def chosen_config(
    options: Options, out: Path, findings: Callable[[], "Findings"]
) -> tuple[RunConfig, str]:
    """Return the config to train, and why this one.

    Raises:
        UserError: If there is none, if two were asked for, or if the budget is not positive.
    """
    from analysis.advice import check_budget, recommend

    if options.flops is not None:
        if options.config:
            raise UserError("give --flops or --config, not both")
        check_budget(options.flops)
        advice = recommend(findings(), options.flops)
        return advice.config, advice.explanation
    path = locate(options.config or out / "best.yaml")
    if not path.is_file():
        raise UserError(f"there is no {path}: give --flops, or --config FILE")
    return read_yaml(RunConfig, path), f"the run is that of {path}"


def final_run(study: Study, config: RunConfig) -> PlannedRun:
    """Return the final run: resolved, and scored on the test split.

    Raises:
        UserError: If the config does not fit its data.
    """
    model, budget = config.model, cost.run_flops(config)
    size = Size(channels=model.channels, blocks=model.blocks, layers=model.layers)
    config = replace(config, evaluation=replace(config.evaluation, split="test"))
    alone = replace(study, base=config, sizes=(size,), replicated=None, held_out=None)
    config = resolve_study(alone).base
    label = f"final-{size.label}-{short(budget)}"
    return PlannedRun(config=config, label=label, budget=budget, role="final")


def multi_threaded(run: PlannedRun, cores: int) -> PlannedRun:
    """Give a single-worker run the cores it can use, unless its config sets a number."""
    config = run.config
    if config.execution.threads or config.execution.workers > 1:
        return run
    layers = config.model.blocks * config.model.layers
    layer = cost.training_flops(config.model) * config.batch / layers
    threads = max(1, min(cores, int(layer / THREAD_FLOPS)))
    return replace(
        run, config=replace(config, execution=replace(config.execution, threads=threads))
    )


def read_forecast(file: Path) -> "Forecast | None":
    """Return the prediction of a run that was started before, or None."""
    from analysis.forecast import Forecast

    plain = record.read_json(file)
    return from_dict(Forecast, plain) if plain else None


def read_before(findings: "Findings", run_id: str) -> list[str]:
    """Return a warning if other runs of the study have read the test split already."""
    done = findings.finished
    others = done[(done["split"] == "test") & (done["run_id"] != run_id)]
    if others.empty:
        return []
    return [
        f"the test split has been read {len(others)} times in this study: the more often, the "
        "less it says about images not seen"
    ]


if __name__ == "__main__":
    main()
