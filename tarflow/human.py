"""Numbers for people: one way to write each quantity, used by every page, table and command."""

import math
from collections.abc import Callable, Sequence

Progress = Callable[[int, int, float], None]  # items done, items in all, seconds so far

_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_DURATIONS = (  # seconds in a unit, its name, and from how many seconds on it is used
    *((86400.0, "d", 2 * 86400.0), (3600.0, "h", 5400.0), (60.0, "min", 120.0)),
    *((1.0, "s", 0.1), (1e-3, "ms", 1e-4), (1e-6, "µs", 0.0)),
)
_DEVICE_TIMES = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_NAMES = 20  # of many names, those written in a line
MISSING = "–"


def silent(done: int, total: int, seconds: float) -> None:
    """Tell nobody of progress."""


def missing(value: float | None) -> bool:
    """Tell whether a value is None or not finite."""
    return value is None or not math.isfinite(value)


def count(value: float | None) -> str:
    """Write a count with three digits.

    >>> count(230_400), count(1_225_728), count(500), count(None), count(6e24)
    ('230k', '1.23M', '500', '–', '6e24')
    """
    if value is None or missing(value):
        return MISSING
    if abs(value) >= 1000 * _SUFFIXES[0][0]:
        return power(value, 3)
    for scale, suffix in _SUFFIXES:
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def names(values: Sequence[str], separator: str = ", ") -> str:
    """Write names in a line, only the first of many.

    >>> names(["cat", "dog"]), names(["a"] * 1_020).removeprefix("a, " * 19)
    ('cat, dog', 'a and 1,000 more')
    """
    more = len(values) - _NAMES
    return separator.join(values[:_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def series(words: Sequence[str], joint: str = "and") -> str:
    """Write words in a line, the last after a joint.

    >>> series(["cat", "dog", "owl"]), series(["cat"], "or"), series([])
    ('cat, dog and owl', 'cat', '')
    """
    *rest, last = words or [""]
    return f"{', '.join(rest)} {joint} {last}" if rest else last


def digits(value: float) -> str:
    """Write a number with three significant digits, without an exponent if it is large.

    >>> digits(1367.19), digits(12.345), digits(2.0), digits(0.0042)
    ('1,370', '12.3', '2', '0.0042')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def seconds(value: float | None) -> str:
    """Write a duration.

    >>> seconds(0.25), seconds(75), seconds(120), seconds(5400), seconds(3e5)
    ('0.25 s', '75 s', '2 min', '1.5 h', '3.47 d')
    >>> seconds(0.001277), seconds(0.00002), seconds(0)
    ('1.28 ms', '20 µs', '0 s')
    """
    if value is None or missing(value):
        return MISSING
    if value <= 0:
        return f"{digits(value)} s"
    scale, unit, _ = next(row for row in _DURATIONS if value >= row[2])
    return f"{digits(value / scale)} {unit}"


def device_time(value: float, device: str) -> str:
    """Write the seconds that devices are busy in all, such as 12 H100-hours.

    >>> device_time(4.93e6, "H100"), device_time(90, "core"), device_time(0.18, "H100")
    ('1,370 H100-hours', '1.5 core-minutes', '0.18 H100-seconds')
    """
    scale, unit = next((row for row in _DEVICE_TIMES if value >= row[0]), _DEVICE_TIMES[-1])
    return f"{digits(value / scale)} {device}-{unit}"


def size(value: float | None) -> str:
    """Write a number of bytes.

    >>> size(4_100_000), size(65.23e9), size(12)
    ('4.1 MB', '65.2 GB', '12 B')
    """
    if value is None or missing(value):
        return MISSING
    scale, unit = next((row for row in _SUFFIXES if value >= 0.9995 * row[0]), (1.0, ""))
    return f"{digits(value / scale)} {unit}B"


def money(value: float) -> str:
    """Write US dollars.

    >>> money(1367.19), money(12.345), money(3.456), money(0.000199), money(0)
    ('$1,370', '$12.3', '$3.46', '< $0.01', '$0')
    """
    if 0 < value < 0.01:
        return "< $0.01"
    return f"${value:.2f}" if 0 < value < 9.995 else f"${digits(value)}"


def power(value: float | None, digits: int = 2) -> str:
    """Write a large number as a power of ten.

    >>> power(1.1e12), power(1e15), power(3.27e11, digits=3), power(float("nan"))
    ('1.1e12', '1e15', '3.27e11', '–')
    """
    if value is None or missing(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def bits(value: float | None) -> str:
    """Write bits per dimension.

    >>> bits(1.70772)
    '1.708'
    """
    return MISSING if value is None or missing(value) else f"{value:.3f}"


def bits_unit(kind: str) -> str:
    """Name the unit of a likelihood by its `bpd_kind`.

    >>> bits_unit("bound"), bits_unit("latent")
    ('bits per dimension', 'bits per latent dimension')
    """
    return "bits per latent dimension" if kind == "latent" else "bits per dimension"


def bpd_name(kind: str) -> str:
    """Name a likelihood in a table or beside a number, by its `bpd_kind`.

    >>> bpd_name("bound"), bpd_name("latent")
    ('BPD', 'latent BPD')
    """
    return "latent BPD" if kind == "latent" else "BPD"


def number(value: float | None) -> str:
    """Write a number of any other kind with three digits.

    >>> number(0.40123), number(0.0042), number(2093.0), number(12345.0), number(3e-7)
    ('0.401', '0.0042', '2,090', '1.23e4', '3e-7')
    """
    if value is None or missing(value):
        return MISSING
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return ("-" if value < 0 else "") + power(abs(value), 3)
    return digits(value)


def interval(ends: tuple[float, float] | None, write: Callable[[float], str] = number) -> str:
    """Write an interval, its ends by one of the other functions.

    >>> interval((0.31, 0.52)), interval((2.1e5, 4.4e5), count)
    ('0.31 to 0.52', '210k to 440k')
    >>> interval((0.0, float("inf")))
    'unknown'
    """
    if ends is None or any(missing(end) for end in ends):
        return "unknown"
    return f"{write(ends[0])} to {write(ends[1])}"


def percent(value: float | None, signed: bool = False) -> str:
    """Write a share as a percentage.

    >>> percent(0.0123), percent(-0.2, signed=True), percent(0.91)
    ('1.2%', '-20%', '91%')
    """
    if value is None or missing(value):
        return MISSING
    digits = 0 if abs(value) >= 0.0995 else 1 if abs(value) >= 0.00995 else 2
    return f"{100 * value:{'+' if signed else ''}.{digits}f}%"
