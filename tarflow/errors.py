"""Errors that a person can fix, and the exit codes of every command."""

import os
import select
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something a person can fix; its text is one line that says what to do."""


class ConfigError(UserError, ValueError):
    """A config that describes no run or study. A `ValueError`, so that pydantic reports it too."""


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; a user's mistake or an interruption prints one line.

    Returns:
        What the command returns: 0 done, 1 some of it failed; 2 after a `UserError`; 128 plus the
        signal after Ctrl-C, or when the reader of the output, such as `head`, has closed it.
    """
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not stdout_closed():
            raise
        # The interpreter flushes what is still buffered when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def stdout_closed() -> bool:
    """Tell whether the reader of standard output, such as `head`, has closed it."""
    watched = select.poll()
    watched.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))
