"""Tables and sentences on what a study has cost, and on what is missing."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.report.section import Table
from tarflow.human import (
    count,
    device_time,
    money,
    names,
    percent,
    power,
    seconds,
    series,
)

STATES = ("done", "failed", "pruned")  # of runs
INTERRUPTIONS = {  # columns of a run, in the words for one and for several
    "preemptions": ("preemption", "preemptions"),
    "lost_machines": ("lost machine", "lost machines"),
    "lost_processes": ("lost process", "lost processes"),
}


def cost(table: pd.DataFrame) -> Table:
    """Add up what each role of run has cost."""
    states = [state for state in STATES if state != "pruned" or (table["status"] == state).any()]
    rows = [
        (
            str(role),
            " + ".join(str((runs["status"] == state).sum()) for state in states),
            power(runs["flops_marginal"].sum(), 3),
            count(runs["images"].sum()),
            seconds((runs["wall_seconds"] - runs["evaluate_seconds"]).sum()),
            seconds(runs["evaluate_seconds"].sum()),
            seconds(runs["device_seconds"].sum()),
            percent(runs["mfu"].median()),
        )
        for role, runs in [*table.groupby("role"), ("all", table)]
    ]
    columns = (
        *("role", " + ".join(states), "training FLOPs", "images seen"),
        *("training", "evaluation", "device time", "median MFU (causal FLOPs)"),
    )
    return Table(columns, tuple(rows))


def saving(table: pd.DataFrame) -> str:
    """Say in a sentence what shared trunks have saved; empty if nothing was shared.

    Args:
        table: Every run, with flops and flops_marginal.
    """
    done = table[table["status"] == "done"]
    whole, spent = done["flops"].sum(), done["flops_marginal"].sum()
    branches = int((done["flops_marginal"] < done["flops"]).sum())
    if not branches:
        return ""
    return (
        f" {branches} run{'s' * (branches > 1)} branched from a trunk shared with a longer run: "
        f"{power(whole - spent, 3)} of {power(whole, 3)} training FLOPs "
        f"({percent(1 - spent / whole)}) were saved."
    )


def overhead(outcome: Mapping[str, Any]) -> str:
    """Say in a sentence what the sweep cost on top of its runs; empty if it was not recorded.

    Args:
        outcome: `wall_seconds` of the sweep, `device_seconds` inside runs, number of `devices` and
            the name of one `device`.
    """
    if "devices" not in outcome:
        return ""
    wall, devices = outcome["wall_seconds"], outcome["devices"]
    hardware = f"{devices:g} {outcome['device']}{'' if devices == 1 else 's'}"
    if outcome.get("stopped"):  # runs that it has interrupted count for the next command
        return f" The last command took {seconds(wall)} on {hardware}."
    share = percent(1 - outcome["device_seconds"] / (wall * devices))
    return f" The sweep took {seconds(wall)} on {hardware}; {share} of that was outside runs."


def interruptions(table: pd.DataFrame, outcome: Mapping[str, Any]) -> str:
    """Say in a sentence what interruptions of runs have cost; empty if there were none.

    Args:
        table: Every run; one of an earlier release counts no interruptions.
        outcome: As `overhead`, with the `price` of a device-hour if it is known.
    """
    if "lost_seconds" not in table or not (lost := table["lost_seconds"].sum()):
        return ""
    counts = {words: int(table[column].sum()) for column, words in INTERRUPTIONS.items()}
    what = [f"{times} {words[times > 1]}" for words, times in counts.items() if times]
    share = percent(lost / (lost + table["device_seconds"].sum()))
    price = f", {money(lost / 3600 * outcome['price'])}" if outcome.get("price") else ""
    return (
        f" {series(what)} cost "
        f"{device_time(lost, outcome.get('device', 'device'))} ({share}{price})."
    )


def missing_runs(outcome: Mapping[str, Any]) -> str:
    """Say which runs the last command has left undone, and why; empty if none."""
    words = ""
    if missed := outcome.get("missing"):
        why = f" ({outcome['stopped']})" if outcome["stopped"] else ""
        words += f" Missing: {names(missed)}{why}; the same command resumes."
    if aside := outcome.get("left_out"):
        words += f" Left out by --only or --skip: {names(aside)}; without them, it runs the rest."
    return words


def expected_and_spent(outcome: Mapping[str, Any]) -> tuple[Table, ...]:
    """Compare what the last command was expected to use with what it used.

    Args:
        outcome: As `overhead`, with the seconds that were `expected`, also when these were
            `revised` after the first runs, the device-seconds that runs `occupied`, their starts
            and failures included, and the `price` of a device-hour.

    Returns:
        A table, or none if this was not recorded.
    """
    if "expected" not in outcome:
        return ()
    price, revised = outcome["price"], outcome.get("revised")
    spent = {"wall_seconds": outcome["wall_seconds"], "device_seconds": outcome["occupied"]}
    columns = {"expected": outcome["expected"], "after the first runs": revised, "spent": spent}
    columns = {name: column for name, column in columns.items() if column}
    uses = [column["device_seconds"] for column in columns.values()]
    rows = [
        ("from start to end", *(seconds(each["wall_seconds"]) for each in columns.values())),
        ("device time of runs", *(device_time(use, outcome["device"]) for use in uses)),
    ]
    if price:
        label = f"price of that, ${price:g} per {outcome['device']}-hour"
        rows.append((label, *(money(use / 3600 * price) for use in uses)))
    return (Table(("the last command", *columns), tuple(rows), "Expected and spent"),)
