"""Read any table of runs: numbers as people write them, and which rows are left out and why.

Rows count from 1 below the header.
"""

import codecs
import csv
import io
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from tarflow.errors import UserError

SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}
EMPTY = {"", "nan", "na", "n/a", "null", "none", "-", "--", "–", "<na>"}
STATES = {"state", "status"}  # columns in which trackers write how a run ended
UNFINISHED = {
    *("crashed", "failed", "killed", "error", "diverged", "oom", "cancelled", "canceled"),
    *("aborted", "preempted", "timeout", "running", "pending"),
}
LETTERS = {"params": "N", "tokens": "D", "flops": "C"}  # of inputs, in formulas and points
BITS, KIND = "bpd", "bpd_kind"  # columns of our own tables: a likelihood, and what it is of
NAMED = 5  # rows named for each reason
CELL = 30  # characters of a cell that a message repeats

_NUMBER = re.compile(r"([+-]?[\d.,]+)(e[+-]?\d+)?\s*([kmbgtp]?)", re.IGNORECASE)
_SPACED = re.compile(r"(?<=\d)[\s_'’](?=\d{3}(?:\D|$))")  # 1 000 000 or 1_000_000
_TIMES_TEN = re.compile(r"\s*[x×*·]\s*10\s*\^\s*")
_GROUPED = {  # numbers with marked thousands, by their decimal sign
    ".": re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?"),
    ",": re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?"),
}
_CONDITION = re.compile(r"\s*(.+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    **{"=": operator.eq, "==": operator.eq, "!=": operator.ne},
}


@dataclass(frozen=True, eq=False)
class RunTable:
    """The rows of a file that a law can use, and what became of the others."""

    values: pd.DataFrame  # positive numbers by the names asked for, and texts; by row
    rows: int  # rows of the file
    unasked: int  # rows that the conditions exclude
    repeats: int  # rows equal to an earlier one in every cell
    left_out: Mapping[int, str]  # reason by row

    def summary(self) -> list[str]:
        """Return sentences that account for every row of the file."""
        lines = [f"{len(self.values)} of {self.rows} rows are used."]
        if self.unasked:
            lines.append(f"--where excludes {_count(self.unasked)}.")
        if self.repeats == 1:
            lines.append("1 row repeats another: counted once.")
        elif self.repeats:
            lines.append(f"{self.repeats} rows repeat others: counted once.")
        if self.left_out:
            lines.append(f"{_count(len(self.left_out))} left out: {name_rows(self.left_out)}.")
        return lines


def read_columns(
    path: Path,
    columns: Mapping[str, str],
    where: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
    empty: bool = False,
) -> RunTable:
    """Read columns of a CSV, Parquet or JSON-lines file as positive numbers.

    Cells such as `1.024B`, `256M` and `1,000,000` are numbers. A row with an empty cell, with text
    such as `diverged`, or of a run that its column `State` calls crashed, is left out.

    Args:
        path: The file; its content tells the format, the separator and the encoding.
        columns: Column of the file by the name it gets here.
        where: Conditions that a row must meet, such as `optimizer=adamw` or `loss>0`.
        texts: Columns that are read as text, such as the one that names the run of a row.
        empty: Whether a table without a row to use is fine.

    Raises:
        UserError: If the file cannot be read, lacks a column, has a number of 0 or less, or has no
            row left; or if its bits per dimension are of several kinds.
    """
    raw = _load(path)
    texts = texts or {}
    named = dict(columns) | dict(texts)
    for column in named.values():
        _check_column(raw, column, path)
    conditions = [_condition(text, raw, path) for text in where]
    chosen = raw.loc[[all(test(row) for _, test in conditions) for row in range(len(raw))]]
    if chosen.empty and not empty:
        raise UserError(f"{path} has no row" + (f" with {' and '.join(where)}" if where else ""))
    left_out = _unfinished(chosen, {column for column, _ in conditions} | set(named.values()))
    values = pd.DataFrame({name: _numbers(chosen[column]) for name, column in columns.items()})
    for name, column in columns.items():
        for (row, cell), value in zip(_cells(chosen[column]), values[name], strict=True):
            if not math.isfinite(value):
                left_out.setdefault(row, f"{column} is {_quoted(cell)}")
    for name, column in texts.items():
        values[name] = chosen[column].astype(str)
        for row, cell in _cells(chosen[column]):
            if _is_empty(cell):
                left_out.setdefault(row, f"{column} is empty")
    values = values.drop(index=list(left_out))
    _check_one_kind(chosen.loc[values.index], named.values(), path)
    if values.empty and not empty:
        raise UserError(f"{path} has no row to use: {name_rows(left_out)}")
    for name, column in columns.items():
        if low := {row: cell for row, cell in _cells(values[name]) if cell <= 0}:
            rows = name_rows({row: f"{column} is {cell:g}" for row, cell in low.items()})
            raise UserError(
                f"{rows}: a power law needs positive values; leave them out with "
                f"--where '{column}>0'"
            )
    others = [name for name in raw.columns if name and name not in named.values()]
    twice = _repeats(chosen[others], values)
    values = values[~twice]
    return RunTable(values, len(raw), len(raw) - len(chosen), int(twice.sum()), left_out)


def number(cell: object, decimal: str = ".") -> float:
    """Return the number in a cell; nan if it holds none.

    >>> [number(cell) for cell in ("1.024B", "256 M", "1,000,000", "1.2x10^9", "inf", "diverged")]
    [1024000000.0, 256000000.0, 1000000.0, 1200000000.0, inf, nan]
    >>> number("1.024,5", decimal=",")
    1024.5
    """
    if isinstance(cell, bool):
        return math.nan
    if not isinstance(cell, str):
        try:
            return float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return math.nan
    text = _plain(cell)
    if text.lower().lstrip("+-") in ("inf", "infinity"):
        return -math.inf if text.startswith("-") else math.inf
    match = _NUMBER.fullmatch(text)
    if not match:
        return math.nan
    digits, exponent, suffix = match[1], match[2] or "", match[3].lower()
    group = "," if decimal == "." else "."
    if group in digits and not _GROUPED[decimal].fullmatch(digits):
        if group == "," or "," in digits:
            return math.nan
        group = ""  # a decimal point in a column of decimal commas
    try:
        plain = digits.replace(group, "").replace(decimal, ".")
        return float(plain + exponent) * SUFFIXES[suffix]
    except ValueError:  # such as "1.2.3"
        return math.nan


def read_point(text: str, columns: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the inputs of a run written as `N=7B,D=2T`; None if one is missing or makes no sense.

    Args:
        text: Inputs by column, letter or name; a group is a name.
        columns: Column by the name of the input.

    >>> read_point("N=7B,tokens=2T", {"params": "size", "tokens": "seen"})
    {'params': 7000000000.0, 'tokens': 2000000000000.0}
    """
    names = {
        alias: name
        for name, column in columns.items()
        for alias in (name, LETTERS.get(name, name), column)
    }
    point: dict[str, Any] = {}
    for part in text.split(","):
        key, _, cell = part.partition("=")
        name = names.get(key.strip(), "")
        value = number(cell)
        if name == "group":
            point[name] = cell.strip()
        elif not name or not 0 < value < math.inf:
            return None
        else:
            point[name] = value
    return point if point.keys() == columns.keys() else None


def name_rows(reasons: Mapping[int, str]) -> str:
    """Write rows and why, those of one reason together.

    >>> name_rows({3: "loss is 'OOM'", 8: "loss is 'OOM'", 4: "N is empty"})
    "rows 3 and 8 (loss is 'OOM'), row 4 (N is empty)"
    """
    together: dict[str, list[int]] = {}
    for row, reason in sorted(reasons.items()):
        together.setdefault(reason, []).append(row)
    parts = [f"{_some(rows)} ({reason})" for reason, rows in together.items()]
    more = sum(len(rows) for rows in list(together.values())[NAMED:])
    return ", ".join(parts[:NAMED]) + (f" and {more} more" if more else "")


def _some(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    last = f"{len(rows) - NAMED} more" if len(rows) > NAMED else str(rows[-1])
    first = rows[:NAMED] if len(rows) > NAMED else rows[:-1]
    return f"rows {', '.join(map(str, first))} and {last}"


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows:,} rows"


def _load(path: Path) -> pd.DataFrame:
    """Return the cells of a file, indexed by row."""
    try:
        data = path.read_bytes()
        if data.startswith(b"PAR1"):
            table = pd.read_parquet(io.BytesIO(data))
        elif data.startswith(b"PK\x03\x04"):
            raise UserError(f"{path} is a workbook or an archive: save its table as CSV")
        else:
            table = _parse(_decode(data), path)
    except UnicodeDecodeError:
        raise UserError(f"cannot read {path}: it is no table of text, and no Parquet") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        runs = path / "runs.parquet"  # of a study
        inside = f"; name a file, such as {runs}" * runs.is_file()
        raise UserError(f"cannot read {path}: {reason.splitlines()[0]}{inside}") from None
    table.columns = [str(column).strip() for column in table.columns]
    return table.set_axis(range(1, len(table) + 1))


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if 0 in data[:2]:
        return data.decode("utf-16-be" if data[0] == 0 else "utf-16-le")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse(text: str, path: Path) -> pd.DataFrame:
    if text.lstrip().startswith(("{", "[")):
        return _parse_json(text)
    header = next((line for line in text.splitlines() if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", header)
    separator = max(",;\t", key=unquoted.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    names, *rows = [line for line in lines if line] or [[]]
    for row, cells in enumerate(rows, start=1):
        if any(cell.strip() for cell in cells[len(names) :]):
            raise UserError(
                f"row {row} of {path} has {len(cells)} cells and the header {len(names)}: "
                'quote cells that hold the separator, such as "1,000,000"'
            )
    rows = [(cells + [""] * len(names))[: len(names)] for cells in rows]
    table = pd.DataFrame(rows, columns=names, dtype=object)
    table.attrs["separator"] = separator
    return table


def _parse_json(text: str) -> pd.DataFrame:
    """Return the rows of a list or of one object a line, or the columns of one object."""
    if text.lstrip().startswith("["):
        return pd.DataFrame(json.loads(text))
    rows = []
    for line, content in enumerate(text.splitlines(), start=1):
        try:
            rows += [json.loads(content)] if content.strip() else []
        except ValueError as error:
            raise UserError(f"line {line} is no JSON object: {error}") from None
    columns = len(rows) == 1 and all(isinstance(cell, dict | list) for cell in rows[0].values())
    return pd.DataFrame(rows[0] if columns else rows)


def _check_column(raw: pd.DataFrame, name: str, path: Path) -> None:
    times = list(raw.columns).count(name)
    if times > 1:
        raise UserError(f"{path} has {times} columns named '{name}': rename all but one")
    if not times:
        near = get_close_matches(name, list(raw.columns), n=1, cutoff=0.0)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{path} has no column '{name}'{hint}")


def _check_one_kind(rows: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Refuse bits of pixels beside bits of latents, or bounds beside likelihoods."""
    if BITS not in columns or KIND not in rows or KIND in columns:
        return
    kinds = sorted({str(cell).strip() for cell in rows[KIND] if not _is_empty(cell)})
    if len(kinds) > 1:
        raise UserError(
            f"{path} has bits of several kinds ({', '.join(kinds)}), which cannot be compared: "
            f"choose one with --where {KIND}={kinds[0]}"
        )


def _condition(text: str, raw: pd.DataFrame, path: Path) -> tuple[str, Callable[[int], bool]]:
    """Return the column of a condition, and a function of the position of a row."""
    match = _CONDITION.fullmatch(text)
    if not match:
        raise UserError(f"--where '{text}' compares nothing: write COLUMN=VALUE or COLUMN>VALUE")
    column, sign, value = match.groups()
    _check_column(raw, column, path)
    cells, compare, wanted = list(raw[column]), _COMPARISONS[sign], number(value)
    if math.isnan(wanted) and sign not in ("=", "==", "!="):
        raise UserError(f"--where '{text}': '{value}' is no number")

    def meets(row: int) -> bool:
        found = number(cells[row])
        if math.isnan(found) or math.isnan(wanted):
            if sign in ("=", "==", "!="):
                return compare(str(cells[row]).strip(), value)
            return False
        return compare(found, wanted)

    return column, meets


def _unfinished(raw: pd.DataFrame, judged: set[str]) -> dict[int, str]:
    """Return the rows whose run did not finish, unless the caller has judged that column."""
    return {
        row: f"{column} is '{str(cell).strip()}'"
        for at, column in enumerate(raw.columns)
        if column.lower() in STATES and column not in judged
        for row, cell in _cells(raw.iloc[:, at])
        if str(cell).strip().lower() in UNFINISHED
    }


def _cells(column: "pd.Series[Any]") -> list[tuple[int, Any]]:
    """Return the rows of a column with their cells."""
    return list(zip(column.index.tolist(), column.tolist(), strict=True))


def _numbers(cells: "pd.Series[Any]") -> "pd.Series[float]":
    """Return the numbers of a column. A comma is the decimal sign if a cell allows no other sense.

    Raises:
        UserError: If every comma may be either, in a file whose separator leaves commas free.
    """
    texts = [_NUMBER.fullmatch(_plain(cell)) for cell in cells if isinstance(cell, str)]
    digits = [match[1] for match in texts if match]
    commas = [text for text in digits if "," in text]
    points = [text for text in digits if text.count(".") > 1]
    thousands = [text for text in commas if _GROUPED["."].fullmatch(text)]
    decimal = "," if points or len(thousands) < len(commas) else "."
    single = decimal == "." and commas and max(text.count(",") for text in commas) == 1
    if single and cells.attrs.get("separator") == ";" and not any("." in t for t in commas):
        raise UserError(
            f"{cells.name}: '{commas[0]}' may be {commas[0].replace(',', '.')} or "
            f"{commas[0].replace(',', '')}; write decimal points"
        )
    return cells.map(lambda cell: number(cell, decimal)).astype(float)


def _plain(text: str) -> str:
    """Return a cell without the spaces and signs that mark thousands or powers of ten."""
    text = _SPACED.sub("", text.strip().strip("\"'").strip())
    return re.sub(r"^10\^", "1e", _TIMES_TEN.sub("e", text))


def _is_empty(cell: object) -> bool:
    return cell is None or str(cell).strip().lower() in EMPTY


def _quoted(cell: object) -> str:
    if _is_empty(cell):
        return "empty" if not str(cell).strip() or cell is None else str(cell).strip()
    text = str(cell).strip()
    return f"'{text[:CELL]}{'...' * (len(text) > CELL)}'"


def _repeats(raw: pd.DataFrame, values: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which rows repeat an earlier one; pandas numbers rows in columns it calls Unnamed."""
    others = raw.loc[values.index, [not name.startswith("Unnamed:") for name in raw.columns]]
    key = pd.Series(list(others.astype(str).itertuples(index=False, name=None)), values.index)
    return values.assign(others=key).duplicated()
