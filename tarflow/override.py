"""Changes of a config from a command line, each written as NAME=VALUE."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tarflow.config_files import from_dict, to_dict
from tarflow.errors import ConfigError, UserError
from tarflow.fields import leaves, merged, unknown
from tarflow.model_config import changed
from tarflow.strict_yaml import parse

Config = TypeVar("Config")

WHERE = "command line"  # where a value comes from, for messages
FAMILY = "model.family"  # no field, but the name of several options of `ModelConfig`


def override(
    config: Config, changes: Sequence[str], names: Mapping[str, str] | None = None
) -> Config:
    """Return a config with some fields changed.

    Args:
        config: Config to change.
        changes: Such as `optim.lr=0.02`; the value is read as YAML, and the last one counts.
        names: Path of the field that each name stands for; by default its own path.

    Raises:
        UserError: If a change is not NAME=VALUE, or if there is no such field, naming the nearest.
        ConfigError: If a value is wrong, naming the field, the value and what it must be.
    """
    if not changes:
        return config
    kind = type(config)
    return from_dict(kind, overridden(to_dict(config), kind, changes, names), WHERE)


def overridden(
    plain: Mapping[str, Any],
    kind: Any,
    changes: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Like `override`, for a config as nested dictionaries, whose values are not checked.

    Raises:
        UserError: If a change is not NAME=VALUE, or if there is no such field, naming the nearest.
        ConfigError: If a value is no YAML, or if there is no such family of models.
    """
    paths = leaves(kind)
    names = names or {path: path for path in paths if "*" not in path}
    names = with_family(names)
    change: dict[str, Any] = {}
    for name, text in map(name_and_value, changes):
        if name not in names:
            raise UserError(f"--set: {unknown(name, names)}")
        path = names[name]
        value = _value(text, paths[path][0] if path in paths else str, name)
        for part in reversed(path.split(".")):
            value = {part: value}
        change = merged(change, value)
    return changed(plain, change)


def with_family(names: Mapping[str, str]) -> dict[str, str]:
    """Return names of fields and their paths, with `FAMILY` beside the fields of a model.

    >>> with_family({"batch": "batch", "model": "base.model"})
    {'batch': 'batch', 'model': 'base.model', 'model.family': 'base.model.family'}
    """
    section = FAMILY.partition(".")[0]
    models = {name: path for name, path in names.items() if name.rpartition(".")[2] == section}
    return {**names, **{f"{name}.family": f"{path}.family" for name, path in models.items()}}


def name_and_value(change: str) -> tuple[str, str]:
    """Split a change into its name and its value.

    >>> name_and_value("optim.lr = 0.02")
    ('optim.lr', '0.02')

    Raises:
        UserError: If it is not NAME=VALUE.
    """
    name, equals, text = (part.strip() for part in change.partition("="))
    if not equals:
        raise UserError(f"--set {change}: write NAME=VALUE, such as --set optim.lr=0.02")
    return name, text


def _value(text: str, kind: Any, name: str) -> Any:
    if kind is str:  # data.name=2024 is a name, not a number
        return text.strip("\"'")
    try:
        return parse(text, f"--set {name}")
    except ConfigError:
        if text.startswith(("[", "{")):
            raise
        return text  # no YAML either; the field says what it must be
