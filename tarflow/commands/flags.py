"""A flag for every field of a run, such as `--optim.lr 0.02`, and `--set` for several at once."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypedDict

from tyro.conf import UseAppendAction, arg

from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.fields import choices, descriptions
from tarflow.model_config import FAMILIES, ModelConfig

METAVARS: Mapping[Any, str] = {int: "INT", float: "FLOAT", bool: "{true,false}"}

Changes = Annotated[
    tuple[tuple[str, ...], ...], UseAppendAction, arg(name="set", metavar="NAME=VALUE ...")
]

Tags = Annotated[tuple[str, ...], UseAppendAction, arg(name="tag", metavar="TEXT")]


def split_tags(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of a command line, each once; a comma ends one.

    >>> split_tags(["wide, new", "new", ""])
    ('wide', 'new')
    """
    tags = (" ".join(tag.split()) for text in texts for tag in text.split(","))
    return tuple(dict.fromkeys(filter(None, tags)))


def _flags(kind: Any) -> Any:
    """Return a typed dictionary of the fields of a config, all of them optional."""
    members = {}
    for member in fields(kind):
        text, inner = descriptions(kind).get(member.name, ""), member.type
        if is_dataclass(inner):
            members[member.name] = Annotated[_flags(inner), arg(help=text)]
            continue
        words = "{" + ",".join(choices(inner)) + "}" if choices(inner) else ""
        metavar = words or METAVARS.get(inner, "TEXT")
        members[member.name] = Annotated[
            str, arg(metavar=metavar, help=text, help_behavior_hint="")
        ]
    if kind is ModelConfig:
        metavar, text = "{" + ",".join(FAMILIES) + "}", "set all options that make this family"
        members["family"] = Annotated[str, arg(metavar=metavar, help=text, help_behavior_hint="")]
    return TypedDict(kind.__name__, members, total=False)  # type: ignore[operator]


RunFlags: Any = Annotated[_flags(RunConfig), arg(name="")]


def flat(changes: Sequence[Sequence[str]], flags: Mapping[str, Any] | None = None) -> list[str]:
    """Return changes as NAME=VALUE: those of every `--set`, then those of the flags of fields.

    >>> flat([["seed=1", "batch=8"]], {"optim": {"lr": "0.02"}, "seed": "3"})
    ['seed=1', 'batch=8', 'optim.lr=0.02', 'seed=3']
    """
    if not all(changes):
        raise UserError("--set: write NAME=VALUE, such as --set optim.lr=0.02")
    listed = [change for several in changes for change in several]
    for name, value in (flags or {}).items():
        if isinstance(value, Mapping):
            listed += [f"{name}.{change}" for change in flat((), value)]
        else:
            listed.append(f"{name}={value}")
    return listed
