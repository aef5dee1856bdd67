"""Configs as YAML files, and as plain nested dictionaries in JSON and metadata."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from tarflow.errors import ConfigError, UserError
from tarflow.fields import explained, leaves, must_be, unknown
from tarflow.strict_yaml import parse

Config = TypeVar("Config")

UNION = ("int", "tuple[int, ...]")  # parts of the paths by which pydantic names what it tried

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # built on first use


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain nested dictionaries."""
    plain: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json")
    return plain


def from_dict(kind: type[Config], plain: Any, where: str = "config") -> Config:
    """Build a config from nested dictionaries, refusing unknown keys and wrong types.

    Raises:
        ConfigError: If a field is wrong; names the first one, after `where`, and the nearest
            valid name for an unknown one.
    """
    if not isinstance(plain, Mapping):
        words = " ".join(str(plain).split())
        raise ConfigError(f"{where}: {words[:40]!r} is no mapping of fields, such as batch: 64")
    for path in sorted(_truths(kind, plain)):
        raise ConfigError(
            f"{where}: {path} is true or false (or yes, no, on, off): write a number"
        )
    try:
        built: Config = _adapter(kind).validate_python(plain)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_line(kind, error)}") from None
    return built


def _truths(kind: Any, plain: Any, path: str = "") -> Iterator[str]:
    """Name the numbers that are written as true or false, which pydantic takes for 1 and 0."""
    if kind in (int, float) and isinstance(plain, bool):
        yield path
    elif is_dataclass(kind) and isinstance(plain, Mapping):
        for member in fields(kind):
            inner = f"{path}.{member.name}".lstrip(".")
            yield from _truths(member.type, plain.get(member.name), inner)
    elif isinstance(plain, list | tuple):
        for index, value in enumerate(plain):
            yield from _truths(next(iter(get_args(kind)), None), value, f"{path}.{index}")
    else:
        for option in get_args(kind):
            yield from _truths(option, plain, path)


def _first_line(kind: type[Any], error: ValidationError) -> str:
    typos = ("unexpected_keyword_argument", "extra_forbidden")
    mistake = min(error.errors(), key=lambda error: error["type"] not in typos)  # typos first
    path = ".".join(str(part) for part in mistake["loc"] if part not in UNION)
    if mistake["type"] in typos:
        return unknown(path, leaves(kind))
    if mistake["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{path} is missing: add it"
    if rule := must_be(kind, path, mistake["type"]):
        name, words = rule
        return f"{name} is {mistake['input']!r}: it must be {words}"
    message = mistake["msg"].removeprefix("Value error, ")
    return message if not path or message.startswith(path) else f"{path}: {message}"


def read_yaml(kind: type[Config], path: Path) -> Config:
    """Read a config from a YAML file.

    Raises:
        UserError: If the file cannot be read.
        ConfigError: If it is not YAML or does not describe a config.
    """
    return from_dict(kind, read_plain(path), where=str(path))


def read_plain(path: Path) -> Any:
    """Return the content of a YAML file, which is {} if it is empty.

    Raises:
        UserError: If the file cannot be read.
        ConfigError: If it is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        files = (path / name for name in ("best.yaml", "config.yaml"))  # of a study, of a run
        inside = "".join(f"; name a file, such as {file}" for file in files if file.is_file())
        raise UserError(f"cannot read {path}: {reason}{inside}") from None
    plain = parse(text, str(path))
    return {} if plain is None else plain


def to_yaml(config: Any, comment: str = "") -> str:
    """Return a config as YAML whose fields say what they mean.

    Args:
        config: Config.
        comment: Leading comment lines.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + explained(type(config), to_dict(config))
