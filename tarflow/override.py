"""Changes of a config from a command line, each written as NAME=VALUE."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tarflow.config import from_dict, to_dict
from tarflow.errors import ConfigError, UserError
from tarflow.fields import leaves, merged, unknown
from tarflow.strict_yaml import parse

Config = TypeVar("Config")


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
    paths = leaves(type(config))
    names = names or {path: path for path in paths if "*" not in path}
    plain = to_dict(config)
    for change in changes:
        name, equals, text = (part.strip() for part in change.partition("="))
        if not equals:
            raise UserError(f"--set {change}: write NAME=VALUE, such as --set optim.lr=0.02")
        if name not in names:
            raise UserError(f"--set: {unknown(name, names)}")
        path = names[name]
        value = _value(text, paths[path][0], name)
        for part in reversed(path.split(".")):
            value = {part: value}
        plain = merged(plain, value)
    return from_dict(type(config), plain, where="command line")


def _value(text: str, kind: Any, name: str) -> Any:
    if kind is str:  # data.name=2024 is a name, not a number
        return text.strip("\"'")
    try:
        return parse(text, f"--set {name}")
    except ConfigError:
        if text.startswith(("[", "{")):
            raise
        return text  # no YAML either; the field says what it must be
