"""Command lines: what a user types becomes a call, and a mistake becomes one line.

tyro reads the words and prints its errors as boxes; a box is caught and said in a line. Flags that
do not exist come first, since they also make tyro miss or misread what stands beside them.
"""

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from itertools import dropwhile, takewhile
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

import tyro

from tarflow import human
from tarflow.errors import UserError
from tarflow.fields import choices, nearest

Parsed = TypeVar("Parsed")
MARKERS = (tyro.conf.FlagCreatePairsOff,)  # --live, without a --no-live beside it
TYPES = {"int": "an integer", "float": "a number"}
MISTAKES: Mapping[str, Callable[[re.Match[str]], str]] = {  # tyro's words, and ours
    r"invalid choice '(?P<value>.*)' for argument '(?P<name>\S+)'\. Expected one of \((.*)\)": (
        lambda found: f"{found['name']} is '{found['value']}': it must be {_choices(found[3])}"
    ),
    r"Error parsing (?P<name>\S+): .*(invalid literal for int|string to (float)).*: '(.*)'": (
        lambda found: f"{found['name']} is '{found[4]}': it must be {TYPES[found[3] or 'int']}"
    ),
    r"Error parsing (\S+): .*?\[(.*?)\]": lambda found: f"{found[1]}: cannot read {found[2]}",
    r"Missing value for argument '(\S+)'": lambda found: f"{found[1]} needs a value",
    r"Unrecognized options: ([^,]+)": lambda found: f"'{found[1]}' is one word too many",
}
FLAGS = {  # flags, and what other programs call them
    "--tracker": "--wandb --tensorboard --mlflow --trackio --logger --report-to",
    "--out": "--output --output-dir --out-dir --run-dir --save-dir --logdir --log-dir --storage",
    "--count": "--n --num",
}
ANSWERS = {  # flags of other programs that are not needed here
    "--resume": "run the same command again to resume",
    "--config": "name the file without a flag",
    "--config-name": "name it without a flag",
    "--study": "name it without a flag",
    "--study-name": "name a folder with --out",
}


def run_command(
    commands: Mapping[str, Callable[..., int]], words: Sequence[str], prog: str, description: str
) -> int:
    """Run the command that the first word names.

    Args:
        commands: Functions by name; what stands before `/` is named by its place.
        words: What the user typed, without the program.
        prog: What starts the program.
        description: What it is for, shown by `--help`.

    Returns:
        The exit code of the command.

    Raises:
        UserError: For a user's mistake.
    """
    name = words[0] if words else ""
    if name in commands:
        return parse(_postponed(commands[name]), words[1:], f"{prog} {name}")()
    if not name:
        raise UserError(f"name a command: {', '.join(commands)} ({prog} --help says more)")
    if name in ("--version", "-V"):
        sys.stdout.write(f"tarflow {version('tarflow')}\n")
        return 0
    if not name.startswith("-"):
        near = "".join(f"; did you mean {one}?" for one in get_close_matches(name, commands, 1))
        raise UserError(f"unknown command {name}{near} ({prog} --help lists all)")

    def read(given: Sequence[str]) -> int:
        code: int = tyro.extras.subcommand_cli_from_dict(
            dict(commands), prog=prog, description=description, args=given, config=MARKERS
        )
        return code

    return _read(read, words, prog)


def parse(
    kind: Callable[..., Parsed], words: Sequence[str], prog: str, description: str | None = None
) -> Parsed:
    """Return what a dataclass or function makes of the words of a command line.

    Args:
        kind: What tyro calls with the values of its flags.
        words: What the user typed, without the program.
        prog: What starts the program.
        description: What it is for; by default the docstring.

    Raises:
        UserError: For a user's mistake.
        SystemExit: After `--help`, which is printed.
    """

    def read(given: Sequence[str]) -> Parsed:
        return tyro.cli(kind, prog=prog, description=description, args=given, config=MARKERS)

    return _read(read, words, prog)


def _postponed(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Return a function with the flags of a command that returns a call of it."""

    def postponed(*values: Any, **flags: Any) -> Callable[[], int]:
        return partial(command, *values, **flags)

    described: Any = postponed
    signature = inspect.signature(command)
    named = [_named(item) for item in signature.parameters.values()]
    described.__doc__ = re.sub(r"\n {12}(?=\S)", " ", command.__doc__ or "")  # tyro breaks lines
    described.__signature__ = signature.replace(parameters=named)
    described.__annotations__ = {item.name: item.annotation for item in named}
    return postponed


def _named(item: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter as `--help` shows it.

    One that is named by its place is called by its name. One that may be None, which its text
    explains, is a flag of its other type.
    """
    if item.kind is not item.POSITIONAL_ONLY:
        kinds = [kind for kind in get_args(item.annotation) if kind is not NoneType]
        if item.default is not None or len(kinds) != 1:
            return item
        words = choices(kinds[0])
        metavar = "{" + ",".join(words) + "}" if words else kinds[0].__name__.upper()
        shown = tyro.conf.arg(metavar=metavar, help_behavior_hint="")
        return item.replace(annotation=Annotated[item.annotation, shown])
    name = item.name.upper() + " ..." * (item.default == ())
    hint = "" if item.default is None else None
    metavar = name if item.default is item.empty else f"[{name}]"
    shown = tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)
    return item.replace(annotation=Annotated[item.annotation, shown])


def _read(read: Callable[[Sequence[str]], Parsed], words: Sequence[str], prog: str) -> Parsed:
    """Read words with tyro, and raise a `UserError` instead of the box that it prints."""
    _refuse_values_of_switches(read, words, prog)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return read(words)
    except SystemExit as ended:
        if ended.code != 2:  # 0 after --help
            raise
    known = _flags(read)
    for flag in (word.partition("=")[0] for word in words if re.match("--?[a-zA-Z]", word)):
        if flag.replace("_", "-") not in known:
            meant = _meant(flag.replace("_", "-"), known)
            raise UserError(f"unknown flag {flag}{meant} ({prog} --help lists all)")
    line = _in_a_line(box.getvalue())
    if "--set" in known and (change := re.match(r"'(\S+=\S+)' is one word too many", line)):
        line = f"'{change[1]}' stands alone: write --set {change[1].lstrip('+')}"
    raise UserError(f"{line} ({prog} --help says more)")


def _meant(flag: str, known: Collection[str]) -> str:
    """Say what a flag that does not exist means here; empty if nothing is near."""
    if flag in ANSWERS:
        return f": {ANSWERS[flag]}"
    called = (own for own, names in FLAGS.items() if own in known and flag in names.split())
    paths = [name.removeprefix("--").replace("-", "_") for name in sorted(known)]
    near = next(called, nearest(flag.lstrip("-"), paths).replace("_", "-")).lstrip("-")
    if near:
        return f"; did you mean --{near}?"
    changes = "--set" in known and flag.startswith("--")
    return "; --set NAME=VALUE changes a field" * changes


def _refuse_values_of_switches(
    read: Callable[[Sequence[str]], Any], words: Sequence[str], prog: str
) -> None:
    """Refuse `--quiet=yes`, of which tyro would read `yes` as the word after `--quiet`."""
    given = [word.partition("=")[0] for word in words if re.match("--[a-zA-Z][^=]*=", word)]
    switches = _flags(read, r"(?=\s\s)") if given else set()
    for flag in given:
        if (name := flag.replace("_", "-")) in switches:
            raise UserError(f"{flag} takes no value: write {name} alone ({prog} --help says more)")


def _flags(read: Callable[[Sequence[str]], Any], followed: str = "") -> set[str]:
    """Return the flags that `--help` lists, all or those that are followed by a pattern."""
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        read(["--help"])
    return set(re.findall(rf"(?:\s\s|, )(--[a-z][\w.-]*+){followed}", shown.getvalue()))


def _in_a_line(box: str) -> str:
    """Return in a line what the first section of tyro's box says.

    >>> _in_a_line("╭─ Missing argument ─╮\\n│ Missing value for argument '--out'. │\\n╰─────╯")
    '--out needs a value'
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    lines = [line[2:].rstrip(" │") for line in plain.splitlines()[1:]]
    rule = re.compile(r"[─╯-]+").fullmatch
    section = list(takewhile(lambda line: not rule(line), dropwhile(rule, lines)))
    text = " ".join(" ".join(section).split())
    if text.startswith("Missing from"):
        missing = [name[1] for line in section if (name := re.match(r" {4}(\S+)", line))]
        return f"{human.series(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    for theirs, ours in MISTAKES.items():
        if found := re.search(theirs, text):
            return ours(found)
    return text


def _choices(listed: str) -> str:
    """Return the words of a tuple, as text, that a flag may be.

    >>> _choices("'wandb', 'None', 'mlflow', 'trackio'")
    'mlflow, trackio or wandb'
    """
    return human.series(sorted(set(re.findall(r"'([^']+)'", listed)) - {"None"}), "or")
