"""How every command here ends: 0 done, 1 some of it failed, 2 the command was wrong."""

import os
import select
import signal
import sys
from collections.abc import Callable

from tarflow.config import ConfigError


def exit_code_of(act: Callable[[], int]) -> int:
    """Act and return the exit code; a user's mistake or interruption is one line."""
    try:
        return act()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still kept
        return 128 + signal.SIGPIPE


def unread() -> bool:
    """Tell whether the reader of the output, such as `head`, has left."""
    watched = select.poll()
    watched.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))
