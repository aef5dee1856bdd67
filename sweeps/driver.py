"""One way to drive a study, for all commands: plan, confirm, lease, run, collect, report.

A command says what it plans, runs and reports (`Command`); the rest is here. Ray, torch, pandas
and Plotly are imported only when work starts, so that `--help` and `--dry-run` are fast.
"""

import inspect
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import tyro
from rich.console import Console, RenderableType
from tyro.conf import arg

from sweeps.design.presets import PRESETS, description, load
from sweeps.design.study import Study, override_study
from sweeps.failures import by_machine, transient
from sweeps.lease import lease
from sweeps.pricing.limits import NO_LIMITS, WOULD_PASS, Limits
from sweeps.pricing.plan import STARTING_SECONDS, Plan
from sweeps.watching.progress import FIRST_RUNS
from tarflow import human, record
from tarflow.command_line import parse
from tarflow.commands.flags import Changes, Tags, flat
from tarflow.errors import UserError, check_flags, exit_code_of
from tarflow.latent.files import check_decodes
from tarflow.mirror.mirror import Mirror, mirroring
from tarflow.storage import home_folder

if TYPE_CHECKING:
    from sweeps.running.batch import BatchContext, Outcome

EXPENSIVE_SECONDS = 1800.0  # expected wall time that is worth a question
EXPENSIVE_MONEY = 5.0  # US dollars that are worth a question
RULE_OF_SET = (
    "Use --set for any field by its name in study.yaml, such as seeds=2 or budgets='[1e9, 3e9]', "
    "and any field of the base run by its path in the config of a run, such as optim.lr=0.02. "
    "Values are YAML. What the grid derives (channels, blocks, layers, images, seed) is set by "
    "sizes, budgets and seeds."
)


def default(words: str, metavar: str) -> Any:
    """Describe an option whose default follows from others, for its help text."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {words})")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every command."""

    dry_run: bool = False
    """Print the plan and its price, then stop."""
    yes: bool = False
    """Start an expensive plan without asking."""
    tag: Tags = ()
    """Word to find the runs of this command by, kept in their rows."""
    changes: Changes = ()
    """Change fields of the study or of its base run, such as seeds=2 optim.lr=0.02."""
    quiet: bool = False
    """Print only results and errors."""
    tracker: Annotated[
        Literal["tensorboard", "wandb", "mlflow", "trackio"] | None, default("none", "NAME")
    ] = None
    """Also show runs, as they train, and laws in tensorboard, wandb, mlflow or trackio."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """Options of the commands that may start a study."""

    study: Annotated[tyro.conf.Positional[str], arg(metavar="[STUDY]")] = "digits"
    """Preset, YAML file, or folder of a study."""
    out: Annotated[Path | None, default("that of the study, or studies/NAME", "DIR")] = None
    """Folder of the study, local or an address such as s3://bucket/study."""


AnyOptions = TypeVar("AnyOptions", bound=Options)


class Command(ABC):
    """What one command plans, runs and reports. Making one writes and starts nothing."""

    out: Path  # folder of the study, absolute
    plan: Plan
    lines: Sequence[RenderableType]  # the plan in words
    gpus: int  # number of GPUs to wait for
    todo: bool = True  # whether anything is left to run
    extra_seconds: float = 0.0  # expected wall time beyond that of the plan
    seed: int = 0  # of a search's suggestions
    limits: Limits = NO_LIMITS
    again = "run the same command again to resume"  # what to do if all failures are for good

    @property
    def expected(self) -> dict[str, float]:
        """Seconds that the command should take, and device-seconds that its runs occupy."""
        plan = self.plan
        return {
            "wall_seconds": plan.wall_seconds + self.extra_seconds,
            "device_seconds": 3600 * plan.device_hours + self.extra_seconds * plan.devices,
        }

    def revised(self, outcome: "Outcome") -> dict[str, float] | None:
        """Return what was expected when the first runs had ended; None if there were too few.

        Sampling should differ from the plan as these runs do.
        """
        revised, plan, first = outcome.revised, self.plan, self.expected
        if revised is None:
            return None
        other = first["wall_seconds"] - STARTING_SECONDS - plan.runs_seconds
        other_use = first["device_seconds"] - plan.runs_device_seconds
        return {
            "wall_seconds": STARTING_SECONDS + revised.wall_seconds + revised.pace * other,
            "device_seconds": revised.slot_seconds + revised.pace * other_use,
        }

    @abstractmethod
    def price(self) -> Plan:
        """Return the plan, from what the study's folder holds now."""

    @abstractmethod
    def begin(self) -> None:
        """Note in the study's folder what is about to run."""

    @abstractmethod
    def run(self, context: "BatchContext") -> "Outcome":
        """Carry out what is left to do."""

    @abstractmethod
    def report(self, outcome: "Outcome | None", wall: float, console: Console) -> bool:
        """Write the results for people, and print where they are.

        Args:
            outcome: How the batch went; None if nothing was left to run.
            wall: Seconds since the start.
            console: Where to print.

        Returns:
            Whether there are any results.
        """


def run_command_line(
    kind: type[AnyOptions], name: str, carry_out: Callable[[AnyOptions], int]
) -> NoReturn:
    """Run a command line; a user's mistake ends with one line and exit code 2.

    Args:
        kind: Options of the command; their docstring is its help text.
        name: What the user types.
        carry_out: Does what the options ask for, and returns the exit code.
    """
    text = inspect.cleandoc(kind.__doc__ or "")
    if issubclass(kind, StudyOptions):
        text += f"\n\n{RULE_OF_SET}\n\nPresets:\n" + "\n".join(
            f"- {preset}: {description(preset)}" for preset in PRESETS
        )

    def act() -> int:
        options = parse(kind, sys.argv[1:], name, text)
        check_flags(**vars(options))
        return carry_out(options)

    sys.exit(exit_code_of(act))


def drive(options: Options, command: Command) -> int:
    """Print the plan, ask before an expensive one, and carry it out.

    Returns:
        The exit code: 0, or 1 if some runs failed or did not end.

    Raises:
        UserError: For a user's mistake.
    """
    console = console_for_people()
    lines = list(command.lines)
    if command.todo:
        try:
            check_decodes(command.plan.configs)
        except UserError as error:
            if not options.dry_run:
                raise
            lines.append(str(error))
    seconds = command.plan.wall_seconds + command.extra_seconds
    expensive = seconds > EXPENSIVE_SECONDS or command.plan.money > EXPENSIVE_MONEY
    asks = expensive and not options.yes and sys.stdin.isatty()
    if options.dry_run or asks or not options.quiet:
        for line in lines:
            console.print(line, soft_wrap=isinstance(line, str) and not console.is_terminal)
    if options.dry_run or (asks and not confirmed()):
        return 0
    news = Console(quiet=True) if options.quiet else console
    say = partial(console.print, soft_wrap=True)
    with mirroring(options.tracker and Mirror(options.tracker, command.out), say):
        return execute(command, console, news)


def console_for_people() -> Console:
    """Return standard output, where names are printed as they are.

    A terminal without a size, as `ray submit` makes one for a log, is no terminal: nobody sees it
    repainted.
    """
    terminal = sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0
    width = None if terminal else 120
    return Console(
        width=width, force_terminal=terminal, highlight=False, markup=False, emoji=False
    )


def confirmed() -> bool:
    """Ask the user whether to start."""
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")


def execute(command: Command, console: Console, news: Console) -> int:
    """Carry out a command's plan, and print how it went.

    Args:
        command: The command.
        console: Where to print results and errors.
        news: Where to show the progress.

    Returns:
        The exit code: 0, or 1 if some runs failed or did not end.
    """
    started = time.monotonic()
    outcome = None
    with lease(command.out) as own:
        command.begin()
        if command.todo:
            os.environ["HOME"] = str(home_folder())  # Ray has to write there
            from sweeps.running import cluster  # Ray is needed from here on
            from sweeps.running.batch import BatchContext
            from sweeps.running.sharing_probe import measured_sharing
            from sweeps.running.versions import check_same_code
            from sweeps.watching.live import LivePage

            def say(line: str) -> None:
                news.print(line, soft_wrap=True)

            with cluster.join(command.gpus, say) as joined, LivePage(command.out) as page:
                check_same_code()
                context = BatchContext(
                    command.out, joined, own, news, page, command.seed, command.limits
                )
                if sharing := measured_sharing(command.plan, context):
                    context = replace(context, sharing=sharing)
                    command.plan = command.price()
                outcome = command.run(context)
        record.gather(command.out)
        has_results = command.report(outcome, time.monotonic() - started, console)
    if outcome is None:
        given_up = command.plan.given_up
        if not given_up:
            asked = " that was asked for" * bool(command.plan.left_out)
            console.print(f"every run{asked} is done already")
        return 1 if given_up else 0
    for line in expected_and_spent(outcome, time.monotonic() - started, command):
        news.print(line, soft_wrap=True)
    close(outcome, command, console)
    return 1 if outcome.left or outcome.failed or not has_results else 0


def close(outcome: "Outcome", command: Command, console: Console) -> None:
    """Print what of a command is not done and why.

    Args:
        outcome: How it went.
        command: The command.
        console: Where to print.
    """
    if outcome.stopped:
        console.print(f"stopped early: {outcome.stopped}", style="red", soft_wrap=True)
    for row in outcome.failed:
        file = command.out / "runs" / row["run_id"].split("/")[0] / "error.txt"
        message = f"failed: {row['label']}: {row['error']} ({file})"
        console.print(message, style="red", soft_wrap=True)
    for line in by_machine(outcome.failed):
        console.print(line, style="red", soft_wrap=True)
    if count := outcome.left + len(outcome.failed):
        runs = f"{count} run{'s' * (count != 1)}"
        names = f": {human.names(outcome.missing)}" if outcome.missing else ""
        for_good = outcome.failed and all(not transient(row["error"]) for row in outcome.failed)
        again = command.again if for_good else Command.again
        if outcome.stopped.startswith(WOULD_PASS):
            again += ", with another limit"
        console.print(f"{runs} not done{names}; {again}", soft_wrap=True)


def expected_and_spent(outcome: "Outcome", wall: float, command: Command) -> list[str]:
    """Return lines with the time, device time and money of a command, expected and spent."""
    price = command.plan.price.hourly
    devices = f"{outcome.devices:g} {outcome.device}" + "s" * (outcome.devices != 1)
    rows = {"expected": command.expected, f"after {FIRST_RUNS} runs": command.revised(outcome)}
    rows["spent"] = {"wall_seconds": wall, "device_seconds": outcome.occupied}
    return [
        f"{name + ':':14}{human.seconds(uses['wall_seconds'])} on {devices}, "
        + human.device_time(uses["device_seconds"], outcome.device)
        + (f", {human.money(uses['device_seconds'] / 3600 * price)}" if price else "")
        for name, uses in rows.items()
        if uses
    ]


def study_asked_for(options: StudyOptions) -> Study:
    """Return the study that the options name, with the changes of `--set`.

    Raises:
        UserError: If there is no such study, or if it cannot be changed like this.
    """
    return override_study(load(options.study), flat(options.changes))
