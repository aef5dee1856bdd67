"""Which runs of a grid a command leaves out for now: `--only` and `--skip`."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.design.study import PlannedRun, did_you_mean
from sweeps.pricing.plan import LEFT_OUT, Plan
from tarflow import cost, human
from tarflow.config import RunConfig
from tarflow.config_files import to_dict
from tarflow.errors import UserError
from tarflow.fields import leaves, unknown
from tarflow.record import read_result

CONDITION = re.compile(r"\s*([\w.-]+)\s*(>=|<=|!=|==|=|>|<)\s*(.+?)\s*")
EXPONENT = re.compile(r"(?<=\d)e0*(?=\d)")
EQUAL = 5e-3  # relative difference of numbers that are equal, as a plan shows three digits
ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
OWN = "run", "budget", "params", "flops"  # names beside the fields of a run's config


def left_out(
    runs: Sequence[PlannedRun], only: Sequence[str], skip: Sequence[str]
) -> dict[str, str]:
    """Return the ids of the runs to leave out, each with the reason.

    Args:
        runs: Runs of the study.
        only: Conditions that a run has to meet, all of them, such as `channels>=32`.
        skip: Runs to leave out: an id or its beginning, or a name or its beginning up to a dash.

    Raises:
        UserError: If a condition makes no sense, a name fits no run, or no run is left.
    """
    reasons: dict[str, str] = {}
    for condition in (part for text in only for part in split(text)):
        meets = condition_of(condition)
        reasons |= {
            run.run_id: f"--only {condition}"
            for run in runs
            if not meets(run) and run.run_id not in reasons
        }
    for name in filter(None, skip):
        named = [run for run in runs if is_named(run.run_id, run.label, name)]
        if not named:
            names = [text for run in runs for text in names_of(run.label)]
            raise UserError(f"--skip: run {did_you_mean(name, names)}")
        reasons |= {run.run_id: f"--skip {name}" for run in named}
    if runs and len(reasons) == len({run.run_id for run in runs}):
        raise UserError("--only and --skip leave no run of this study: --dry-run alone lists them")
    return reasons


def pinned(names: Sequence[str], runs: Sequence[PlannedRun], out: Path) -> tuple[str, ...]:
    """Return the ids of the runs that a user pins, each once.

    Args:
        names: For each run its id or the beginning of it, or its name in the plan; empty ones
            name none.
        runs: Runs of the study.
        out: Folder of the study, whose other runs may be pinned too.

    Raises:
        UserError: If a name fits no run, or several.
    """
    known = {run.run_id: run.label for run in runs}
    results = (read_result(folder) for folder in sorted((out / "runs").glob("*")))
    known |= {row["run_id"]: row["label"] for row in (x["run"] for x in results if x)}
    ids = []
    for name in filter(None, names):
        named = [run_id for run_id, label in known.items() if is_named(run_id, label, name)]
        if not named:
            raise UserError(f"--pin: run {did_you_mean(name, known.values())}")
        if len(named) > 1:
            labels = human.names([known[run_id] for run_id in named])
            raise UserError(f"--pin {name} fits {len(named)} runs: {labels}; write one of them")
        ids += named
    return tuple(dict.fromkeys(ids))


def in_words(plan: Plan) -> list[str]:
    """Say which runs a command leaves out and why, a line per reason."""
    by_reason: dict[str, list[str]] = {}
    for row in plan.rows:
        if row.state == LEFT_OUT:
            reason = plan.left_out[row.run.run_id]
            by_reason.setdefault(reason, []).append(row.run.label)
    lines = [
        f"left out by {reason}: {len(names)} run{'s' * (len(names) != 1)}, {human.names(names)}"
        for reason, names in by_reason.items()
    ]
    return [*lines, "the command without --only and --skip completes the study"] if lines else []


def split(text: str) -> list[str]:
    """Split conditions at commas, but not the values of one.

    >>> split("channels=32,64,budget<1e10")
    ['channels=32,64', 'budget<1e10']
    """
    return [part.strip() for part in re.split(r",(?=\s*[\w.-]+\s*[<>=!])", text)]


def condition_of(text: str) -> Callable[[PlannedRun], bool]:
    """Return whether a run meets a condition such as `channels=32,64`, `noise.std<0.2`.

    Raises:
        UserError: If it is none, or if runs have no such field.
    """
    match = CONDITION.fullmatch(text)
    if not match:
        raise UserError(f"--only {text}: write NAME=VALUE, such as --only 'channels>=32'")
    name, sign, wanted = match.groups()
    paths = {path: path for path in leaves(RunConfig)}
    short = {path.rpartition(".")[2]: path for path in reversed(paths)}
    known = {**{own: own for own in OWN}, **short, **paths}
    if name not in known:
        raise UserError(f"--only: {unknown(name, known)}")
    values = [value.strip() for value in wanted.split(",")]
    order = ORDERS.get(sign)
    if order and not all(map(_is_number, values)):
        raise UserError(f"--only {text}: {wanted} is not a number")

    def meets(run: PlannedRun) -> bool:
        value = value_of(run, known[name])
        if order:
            return _is_number(value) and all(order(float(value), float(x)) for x in values)
        return any(_equal(value, x) for x in values) != (sign == "!=")

    return meets


def value_of(run: PlannedRun, name: str) -> Any:
    """Return a field of a run by its path, or one of `OWN`."""
    if name in OWN:
        model = run.config.model
        flops = cost.run_flops(run.config)
        own = run.label, run.budget, cost.params(model), flops
        return own[OWN.index(name)]
    value: Any = to_dict(run.config)
    for part in name.split("."):
        value = value[part]
    return value


def _equal(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if _is_number(value) and _is_number(wanted):
        return math.isclose(float(value), float(wanted), rel_tol=EQUAL)
    return str(value) == wanted


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def is_named(run_id: str, label: str, name: str) -> bool:
    """Tell whether a run has this name: its id or the beginning of it, or one of `names_of`."""
    name = EXPONENT.sub("e", name)  # budgets of plans and of labels: 9e9 and 9e09
    return run_id.startswith(name) or name in [EXPONENT.sub("e", x) for x in names_of(label)]


def names_of(label: str) -> list[str]:
    """Return a run's label and what it begins with, up to each dash.

    A plan shows the first parts of the label, and the budget beside them.
    """
    parts = label.split("-")
    return ["-".join(parts[:end]) for end in range(1, len(parts) + 1)]
