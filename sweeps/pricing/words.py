"""A plan in words, and as a table for a terminal."""

import re
from typing import Literal

from rich.table import Table

from sweeps.design.study import Study, left_out, short
from sweeps.pricing.plan import Plan, PlanRow
from tarflow import cost, human


def table(plan: Plan) -> Table:
    """Return the runs of a plan for a terminal of 80 columns, one line for those that are alike.

    Runs are alike if only their seeds differ, and as much is left to do.
    """
    gpus, priced = bool(plan.rate.accelerator), plan.price.hourly > 0
    columns = ["run", "FLOPs", "runs", "params", "images", "epochs", "time each"]
    columns += ["memory"] * gpus + ["price each"] * priced + ["state"]
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        side: Literal["left", "right"] = "left" if name in ("run", "state") else "right"
        shown.add_column(name, justify=side, no_wrap=name != "state")
    alike: dict[tuple[str, str], list[PlanRow]] = {}
    for row in plan.rows:
        alike.setdefault((without_seed(row.run.label), in_words(row, plan)), []).append(row)
    for (name, words), rows in alike.items():
        row, config = rows[0], rows[0].run.config
        hours = row.expected * config.execution.workers / plan.rate.runs_per_device / 3600
        shown.add_row(
            name.removesuffix(f"-{short(row.run.budget)}"),
            human.power(row.run.budget, 3),
            str(len(rows)),
            human.count(cost.params(config.model)),
            human.count(config.images),
            f"{row.epochs:.3g}",
            human.seconds(row.expected),
            *[human.size(cost.memory(config, plan.memory).total)] * gpus,
            *[human.money(hours * plan.price.hourly)] * priced,
            words,
        )
    return shown


def without_seed(label: str) -> str:
    """Return the label of a run without its seed.

    >>> without_seed("c64-b4-l2-3e11-s10")
    'c64-b4-l2-3e11'
    """
    return re.sub(r"-s\d+$", "", label)


def in_words(row: PlanRow, plan: Plan) -> str:
    """Say whether a run is done, and how it is carried out."""
    notes = [row.state]
    notes += ["branch"] * (row.start.inherited > 0)
    notes += ["sharded"] * cost.sharded(row.run.config, plan.memory)
    return ", ".join(notes)


def study_summary(study: Study, plan: Plan) -> list[str]:
    """Return a few lines on what the grid of a study costs."""
    lines = summary(plan)
    if skipped := left_out(study):
        runs = f"{skipped} run{'s' * (skipped != 1)}"
        limits = f"fewer than {study.min_images} or more than {study.max_images} images"
        lines.insert(2, f"left out of the grid: {runs} of {limits}")
    if plan.given_up:
        runs = f"{plan.given_up} run{'s' * (plan.given_up != 1)}"
        lines.append(f"{runs} failed for good; --retry failed carries them out again")
    return lines


def summary(plan: Plan) -> list[str]:
    """Return a few lines on what the runs of a plan cost."""
    device = plan.rate.accelerator or "core"
    count, done = len(plan.rows), sum(row.state == "done" for row in plan.rows)
    lines = [
        f"{count} run{'s' * (count != 1)} ({done} done), {plan.flops:.2g} training FLOPs; to do: "
        f"{human.device_time(3600 * plan.device_hours, device)}"
        + money_in_words(plan)
        + f", {human.seconds(plan.wall_seconds)} on {plan.devices} {device}s"
        + f", {plan.rate.runs_per_device} runs on each" * (plan.rate.runs_per_device > 1),
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
        seconds = sum(plan.samplings.values()) / plan.slots
        lines.insert(
            1,
            f"of that, {len(plan.samplings)} more ways to sample from finished runs: "
            f"{human.seconds(seconds)}",
        )
    lines += sorted({row.run.config.precision_warning for row in plan.rows} - {""})
    return lines + (memory_warnings(plan) if plan.rate.accelerator else [])


def money_in_words(plan: Plan) -> str:
    """Say what costs what is left to do; empty without a price."""
    if not plan.price.hourly:
        return ""
    dollars = f"about {human.money(plan.money)}".replace("about <", "<")
    basis = plan.price.basis
    return f", {dollars} at ${plan.price.hourly:g} an hour ({basis})"


def memory_warnings(plan: Plan) -> list[str]:
    """Return lines on the runs whose state one accelerator does not hold."""
    device, configs = plan.rate.accelerator, [(row.run.label, row.run.config) for row in plan.left]
    lines = []
    if sharded := [label for label, config in configs if cost.sharded(config, plan.memory)]:
        more = f" and {len(sharded) - 1} more" * (len(sharded) > 1)
        lines.append(f"sharded: {sharded[0]}{more}; no {device} holds their whole state")
    if tight := [
        label for label, config in configs if cost.memory(config, plan.memory).total > plan.memory
    ]:
        lines.append(
            f"{len(tight)} runs need more memory than one {device} has, {tight[0]} the first: "
            "set base.execution.micro_batch lower"
        )
    return lines
