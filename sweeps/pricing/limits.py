"""What a command may use: time and device-hours, whichever options say so."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from tarflow.errors import UserError

WOULD_PASS = "what is left would pass"  # a limit; begins the reason why a command has stopped


@dataclass(frozen=True)
class Limits:
    """What a command may use; infinite where nothing limits it."""

    end: float = math.inf  # Unix time
    device_seconds: float = math.inf  # that runs occupy devices
    end_option: str = ""  # which sets the end, such as --until 18:30
    device_option: str = ""  # which sets the device-seconds

    def passed(self, time: float, device_seconds: float) -> str:
        """Return the option whose limit lies below this time or use; empty if none does."""
        if time > self.end:
            return self.end_option
        return self.device_option if device_seconds > self.device_seconds else ""


NO_LIMITS = Limits()


def limits_from(
    now: float,
    price: float,
    *,
    max_hours: float | None = None,
    until: str | None = None,
    max_device_hours: float | None = None,
    max_cost: float | None = None,
) -> Limits:
    """Return the tightest limits that the options of a command set.

    Args:
        now: Unix time.
        price: US dollars per device-hour; 0 if not known.
        max_hours: Hours from now on.
        until: Time as `time_of` reads it.
        max_device_hours: Hours that runs may occupy devices, added up over devices.
        max_cost: US dollars for these hours.

    Raises:
        UserError: If a limit leaves nothing, `until` is no time to come, or the price is missing.
    """
    options = {"hours": max_hours, "device-hours": max_device_hours, "cost": max_cost}
    for name, value in options.items():
        if value is not None and value <= 0:
            raise UserError(f"--max-{name} is {value:g}: it must be positive")
    if max_cost is not None and not price:
        raise UserError(
            "--max-cost needs the price of a device-hour: add --price USD, name a rented device "
            "with --accelerator, or list this machine's in the file of TARFLOW_PRICES"
        )
    ends, uses = [(math.inf, "")], [(math.inf, "")]
    if max_hours is not None:
        ends.append((now + 3600 * max_hours, f"--max-hours {max_hours:g}"))
    if until is not None:
        ends.append((time_of(until, now), f"--until {until}"))
    if max_device_hours is not None:
        uses.append((3600 * max_device_hours, f"--max-device-hours {max_device_hours:g}"))
    if max_cost is not None:
        uses.append((3600 * max_cost / price, f"--max-cost {max_cost:g}"))
    if len(ends) == len(uses) == 1:
        return NO_LIMITS
    (end, end_option), (device_seconds, device_option) = min(ends), min(uses)
    return Limits(end, device_seconds, end_option, device_option)


def time_of(text: str, now: float) -> float:
    """Return the Unix time of 18:30, the next one, or of 2026-11-27T06:00; local time.

    Raises:
        UserError: If it is neither, or in the past.
    """
    start = datetime.fromtimestamp(now)
    try:
        if len(text) == len("18:30"):
            today = datetime.combine(start.date(), datetime.strptime(text, "%H:%M").time())
            end = today if today > start else today + timedelta(days=1)
        else:
            end = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"--until {text} is no time: write 18:30, or 2026-11-27T06:00 for another day"
        ) from None
    if end.timestamp() <= now:
        raise UserError(f"--until {text} has passed: it is {start:%Y-%m-%dT%H:%M} now")
    return end.timestamp()
