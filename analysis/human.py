"""Numbers for people: one way to write each quantity, used by every page and table."""

from collections.abc import Callable

from tarflow.human import MISSING, count, device_time, digits, missing, money, seconds, size

__all__ = [
    "MISSING",
    "bits",
    "count",
    "device_time",
    "digits",
    "interval",
    "missing",
    "money",
    "number",
    "percent",
    "power",
    "seconds",
    "size",
]
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float | None, digits: int = 2) -> str:
    """Write a large number as a power of ten.

    >>> power(1.1e12), power(1e15), power(3.27e11, digits=3), power(float("nan"))
    ('1.1×10¹²', '10¹⁵', '3.27×10¹¹', '–')
    """
    if value is None or missing(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return ten if mantissa == "1" else f"{mantissa}×{ten}"


def bits(value: float | None) -> str:
    """Write bits per dimension.

    >>> bits(1.70772)
    '1.708'
    """
    return MISSING if value is None or missing(value) else f"{value:.3f}"


def number(value: float | None) -> str:
    """Write a number of any other kind with three digits.

    >>> number(0.40123), number(0.0042), number(12345.0), number(3e-7)
    ('0.401', '0.0042', '1.23×10⁴', '3×10⁻⁷')
    """
    if value is None or missing(value):
        return MISSING
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return ("-" if value < 0 else "") + power(abs(value), 3)
    return f"{value:.3g}"


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
