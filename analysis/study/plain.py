"""Laws as plain JSON values, for other programs."""

from dataclasses import asdict
from typing import Any

from analysis.laws.fit import Fit
from analysis.study.findings import Findings


def fit_to_plain(law: Fit) -> dict[str, Any]:
    """Return a fitted form with its parameters and their 90% intervals."""
    return {
        "name": law.name,
        "formula": law.formula,
        "status": law.status,
        "rows": law.rows,
        "scale": law.scale,
        "agreement": law.agreement,
        "parameters": {
            name: {
                "value": value,
                "interval": list(law.intervals[name]),
                "identified": law.identified[name],
                "reason": law.reasons[name],
            }
            for name, value in law.values.items()
        },
    }


def laws_to_plain(findings: Findings) -> dict[str, Any]:
    """Return the laws of a study, the best sizes of its budgets, and how well it predicted."""
    surface, frontier = findings.surface, findings.frontier
    return {
        "law_of_size_and_data": surface
        and {
            "forms": [asdict(item) for item in surface.scores],
            "fits": [fit_to_plain(law) for law in surface.fits],
            "widening": surface.discrepancy.factor,
        },
        "law_of_compute": frontier and fit_to_plain(frontier),
        "best_sizes": [asdict(item) for item in findings.allocation],
        "held_out": [
            {"run_id": item.run_id, "predicted": item.predicted, "achieved": item.achieved}
            | {"interval": list(item.interval), "compute_of_the_fit": item.flops / item.ratio}
            for item in findings.held_out
        ],
    }
