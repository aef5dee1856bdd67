"""How every command here ends: 0 done, 1 some of it failed, 2 the command was wrong."""

import os
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
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still kept
        return 128 + signal.SIGPIPE
