"""Errors that a person can fix, and the exit codes of every command."""

import os
import select
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that a person can fix; its text is one line that says what to do."""


class ConfigError(UserError, ValueError):
    """A config that describes no run or study. A `ValueError`, so that pydantic reports it too."""


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; print one line for a user's mistake or Ctrl-C.

    Returns:
        The command's own code (0 done, 1 some of it failed), 2 after a `UserError`, or 128 plus
        the signal after Ctrl-C or after a reader of the output, such as `head`, has closed it.
    """
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not stdout_closed():
            raise
        # On exit the interpreter flushes its buffer, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def stdout_closed() -> bool:
    """Tell whether the reader of standard output, such as `head`, has closed it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
