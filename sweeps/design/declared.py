"""The folder of a study, and the study that it declares in `study.yaml`."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.design.presets import IMPORTS, how_to_import
from sweeps.design.study import Study, resolve_precision, resolve_study
from tarflow import record
from tarflow.commands.flags import split_tags
from tarflow.config_files import read_yaml, to_dict, to_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.identity import UNKNOWN, with_hash
from tarflow.storage import check_reachable, expand, locate


def study_folder(out: Path | None, study: Study) -> Path:
    """Return the absolute folder of a study.

    Raises:
        UserError: If it is a file, or an address that cannot be reached.
    """
    folder = expand(locate(out or Path("studies") / study.name)).absolute()
    check_reachable(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    return folder


def resolve_or_explain(study: Study, out: Path, dry_run: bool) -> tuple[Study, list[str]]:
    """Fill in what depends on the data, and compare with the study that the folder holds.

    A dry run can do without the data, and then compares nothing.

    Returns:
        The study, and a line that says which data are missing, if they are.

    Raises:
        UserError: If the data do not fit or the folder holds another study; or if the data are
            missing, unless in a dry run.
    """
    try:
        resolved = resolve_study(study)
    except ConfigError:
        raise  # the data are here, and do not fit the study
    except UserError as error:
        name, reason = study.base.data.name, str(error)
        if name in IMPORTS and not locate(name).exists():
            reason = f"no data set {name}; make it with: {how_to_import(name)}"
        if not dry_run:
            raise UserError(reason) from None
        provisional = f"the data are not here yet ({reason}), so run ids are provisional"
        study = resolve_precision(study)
        return replace(study, base=with_hash(study.base, UNKNOWN)), [provisional]
    check_comparable(resolved, out)
    return resolved, []


def with_kept(study: Study, out: Path) -> Study:
    """Return a study with what its folder keeps: runs of `--next`, note, tags and pinned runs."""
    path = out / "study.yaml"
    if not path.exists():
        return study
    kept = read_yaml(Study, path)
    added = tuple(dict.fromkeys((*kept.added, *study.added)))
    return replace(
        study,
        added=added,
        note=study.note or kept.note,
        tags=study.tags or kept.tags,
        pinned=study.pinned or kept.pinned,
    )


def with_tags(study: Study, texts: Sequence[str]) -> Study:
    """Return a study with the tags of the command line, or with its own if there are none."""
    return replace(study, tags=split_tags(texts)) if texts else study


def declare(study: Study, out: Path) -> None:
    """Write study.yaml.

    Raises:
        UserError: If the folder holds a study whose runs could not be compared with these.
    """
    path = out / "study.yaml"
    check_comparable(study, out)
    comment = f"Run it again with: python sweeps/scaling.py {shlex.quote(str(path))}"
    record.write_text(path, to_yaml(study, comment))


def check_comparable(study: Study, out: Path) -> None:
    """Make sure that a folder that holds a study holds one whose runs compare with these.

    Raises:
        UserError: If they differ, naming a setting.
    """
    path = out / "study.yaml"
    if not path.exists():
        return
    before = shared_settings(read_yaml(Study, path))
    if difference := first_difference(before, shared_settings(study)):
        raise UserError(
            f"{out} holds a study with other settings ({difference}); choose another --out, or "
            "give the study another name"
        )


def shared_settings(study: Study) -> dict[str, Any]:
    """Return what all runs of a folder must share; sizes, budgets and seeds may grow."""
    base = to_dict(study.base)
    for name in ("execution", "evaluation", "sampler", "images", "seed"):
        del base[name]
    return {"base": base, "lr_power": study.lr_power}


def first_difference(before: Any, now: Any, name: str = "") -> str:
    """Name the first value in which two nested dictionaries differ.

    >>> first_difference({"noise": {"std": 0.1}}, {"noise": {"std": 0.2}})
    'noise.std is 0.1 there, 0.2 here'
    """
    if not isinstance(before, dict) or not isinstance(now, dict):
        return "" if before == now else f"{name} is {before} there, {now} here"
    inner = (
        first_difference(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        for key in sorted({*before, *now})
    )
    return next(filter(None, inner), "")
