"""The tables of the page by which to judge or repeat a study."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis.laws.allocation import Allocation
from analysis.laws.average import Law
from analysis.laws.fit import Fit
from analysis.laws.isoflop import IsoFlop
from analysis.laws.repetition import WORTH
from analysis.laws.validation import Baseline, Coverage
from analysis.report.section import Table
from analysis.study.findings import Findings
from analysis.study.names import bpd_name_of
from analysis.study.settings import setting_in_words
from tarflow.human import (
    MISSING,
    bits,
    count,
    interval,
    missing,
    number,
    percent,
    power,
)


def forms(law: Law, guesses: Sequence[Baseline]) -> Table:
    """List the forms by their roll-out errors and weights, then guesses without a law."""
    windows = len(law.trials.windows)
    return Table(
        ("form", "weight", "parameters", "error", "standard error", "AICc", "BIC"),
        (
            *(
                (
                    score.form,
                    percent(score.weight),
                    str(score.parameters),
                    percent(score.error),
                    percent(score.error_se),
                    number(score.aicc),
                    number(score.bic),
                )
                for score in law.scores
            ),
            ("the average", "", "", percent(law.rollout_error), "", "", ""),
            *((f"guess: {g.name}", "", "", percent(g.error), "", "", "") for g in guesses),
        ),
        f"Forms by their errors on the runs beyond {windows} windows",
    )


def coverage(bands: Sequence[Coverage]) -> Table:
    """List what the bands promised and how often they held."""
    return Table(
        ("band", "promised", "achieved", "roll-outs inside", "interval score"),
        tuple(
            (
                item.band,
                percent(item.level),
                percent(item.achieved),
                f"{item.inside} of {item.total}",
                percent(item.score),
            )
            for item in bands
        ),
        "Coverage on the roll-outs",
    )


def parameters(law: Fit) -> Table:
    """List the parameters of a form."""
    return Table(
        ("parameter", "value", "90% interval", ""),
        tuple(
            (name, number(value), interval(law.intervals[name]), law.reasons[name])
            for name, value in law.values.items()
        ),
        f"{law.name}: {law.formula}",
    )


def influence(findings: Findings) -> Table:
    """List the runs that move the law most when they are left out."""
    names = dict(zip(findings.finished["run_id"], findings.finished["name"], strict=True))
    return Table(
        ("run left out", "change of the prediction", "parameter that moves most", "by"),
        tuple(
            (
                names.get(item.cluster, item.cluster),
                percent(item.change, signed=True),
                item.parameter,
                f"{number(item.parameter_change)} half-intervals",
            )
            for item in findings.influence[:5]
        ),
        "Runs that move the surface law most",
    )


def front(best: pd.DataFrame) -> Table:
    """List the Pareto front of a search.

    Args:
        best: Rows of `settings.pareto_front`, each at its best sampler setting.
    """
    return Table(
        ("run", "id", "parameters", bpd_name_of(best), "KID", "±", "sampled with"),
        tuple(
            (
                row["name"],
                row["run_id"],
                count(row["params"]),
                bits(row["bpd"]),
                number(row["kid"]),
                number(row["kid_se"]),
                setting_in_words(row),
            )
            for _, row in best.iterrows()
        ),
        "The Pareto front, decided on one half of the draws; KID is that of the other half.",
    )


def isoflop(findings: Findings) -> Table:
    """List the best size of each budget, by the surface law and by the runs of that budget."""
    optima = {item.flops: item for item in findings.optima}
    return Table(
        ("FLOPs", "best size by the surface law", "check: runs of this budget alone", ""),
        tuple(
            (
                power(item.flops),
                _optimum(optima.get(item.flops)),
                _minimum(item),
                _agreement(item, optima.get(item.flops)),
            )
            for item in findings.isoflops
        ),
        "Parameters of the best model of each budget, 90% intervals. The law uses all runs; the "
        "check uses the runs of one budget, and gives a bound where those do not bracket the best "
        "size.",
    )


def _optimum(optimum: Allocation | None) -> str:
    if optimum is None:
        return "not determined"
    if optimum.edge:
        return f"at most {count(optimum.params)}, the smallest size tried"
    return _with_interval(optimum.params, optimum.params_interval, count)


def _minimum(minimum: IsoFlop) -> str:
    low, high = minimum.params_interval
    if not minimum.edge:
        return _with_interval(minimum.params, minimum.params_interval, count)
    bound = f"at least {count(low)}" if low > 0 else f"at most {count(high)}"
    return "at the edge" + (f": {bound}" if low > 0 or high < float("inf") else "")


def _agreement(minimum: IsoFlop, optimum: Allocation | None) -> str:
    if optimum is None:
        return ""
    (low, high), (least, most) = minimum.params_interval, optimum.params_interval
    return "agree" if least <= high and low <= most else "differ: one of the two is wrong"


def sizes(findings: Findings) -> Table:
    """List the compute-optimal model of each budget."""
    return Table(
        (
            *("FLOPs", "parameters N*", "tokens D*", "nearest model"),
            *("images", "epochs", findings.bpd_name, "by", "beyond the runs"),
        ),
        tuple(
            (
                power(item.flops),
                _with_interval(item.params, item.params_interval, count),
                _with_interval(item.tokens, item.tokens_interval, count),
                f"c{item.channels}-b{item.blocks}-l{item.layer_split or item.layers}",
                count(item.images),
                number(item.epochs),
                _with_interval(item.bpd, item.bpd_interval, bits),
                item.source,
                "at the edge" if item.edge else "yes" if item.extrapolated else "no",
            )
            for item in findings.allocation
        ),
        "Compute-optimal sizes, 90% intervals, and the nearest model that can be built",
    )


def _with_interval(
    value: float | None, ends: tuple[float, float] | None, write: Callable[[float | None], str]
) -> str:
    if ends is None or any(missing(end) for end in ends) or ends[0] == ends[1]:
        return write(value)
    return f"{write(value)} ({write(ends[0])}–{write(ends[1])})"


def reproducibility(findings: Findings, table: pd.DataFrame, seed: int) -> Table:
    """Answer the questions that a reviewer of a scaling law asks."""
    general = findings.surface.general if findings.surface else None
    fits = [law for law in (findings.frontier, general) if law]
    rows = [
        ("Laws", "; ".join(f"{fit.name}: {fit.formula}" for fit in fits) or "none fitted"),
        ("Objective", "sum of Huber losses of log residuals, 1.345 robust standard deviations"),
        ("Optimiser", "Levenberg-Marquardt, exact Jacobian, many starts scaled by the data"),
        ("Fit status", "; ".join(f"{fit.name}: {fit.status}" for fit in fits) or MISSING),
        (
            "Starts that agree",
            "; ".join(f"{fit.name}: {percent(fit.agreement)}" for fit in fits) or MISSING,
        ),
        ("Intervals", f"90%, refits to redrawn noise whose size is itself drawn, seed {seed}"),
        ("Prediction", "average of the forms, weighted by roll-out error to the power -4"),
        ("Parameters", "of the most general form that the runs can tell apart"),
        ("Rows used", f"{len(findings.runs)} of {len(table)}; roles grid, branch and final"),
        (
            "Left out",
            "; ".join(f"{item.label}: {item.reason}" for item in findings.left_out) or "none",
        ),
        (
            "Run-to-run noise",
            f"{findings.noise.std:.4f} {findings.bits_unit}, from {findings.noise.runs} runs of "
            f"{findings.noise.groups} config(s) with several seeds"
            if findings.noise
            else "not measured: no config has two seeds",
        ),
        ("Parameters N", "matrix-product weights; biases, norms and tables are not counted"),
        (
            "Tokens D",
            "training images seen times tokens per image; in the surface law, R repeats count as "
            f"{WORTH:g} (1 - exp(-R / {WORTH:g})) epochs of new images (Muennighoff et al. 2023)",
        ),
        (
            "FLOPs C",
            "matrix products and ideal causal attention by formula; backward is twice forward",
        ),
        (
            findings.bpd_name,
            _distinct(table, "bpd_kind") + ", held-out split: " + _distinct(table, "split"),
        ),
        ("Data", f"{_distinct(table, 'data')}, content hash {_distinct(table, 'data_hash')}"),
        ("Noise", f"{_distinct(table, 'noise_type')} {_distinct(table, 'noise_std')}"),
        ("Schedule", _distinct(table, "schedule")),
        ("Precision", _distinct(table, "precision")),
        ("Seeds", _distinct(table, "seed")),
        ("Numerics version", _distinct(table, "numerics_version")),
        ("Code", _distinct(table, "git")),
        ("Hosts", _distinct(table, "host")),
        ("Versions", _versions(table)),
    ]
    return Table(("question", "answer"), tuple(rows))


def _distinct(table: pd.DataFrame, column: str) -> str:
    values = sorted(table[column].dropna().unique()) if len(table) else []
    return ", ".join(_short(value) for value in values[:12]) or MISSING


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _versions(table: pd.DataFrame) -> str:
    versions: dict[str, set[str]] = {}
    for text in table["versions"].dropna().unique() if "versions" in table else ():
        for name, version in json.loads(text).items():
            versions.setdefault(name, set()).add(str(version))
    return ", ".join(f"{name} {' / '.join(sorted(v))}" for name, v in versions.items()) or MISSING
