"""What the commands of this folder share: command line, folder, consent, closing words."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import tyro
from rich.console import Console

from analysis import human
from sweeps.plan import Plan
from sweeps.presets import IMPORTS
from sweeps.study import Study, resolve
from tarflow.errors import UserError, exit_code_of
from tarflow.identity import with_hash
from tarflow.storage import check_reachable, locate

if TYPE_CHECKING:
    from sweeps.watch import Outcome

Asked = TypeVar("Asked")

EXPENSIVE_SECONDS = 1800.0  # of expected wall time: ask first
EXPENSIVE_MONEY = 5.0  # US dollars: ask first


def command(kind: type[Asked], name: str, act: Callable[[Asked], int]) -> NoReturn:
    """Read options, act on them, and exit as every command here does."""
    sys.exit(
        exit_code_of(
            lambda: act(tyro.cli(kind, prog=name, config=(tyro.conf.FlagCreatePairsOff,)))
        )
    )


def study_folder(out: Path | None, study: Study) -> Path:
    """Return the absolute folder of a study.

    Raises:
        UserError: if it is a file, or an address that cannot be reached.
    """
    folder = locate(out or Path("studies") / study.name).expanduser().absolute()
    check_reachable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    return folder


def resolved(study: Study, dry_run: bool) -> tuple[Study, str]:
    """Return the study with all that its data decide; in a dry run, else what is missing."""
    try:
        return resolve(study), ""
    except UserError as mistake:
        error = mistake
        name = study.base.data.name
        if name in IMPORTS and not locate(name).exists():
            error = UserError(
                f"no data set {name}; make it with: python -m tarflow data {IMPORTS[name]}"
            )
        if not dry_run:
            raise error from None
        return replace(study, base=with_hash(study.base, "unknown")), str(error)


def expensive(plan: Plan, seconds: float = 0.0) -> bool:
    """Say whether a plan is worth a question, with so many seconds of sampling after it."""
    return plan.wall_seconds + seconds > EXPENSIVE_SECONDS or plan.money > EXPENSIVE_MONEY


def agreed(yes: bool, dear: bool) -> bool:
    """Ask a person whether to start what is dear, unless told not to ask."""
    return yes or not dear or not sys.stdin.isatty() or confirmed()


def confirmed() -> bool:
    """Ask whether to go on."""
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")


def tell(outcome: "Outcome", wall: float, out: Path, console: Console) -> int:
    """Say how a batch of runs went, and return the exit code."""
    share = 1 - outcome.device_seconds / (wall * outcome.devices)
    held = f"{outcome.devices:g} {outcome.device}" + "s" * (outcome.devices != 1)
    console.print(f"{human.seconds(wall)} in all; overhead {human.percent(share)} of {held}")
    if outcome.stopped:
        console.print(f"stopped early: {outcome.stopped}", style="red")
    for row in outcome.failed:
        where_to_look = out / "runs" / row["run_id"].split("/")[0] / "error.txt"
        said = f"failed: {row['label']}: {row['error']} ({where_to_look})"
        console.print(said, style="red", markup=False)  # errors hold brackets
    if outcome.left or outcome.failed:
        console.print(
            f"{outcome.left + len(outcome.failed)} runs are not done; "
            "the same command tries them again"
        )
        return 1
    return 0
