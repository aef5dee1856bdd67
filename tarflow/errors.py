"""Errors that a person can fix, and the exit codes of every command."""

import math
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake that a person can fix; its text is one line that says what to do."""


class ConfigError(UserError, ValueError):
    """A config that describes no run or study. A `ValueError`, so that pydantic reports it too."""


class StepOutOfMemory(RuntimeError):
    """Memory did not suffice for a training step; a smaller micro-batch may fit."""

    def __init__(self, micro_batch: int) -> None:
        super().__init__(micro_batch)
        self.micro_batch = micro_batch  # images per pass

    def __str__(self) -> str:
        return f"out of memory in a pass over {self.micro_batch} images"


def check_flags(**flags: object) -> None:
    """Refuse the first number of a command line that is negative or not finite.

    Args:
        **flags: Values by flag, of which those that are not floating-point numbers are ignored.

    Raises:
        UserError: If a number is wrong, naming the flag.

    >>> check_flags(max_hours=-1.0)
    Traceback (most recent call last):
    tarflow.errors.UserError: --max-hours is -1: it must be a finite number, 0 or more
    """
    for name, value in flags.items():
        if isinstance(value, float) and not 0 <= value < math.inf:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {value:g}: it must be a finite number, 0 or more")


def check_counts(**flags: int | None) -> None:
    """Refuse the first number of a command line that is below 1; None is no number.

    Raises:
        UserError: If a number is wrong, naming the flag.

    >>> check_counts(count=None, batch=0)
    Traceback (most recent call last):
    tarflow.errors.UserError: --batch is 0: it must be at least 1
    """
    for name, value in flags.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")


def check_seed(seed: int) -> None:
    """Refuse a negative seed.

    Raises:
        UserError: If it is one.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be 0 or more")


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; print one line for a user's mistake or Ctrl-C.

    Returns:
        The command's own code (0 done, 1 some of it failed), 2 after a `UserError`, or 128 plus
        the signal after one that `interrupt` handles, such as Ctrl-C, or after a reader of the
        output, such as `head`, has closed it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither nohup nor a caller
        signal.signal(signal.SIGINT, interrupt)
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        return 128 + int(next(iter(stopped.args), signal.SIGINT))
    except BrokenPipeError:
        if not stdout_closed():
            raise
        # On exit the interpreter flushes its buffer, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def interrupt(number: int, _frame: object) -> NoReturn:
    """End the command on a signal, after it has cleaned up; on the same again, end it at once.

    Python would print a traceback of whatever a second Ctrl-C interrupts.
    """
    signal.signal(number, signal.SIG_DFL)
    os.write(2, b"stopped; run the same command again to resume\n")  # print may be interrupted
    raise KeyboardInterrupt(number)


def stdout_closed() -> bool:
    """Tell whether the reader of standard output, such as `head`, has closed it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
