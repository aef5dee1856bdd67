"""How a run may end, besides well or by failing: stopped early, or with no score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarflow.record import read_result

PRUNED = "pruned"  # status of a run that was stopped because others did better
WORST = 1e6  # score of what diverged: a search learns nothing from trials without scores


def stopped_early(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is that of a candidate that others have beaten early."""
    return row.get("status") == PRUNED


def is_pruned(folder: Path) -> bool:
    """Tell whether the run of a folder has ended early because others did better."""
    result = read_result(folder)
    return result is not None and stopped_early(result["run"])
