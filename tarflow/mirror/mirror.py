"""Keep a tracker up to date with the folders of runs, which alone decide what it shows."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal

from tarflow.errors import UserError
from tarflow.mirror.recorded import Tracker, read_recorded
from tarflow.record import read_json, write_json

Name = Literal["tensorboard", "wandb", "mlflow", "trackio"]
CLASSES = {
    "tensorboard": "TensorBoard",
    "wandb": "WeightsAndBiases",
    "mlflow": "MLflow",
    "trackio": "Trackio",
}
LOOK_SECONDS = 20.0  # between looks for what is new
PICTURE = "law.png"


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
    """Writes the runs of a study to a tracker, each while it trains and when it has ended."""

    def __init__(self, name: Name, study: Path, only: Path | None = None) -> None:
        """Continue where the last command has stopped.

        Args:
            name: Of the tracker, as users write it.
            study: Folder of the study, or the one that holds a single run.
            only: Folder of that single run.

        Raises:
            UserError: As `open_tracker`.
        """
        self.name, self.study, self.tracker = name, study, open_tracker(name, study)
        self.only = only
        self.file = study / f"mirrored-{name}.json"
        # By the folder of a run: its status if it has ended, or the images up to which its curve
        # is there. One whose folder was deleted may be trained anew at the same place.
        folders = {path.name for path in (study if only else study / "runs").glob("*")}
        before: dict[str, str | int] = read_json(self.file) or {}
        self.done = {name: state for name, state in before.items() if name in folders}
        self.law = b""  # the picture that is there
        self.problem = ""  # why the last attempt has failed; empty if it has not

    def update(self) -> None:
        """Write what is new; a tracker that fails is tried again next time."""
        with self._noting_problems():
            every = [self.only] if self.only else sorted((self.study / "runs").glob("*"))
            for folder in every:
                if self.done.get(folder.name) != "done":
                    self._put(folder)
            path = self.study / PICTURE
            if path.exists() and (picture := path.read_bytes()) != self.law:
                ended = [state for state in self.done.values() if state == "done"]
                self.tracker.put_law(picture, len(ended))
                self.law = picture

    def _put(self, folder: Path) -> None:
        """Write what is new of a run; one that has failed before is written anew."""
        state = self.done.get(folder.name)
        since = state if isinstance(state, int) else 0
        run = read_recorded(folder)
        if run and (run.row["status"] != state if run.ended else run.images > since):
            self.tracker.put_run(run.after(since), since)
            self.done[folder.name] = run.row["status"] if run.ended else run.images
            write_json(self.file, self.done)

    def conclude(self) -> None:
        """Write the runs that are left, and the report of the study if it has one."""
        self.update()
        page, best = self.study / "report.html", self.study / "best.yaml"
        if self.problem or not page.exists():
            return
        with self._noting_problems():
            words = best.read_text() if best.exists() else ""
            self.tracker.put_study(page.read_bytes(), words)

    @contextlib.contextmanager
    def _noting_problems(self) -> Iterator[None]:
        """Note what fails, of any package, server or disk: runs go first."""
        self.problem = ""
        try:
            yield
        except Exception as error:
            self.problem = str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def mirroring(mirror: Mirror | None, say: Callable[[str], None]) -> Iterator[None]:
    """Update a mirror in a thread during the block, and conclude it after an orderly end.

    Args:
        mirror: The mirror, or None.
        say: Tells the user what could not be mirrored, at its first failure and at the end.
    """
    if mirror is None:
        yield
        return
    ended = threading.Event()

    def keep_updating() -> None:
        told = False
        while not ended.wait(LOOK_SECONDS):
            mirror.update()
            if mirror.problem and not told:
                told = True
                say(f"{mirror.name} fails, runs continue and it is tried again: {mirror.problem}")

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
