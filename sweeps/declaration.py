"""study.yaml: what was asked of a folder, and whether more may be asked of it."""

from pathlib import Path
from typing import Any

from sweeps.study import Study
from tarflow import record
from tarflow.config import read_yaml, to_dict, to_yaml
from tarflow.errors import UserError


def declare(study: Study, out: Path) -> None:
    """Write study.yaml.

    Raises:
        UserError: if the folder holds a study whose runs could not be compared with these.
    """
    path = out / "study.yaml"
    check_comparable(study, out)
    comment = f"Run it again with: python sweeps/scaling.py {path}"
    record.write_text(path, to_yaml(study, comment))


def check_comparable(study: Study, out: Path) -> None:
    """Make sure that a folder, if it holds a study, holds one whose runs compare with these.

    Raises:
        UserError: naming a setting in which they differ.
    """
    path = out / "study.yaml"
    if not path.exists():
        return
    if difference := differing(comparable(read_yaml(Study, path)), comparable(study)):
        raise UserError(
            f"{out} holds a study with other settings ({difference}); choose another --out"
        )


def comparable(study: Study) -> dict[str, Any]:
    """Return what all runs of a folder must share; sizes, budgets and seeds may grow."""
    base = to_dict(study.base)
    for name in ("execution", "evaluation", "sampler", "images", "seed"):
        del base[name]
    return {"base": base, "lr_power": study.lr_power}


def differing(there: Any, here: Any, name: str = "") -> str:
    """Name the first value in which two nested dictionaries differ.

    >>> differing({"noise": {"std": 0.1}}, {"noise": {"std": 0.2}})
    'noise.std is 0.1 there, 0.2 here'
    """
    if not isinstance(there, dict) or not isinstance(here, dict):
        return "" if there == here else f"{name} is {there} there, {here} here"
    inner = (
        differing(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
        for key in sorted({*there, *here})
    )
    return next(filter(None, inner), "")
