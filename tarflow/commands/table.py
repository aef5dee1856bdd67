"""Tables in the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text


def print_table(
    title: str, columns: Iterable[str | Column], rows: Iterable[Iterable[Any]]
) -> None:
    """Print a table with its title above it, floats with five digits and None as nothing."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*map(_text, row))
    Console(markup=False, emoji=False).print(table)  # names of files may hold brackets


def _text(value: Any) -> str | Text:
    if isinstance(value, Text):
        return value
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return "" if value is None else text
