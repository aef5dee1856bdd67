"""The loss curve of a run as a file that follows the training, for whoever watches."""

import contextlib
from pathlib import Path

from tarflow.errors import UserError
from tarflow.record import CURVE, write_table
from tarflow.train.state import TrainState

FILE = "curve.parquet"
WRITE_SECONDS = 20.0  # of training between two versions of the file


class CurveFile:
    """Keeps `curve.parquet` up to date while a run trains; call it after each step."""

    def __init__(self, folder: Path, first: bool) -> None:
        """Begin to follow a run.

        Args:
            folder: Folder of the run.
            first: Whether this is the first worker, which writes.
        """
        self.path, self.first = folder / FILE, first
        self.rows = 0  # of the last version
        self.due = WRITE_SECONDS  # seconds of training, so that short runs write it once

    def __call__(self, state: TrainState) -> None:
        """Write the curve of a training state if it is due and longer than the last one."""
        if not self.first or state.seconds < self.due or len(state.curve) == self.rows:
            return
        self.rows, self.due = len(state.curve), state.seconds + WRITE_SECONDS
        with contextlib.suppress(OSError, UserError):  # a lost network must not stop the run
            self.write(state)

    def write(self, state: TrainState) -> None:
        """Write the curve of a training state.

        Raises:
            UserError: If the file cannot be written.
        """
        write_table(self.path, state.curve, CURVE)
