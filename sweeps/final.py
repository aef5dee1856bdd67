"""Train the final run of a study, read the test split once, and compare with its forecast.

This file may be sent alone to a machine that has the package installed, as `ray submit` does.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import arg

from sweeps.design.declared import study_folder, with_tags
from sweeps.design.presets import PRESETS, load
from sweeps.design.study import PlannedRun, Size, Study, resolve_study, short
from sweeps.driver import Command, default, drive, run_command_line
from sweeps.driver import Options as CommonOptions
from sweeps.pricing.plan import Plan, finished, make_plan
from sweeps.pricing.words import summary, table
from tarflow import cost, record
from tarflow.commands.flags import Changes, flat
from tarflow.config import RunConfig, round_images
from tarflow.config_files import from_dict, read_yaml
from tarflow.errors import UserError
from tarflow.forecasts import Forecast, forecast_of, write_forecast, write_outcome
from tarflow.override import override
from tarflow.storage import expand, locate

if TYPE_CHECKING:
    from analysis.study.findings import Findings
    from sweeps.running.batch import BatchContext, Outcome

THREAD_FLOPS = 1e9  # of a layer's step: with less work, threads cost more than they give


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Train the final run of a study and compare it with what the law predicted.

    The run is best.yaml of the study, or what the law recommends for --flops, or any --config.
    Its forecast is written to forecasts.parquet before training starts, and is never changed. The
    run is scored on the validation split like the grid, and so is judged where the law was fitted.
    Then the test split is read, which nothing else in a study does: by this run, and by the best
    run of the grid, which tells how much the two splits differ. The report shows all forecasts of
    the study and what came out.

    To resume after any interruption, run the same command again.

    Exit codes: 0 done, 1 the run failed or did not end, 2 the command was wrong.
    """

    study: Annotated[tyro.conf.Positional[str], arg(metavar="[STUDY]")] = "digits"
    """Folder of a study, or the preset it came from."""
    flops: Annotated[float | None, default("that of --config", "FLOPS")] = None
    """Training budget for which the law recommends a run."""
    config: Annotated[Path | None, default("best.yaml of the study", "FILE")] = None
    """Config to train."""
    changes: Changes = ()
    """Change fields of that config, such as optim.lr=0.02 batch=32."""


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
        from analysis.study.findings import find  # pandas and SciPy are needed from here on
        from analysis.study.folder import read_study
        from analysis.study.forecast import forecast, read_ledger

        self.out = existing_folder(options.study)
        self.study = with_tags(resolve_study(load(str(self.out))), options.tag)
        ledger = read_ledger(self.out)
        findings = cache(lambda: find(*read_study(self.out), forecasts=ledger))  # takes seconds
        config, why = chosen_config(options, self.out, findings, ledger)
        if changes := flat(options.changes):
            config = override(config, changes)
            why += f"\nwith {', '.join(changes)}"
        self.final_run = final_run(self.study, config)
        run_id = self.final_run.run_id
        row = finished(self.out, run_id)
        if row and row["role"] != "final":
            raise UserError(
                f"run {run_id} was trained already, as role {row['role']}: a final run is a new "
                "one, ask for another --flops"
            )
        self.best = best_of_grid(self.out, findings())
        self.forecast = forecast_of(self.out, run_id) or forecast(
            findings(), self.final_run.config, "final"
        )
        self.new = row is None
        self.to_score: list[PlannedRun] = []
        if self.forecast.test_bpd is None:
            pair = [self.final_run, *([self.best] if self.best else [])]
            self.to_score = [run for run in pair if not test_scores(self.out, run)]
        self.todo = self.new or bool(self.to_score)
        self.gpus = self.final_run.config.execution.workers
        self.plan = self.price()
        self.lines = [table(self.plan), *summary(self.plan), *why.splitlines()]
        self.lines += [self.forecast.in_words, *read_before(ledger, run_id)]

    def price(self) -> Plan:
        """Return the price of the run."""
        return make_plan(self.study, self.out, runs=[self.final_run])

    def begin(self) -> None:
        """Write the forecast down."""
        if self.new:
            write_forecast(self.out, self.forecast)

    def run(self, context: "BatchContext") -> "Outcome":
        """Train the run, then read the test split."""
        from sweeps.running.runner import run_all, score_on_test

        cores = context.cluster.cpus // context.cluster.nodes
        expected = {row.run.run_id: row.left for row in self.plan.rows}
        outcome = run_all([multi_threaded(self.final_run, cores)], expected, context)
        if not outcome.stopped and finished(self.out, self.final_run.run_id) and self.to_score:
            outcome += score_on_test(self.to_score, context)
        return outcome

    def report(self, outcome: "Outcome | None", wall: float, console: Console) -> bool:
        """Compare the run with its forecast, and write the report."""
        from analysis.report.page import write_report
        from analysis.study.forecast import calibration

        del outcome, wall
        row = finished(self.out, self.final_run.run_id)
        if row:
            test, shift = test_scores(self.out, self.final_run), test_shift(self.out, self.best)
            if compared := write_outcome(self.out, row, test, shift):
                console.print(compared.verdict, soft_wrap=True)
            if overall := calibration(self.out):
                console.print(str(overall), soft_wrap=True)
        console.print(f"report: {write_report(self.out)}", soft_wrap=True)
        if row:
            study = shlex.quote(str(self.out))
            console.print(f"next budget: python -m analysis best {study}", soft_wrap=True)
        return True


def existing_folder(name: str) -> Path:
    """Return the folder of a study that has been run.

    Raises:
        UserError: If there is none.
    """
    path = expand(locate(name)).absolute()
    if not path.is_dir() and name in PRESETS:
        path = study_folder(None, load(name))
    if path.is_file():
        raise UserError(f"{path} is a file: name the folder of a study, such as {path.parent}")
    if not (path / "study.yaml").is_file():
        raise UserError(
            f"{path} holds no study: run one first, with python sweeps/scaling.py "
            f"{shlex.quote(path.name)}"
        )
    return path


def chosen_config(
    options: Options, out: Path, findings: Callable[[], "Findings"], ledger: Sequence[Forecast]
) -> tuple[RunConfig, str]:
    """Return the config to train, and why this one.

    Raises:
        UserError: If there is none, if two were asked for, or if the budget is not positive.
    """
    from analysis.study.advice import check_budget, recommend

    if options.flops is not None:
        if options.config:
            raise UserError("give --flops or --config, not both")
        check_budget(options.flops)
        if config := started_before(out, ledger, options.flops):
            return config, "the run is the one that this budget has asked for before"
        advice = recommend(findings(), options.flops)
        return advice.config, advice.explanation
    path = locate(options.config or out / "best.yaml")
    if not path.is_file():
        raise UserError(f"there is no {path}: give --flops, or --config FILE")
    return read_yaml(RunConfig, path), f"the run is that of {path}"


def started_before(out: Path, ledger: Sequence[Forecast], flops: float) -> RunConfig | None:
    """Return the config of a run of a budget that was started before, so that it is resumed.

    The laws may have read it since, and may recommend another one now.
    """
    started = (
        from_dict(RunConfig, json.loads(item.config))
        for item in ledger
        if item.config and item.origin != "next"
        if (out / "runs" / item.run_id / "config.yaml").is_file()
    )
    for config in started:
        images = flops / cost.training_flops(config.model)
        if config.images == round_images(images, config.batch):
            return config
    return None


def final_run(study: Study, config: RunConfig) -> PlannedRun:
    """Return the final run: resolved, and scored on the validation split like the grid.

    Raises:
        UserError: If the config does not fit its data.
    """
    model, budget = config.model, cost.run_flops(config)
    size = Size(channels=model.channels, blocks=model.blocks, layers=model.layers)
    config = replace(config, evaluation=replace(config.evaluation, split="validation"))
    alone = replace(study, base=config, sizes=(size,), replicated=None, held_out=None)
    config = resolve_study(alone).base
    label = f"final-{size.label}-{short(budget)}"
    return PlannedRun(config=config, label=label, budget=budget, role="final", tags=study.tags)


def multi_threaded(run: PlannedRun, cores: int) -> PlannedRun:
    """Give a single-worker run the cores it can use, unless its config sets a number."""
    config = run.config
    if config.execution.threads or config.execution.workers > 1:
        return run
    layers = config.model.total_layers
    layer = cost.training_flops(config.model) * config.batch / layers
    threads = max(1, min(cores, int(layer / THREAD_FLOPS)))
    return replace(
        run, config=replace(config, execution=replace(config.execution, threads=threads))
    )


def best_of_grid(out: Path, findings: "Findings") -> PlannedRun | None:
    """Return the best run of the largest budget of the grid; None if its model is not there."""
    from analysis.laws.allocation import best_run
    from analysis.study.rows import GRID, read_config

    runs = findings.runs[findings.runs["role"].isin(GRID)]
    if runs.empty:
        return None
    row = best_run(runs)
    if not (out / "runs" / row["run_id"] / "model.safetensors").is_file():
        return None
    return PlannedRun(config=read_config(row), label=row["label"], budget=row["flops"])


def test_scores(out: Path, run: PlannedRun) -> dict[str, Any] | None:
    """Return what a run scored on the test split, or None."""
    scores: dict[str, Any] | None = record.read_json(out / "runs" / run.run_id / "test.json")
    return scores


def test_shift(out: Path, best: PlannedRun | None) -> float | None:
    """Return how many more bits the best run of a grid needs on test than on validation images."""
    row = finished(out, best.run_id) if best else None
    test = test_scores(out, best) if best else None
    return float(test["bpd"] - row["bpd"]) if row and test else None


def read_before(ledger: Sequence[Forecast], run_id: str) -> list[str]:
    """Return a warning if other runs of the study have read the test split already."""
    others = sum(item.test_bpd is not None and item.run_id != run_id for item in ledger)
    if not others:
        return []
    return [
        f"the test split has been read for {others} other final run{'s' * (others > 1)} of this "
        "study: the more often, the less it says about images not seen"
    ]


if __name__ == "__main__":
    main()
