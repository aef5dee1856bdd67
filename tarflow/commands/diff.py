"""`python -m tarflow diff`: how two runs or studies differ, and what came of it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from tarflow import human
from tarflow.commands.table import print_table
from tarflow.config import RunConfig
from tarflow.config_files import from_dict, read_plain, to_dict
from tarflow.errors import ConfigError, UserError
from tarflow.identity import run_id
from tarflow.record import read_result
from tarflow.storage import expand, locate

STUDY = "sizes", "budgets", "preset"  # each of these fields makes a config one of a study
ASIDE = "note", "name", "tags", "pinned"  # of a study: they change no run
ABSENT = object()  # value of a field that a file leaves out
EXPONENT = re.compile(r"\d+(\.\d+)?e\d+")
RESULTS = {  # columns of a run's row, and how to write them
    "status": lambda value: value or human.MISSING,
    "error": lambda value: value or human.MISSING,
    "bpd": human.bits,
    "bpd_se": human.number,
    "loss": human.number,
    "train_loss": human.number,
    "params": human.count,
    "images": human.count,
    "flops": lambda value: human.power(value, 3),
    "wall_seconds": human.seconds,
    "mfu": human.percent,
    "kid": human.number,
    "fid": human.number,
    "fd": human.number,
}


@dataclass(frozen=True)
class Side:
    """One of two things to compare."""

    name: str  # what the user typed
    fields: Mapping[str, Any]  # its config by path
    config: RunConfig | None  # None for a study
    results: Mapping[str, Any]  # row of a run and scores of its samples; empty before it ends
    runs: frozenset[str] = frozenset()  # ids of the runs of a study


def diff(
    a: Annotated[Path, tyro.conf.Positional], b: Annotated[Path, tyro.conf.Positional], /
) -> int:
    """Print how two configs, runs or studies differ, with the results of runs beside them.

    Example: python -m tarflow diff best.yaml studies/digits/runs/0123456789

    Args:
        a: YAML file, folder of a run or a study, or model.safetensors.
        b: Another one of the same kind.
    """
    sides = read(a), read(b)
    if (sides[0].config is None) != (sides[1].config is None):
        study, run = sorted(sides, key=lambda side: side.config is not None)
        raise UserError(f"{study.name} is a study and {run.name} a run: compare two of a kind")
    for letter, side in zip("AB", sides, strict=True):
        print(f"{letter}: {side.name}")
    names = dict.fromkeys(name for side in sides for name in side.fields)
    rows = [[name, *(_text(side.fields.get(name, ABSENT)) for side in sides)] for name in names]
    if rows := [row for row in rows if row[1] != row[2]]:
        fields = "1 field differs" if len(rows) == 1 else f"{len(rows)} fields differ"
        print_table(fields, ("field", "A", "B"), rows)
    else:
        print("their configs are the same")
    for line in _runs_in_words(*sides):
        print(line)
    results = [
        (name, *(write(side.results.get(name)) for side in sides))
        for name, write in RESULTS.items()
        if any(side.results.get(name) is not None for side in sides)
    ]
    if results:
        print_table("results", ("", "A", "B"), results)
    return 0


def read(name: Path) -> Side:
    """Read a config, a run or a study.

    Raises:
        UserError: If there is none, or if it cannot be read.
    """
    path = expand(locate(name))
    if path.suffix == ".safetensors":
        return _run(str(name), _metadata(path), path.parent)
    for file in ("config.yaml", "study.yaml") if path.is_dir() else ():
        if (path / file).is_file():
            return _described(str(name), path / file, path)
    if path.is_dir():
        raise UserError(f"{path} has neither a config.yaml of a run nor the study.yaml of a study")
    return _described(str(name), path, path.parent)


def _described(name: str, file: Path, folder: Path) -> Side:
    plain = read_plain(file)
    if not isinstance(plain, dict):
        raise ConfigError(f"{file}: it holds no fields")
    if not any(field in plain for field in STUDY):
        return _run(name, from_dict(RunConfig, plain, where=str(file)), folder)
    if "preset" in plain:
        raise UserError(
            f"{file} holds only what differs from the preset {plain['preset']}: compare the "
            "study.yaml in the folder of the study"
        )
    base = from_dict(RunConfig, plain.get("base") or {}, where=f"{file}: base")
    study = {key: value for key, value in plain.items() if key not in ASIDE}
    runs = frozenset(path.parent.name for path in (folder / "runs").glob("*/result.json"))
    return Side(name, _flat(study | {"base": to_dict(base)}), None, {}, runs)


def _run(name: str, config: RunConfig, folder: Path) -> Side:
    """Return a run, with the results in its folder if they are those of this config."""
    result = read_result(folder) or {"run": {}, "evaluations": []}
    own = _id(config) == result["run"].get("run_id")
    scores: dict[str, Any] = next(iter(result["evaluations"]), {})
    return Side(name, _flat(to_dict(config)), config, scores | result["run"] if own else {})


def _metadata(path: Path) -> RunConfig:
    """Return the config in the metadata of a model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            plain = json.loads((file.metadata() or {})["config"])
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except KeyError:
        raise UserError(f"{path} has no run config in its metadata") from None
    return from_dict(RunConfig, plain, where=str(path))


def _id(config: RunConfig) -> str:
    """Return the id of a run; empty before its precision and data are resolved."""
    try:
        return run_id(config)
    except ConfigError:
        return ""


def _runs_in_words(one: Side, other: Side) -> list[str]:
    """Say whether both are the same run, or how many runs two studies share."""
    if one.config is None or other.config is None:
        return [
            f"runs that have ended: {len(one.runs & other.runs)} in both, "
            f"{len(one.runs - other.runs)} only in A, {len(other.runs - one.runs)} only in B"
        ]
    ids = _id(one.config), _id(other.config)
    if not all(ids):
        return ["the id of a run is not known before its data and precision are resolved"]
    if ids[0] == ids[1]:
        return [f"both are run {ids[0]}: other fields change no number of its training"]
    return [f"A is run {ids[0]}, B is run {ids[1]}"]


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries by path.

    >>> _flat({"noise": {"std": 0.1}, "seed": 0})
    {'noise.std': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        inner = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _text(value: Any) -> str:
    """Return a value in one line, equal values as equal text.

    >>> _text("1e9"), _text(1e9), _text(0), _text(True), _text([{"layers": 1}]), _text([])
    ('1e9', '1e9', '0', 'true', '{layers: 1}', 'none')
    """
    if value is ABSENT:
        return human.MISSING
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, str) and EXPONENT.fullmatch(value):  # YAML reads 1e9 as text
        value = float(value)
    if isinstance(value, float) and abs(value) >= 1e6:
        return human.power(value, 16)
    if isinstance(value, bool):
        return str(value).lower()
    return {None: "none", "": "''"}.get(value) or str(value)
