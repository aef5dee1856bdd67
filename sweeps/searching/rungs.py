"""Shares of its budget at which a candidate of a search is compared with the others.

There the worker scores the held-out images with the weight average, as at the end of a run, and
keeps the row that the run has if it is stopped there. The driver decides (`pruning.py`), so
that row becomes the result of the run even if the worker is gone by then.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sweeps.design.outcomes import PRUNED, WORST
from sweeps.design.study import PlannedRun
from tarflow import record

if TYPE_CHECKING:
    from tarflow.train.state import TrainState

Rule = Literal["halving", "hyperband"]
QUARTERS = (1, 2)  # of its budget, after which a candidate is compared
WHOLE = 4  # quarters of a budget
KEEPS = 2  # at each share, one in this many candidates continues
SUGGESTED = 0.75  # of candidates that Optuna's sampler suggests, those that continue: measured
FILE = "rungs.json"  # rows of a run by the quarters of its budget that it had seen


class Rungs:
    """Compares a candidate with the others at its shares; call it after each training step."""

    def __init__(
        self, compare: Callable[[dict[str, Any]], None], run: PlannedRun, folder: Path
    ) -> None:
        """Repeat the comparisons of an earlier attempt, whose answers may not have arrived.

        Args:
            compare: Receives {"quarters", "bpd_there"}; raises SystemExit to stop the candidate.
            run: The candidate.
            folder: Its folder.
        """
        self.run, self.folder, self.compare = run, folder, compare
        self.rows = kept_rows(folder)
        for quarters in self.rows:
            self._compare(quarters)

    def __call__(self, state: "TrainState") -> None:
        """Score and compare the candidate if its last step has reached a share."""
        from tarflow.train.curve import CurveFile

        config = self.run.config
        before = state.images - config.batch
        for quarters in QUARTERS:
            reached = before < quarters / WHOLE * config.images <= state.images
            if reached and quarters not in self.rows:
                self.rows[quarters] = self._row(state, quarters)
                CurveFile(self.folder, first=True).write(state)
                record.write_json(self.folder / FILE, self.rows)
                self._compare(quarters)

    def _compare(self, quarters: int) -> None:
        self.compare({"quarters": quarters, "bpd_there": bpd_of(self.rows[quarters])})

    def _row(self, state: "TrainState", quarters: int) -> dict[str, Any]:
        """Return the row of the run if it is stopped now."""
        from tarflow.evaluate.held_out import held_out_likelihood
        from tarflow.model.weights import build
        from tarflow.run import row_of

        began, run, config = time.perf_counter(), self.run, self.run.config
        device = next(iter(state.ema.values())).device
        flow = build(config.model, state.ema | dict(state.flow.named_buffers())).to(device)
        scores = held_out_likelihood(flow, config)
        spent = time.perf_counter() - began
        whole = row_of(config, run.role, run.label, run.tags)
        so_far = row_of(replace(config, images=state.images), run.role, run.label, run.tags)
        devices = 1 if device.type != "cpu" else max(1, config.execution.threads)
        return {
            **so_far,
            "run_id": whole["run_id"],
            "config": whole["config"],
            "status": PRUNED,
            "error": f"stopped at {share(quarters)} of its budget",
            "train_seconds": state.seconds,
            "evaluate_seconds": spent,
            "wall_seconds": state.seconds + spent,
            "device_seconds": (state.seconds + spent) * devices,
            **scores.columns(),
        }


def kept_rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the rows that a candidate had at its shares, by quarters of its budget, ascending."""
    rows = record.read_json(folder / FILE) or {}
    return {int(quarters): row for quarters, row in rows.items()}


def bpd_of(row: dict[str, Any]) -> float:
    """Return the BPD that a row is compared by; the worst score if it is not finite."""
    bpd = row.get("bpd")
    return float(bpd) if bpd is not None and math.isfinite(bpd) else WORST


def share(quarters: int) -> str:
    """Write a number of quarters.

    >>> share(1), share(2)
    ('1/4', '1/2')
    """
    divisor = math.gcd(quarters, WHOLE)
    return f"{quarters // divisor}/{WHOLE // divisor}"


def first_quarters(rule: Rule) -> tuple[int, ...]:
    """Return for each bracket when it compares first; candidates of the last may be never."""
    return (*QUARTERS, WHOLE) if rule == "hyperband" else QUARTERS[:1]


def parts(rule: Rule) -> list[float]:
    """Return which part of the candidates each bracket gets: most where most can be saved.

    >>> [round(part, 2) for part in parts("hyperband")]
    [0.67, 0.24, 0.09]
    """
    weights = [math.exp(-bracket) for bracket in range(len(first_quarters(rule)))]
    return [weight / sum(weights) for weight in weights]  # the weights of Ray Tune's brackets


def bracket_of(name: str, rule: Rule) -> int:
    """Return the bracket of a run: drawn by its id, so that a resumed search keeps it."""
    drawn, bounds = int(name, 16) / 16 ** len(name), accumulate(parts(rule)[:-1])
    return sum(bound <= drawn for bound in bounds)


class Expected(NamedTuple):
    """What pruning should save: numbers of candidates, and of whole budgets."""

    scored: float  # comparisons at a share
    finished: float  # candidates that are trained to their end
    budgets: float  # trained in all


def expected(random: int, suggested: int, rule: Rule) -> Expected:
    """Return what becomes of candidates on average.

    Of random ones, the first to reach a share continues, any later one if it is in the better half
    so far. Those that the sampler suggests once it has learnt are better than the ones before.

    Args:
        random: Number of random candidates to come.
        suggested: Number of candidates that the sampler suggests.
        rule: How they are compared.

    >>> expected(9, 0, "halving")
    Expected(scored=14.0, finished=3.0, budgets=5.0)
    >>> expected(0, 16, "halving")
    Expected(scored=28.0, finished=9.0, budgets=11.5)
    """
    scored = finished = budgets = 0.0
    for first, part in zip(first_quarters(rule), parts(rule), strict=True):
        drawn, learnt, before = random * part, suggested * part, 0
        for quarters in QUARTERS:
            budgets += (drawn + learnt) * (quarters - before) / WHOLE
            scored, before = scored + drawn + learnt, quarters
            if quarters >= first:
                drawn = min(drawn, (drawn + KEEPS - 1) / KEEPS)
                learnt *= SUGGESTED
        budgets += (drawn + learnt) * (WHOLE - before) / WHOLE
        finished += drawn + learnt
    return Expected(scored, finished, budgets)
