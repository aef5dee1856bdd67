"""Keep a tracker up to date with the folders of runs, which alone decide what it shows."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal

from tarflow.errors import UserError
from tarflow.mirror.recorded import Tracker, read_recorded
from tarflow.record import read_json, read_result, write_json

Name = Literal["tensorboard", "wandb", "mlflow"]
CLASSES = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}
LOOK_SECONDS = 15.0  # between looks for runs that have ended


def open_tracker(name: Name, study: Path) -> Tracker:
    """Return a tracker by its name.

    Args:
        name: As users write it.
        study: Folder of the study, or the one that holds a single run.

    Raises:
        UserError: If its package is not installed, naming the extra; or if it cannot mirror a
            study that is stored where this one is.
    """
    try:
        module = import_module(f"tarflow.mirror.{name}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"--tracker {name} needs the package {error.name}: pip install 'tarflow[{name}]'"
        ) from None
    tracker: Tracker = getattr(module, CLASSES[name])(study)
    return tracker


class Mirror:
    """Writes each run of a study to a tracker once it has ended, and again if it ends anew."""

    def __init__(self, name: Name, study: Path) -> None:
        """Continue where the last command has stopped.

        Raises:
            UserError: As `open_tracker`.
        """
        self.name, self.study, self.tracker = name, study, open_tracker(name, study)
        self.file = study / f"mirrored-{name}.json"
        self.done: dict[str, str] = read_json(self.file) or {}  # status by run id
        self.problem = ""  # why the last attempt has failed; empty if it has not

    def update(self) -> None:
        """Write the runs that have ended since; a tracker that fails is tried again next time."""
        try:
            for folder in sorted((self.study / "runs").glob("*")):
                if self.done.get(folder.name) == "done" or not (result := read_result(folder)):
                    continue
                status = result["run"]["status"]
                if status != self.done.get(folder.name) and (run := read_recorded(folder)):
                    self.tracker.put_run(run)
                    self.done[folder.name] = status
                    write_json(self.file, self.done)
            self.problem = ""
        except Exception as error:  # of any package, server or disk: runs go first
            self.problem = str(error).partition("\n")[0] or type(error).__name__

    def conclude(self) -> None:
        """Write the runs that are left, and the report of the study if it has one."""
        self.update()
        page, best = self.study / "report.html", self.study / "best.yaml"
        if self.problem or not page.exists():
            return
        try:
            words = best.read_text() if best.exists() else ""
            self.tracker.put_study(page.read_bytes(), words)
        except Exception as error:
            self.problem = str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def mirroring(mirror: Mirror | None, say: Callable[[str], None]) -> Iterator[None]:
    """Update a mirror in a thread during the block, and conclude it after an orderly end.

    Args:
        mirror: The mirror, or None.
        say: Tells the user what could not be mirrored.
    """
    if mirror is None:
        yield
        return
    ended = threading.Event()

    def keep_updating() -> None:
        while not ended.wait(LOOK_SECONDS):
            mirror.update()

    thread = threading.Thread(target=keep_updating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    mirror.conclude()
    if mirror.problem:
        say(f"not all is in {mirror.name}, the next command tries again: {mirror.problem}")
