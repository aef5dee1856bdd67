"""Keep readers of a running batch informed: progress.json for watchers, report.html as runs end.

Neither may disturb the study: failures to write are tried again, and the report is built at low
priority by a process of its own, so that a crash there costs a page and nothing else.
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from sweeps.watching.progress import Progress
from tarflow import record
from tarflow.errors import UserError
from tarflow.storage import Remote

FILE = "progress.json"
PUBLISH_SECONDS = 5.0  # between snapshots, and looks for what the report lacks
WAIT = 20.0  # times the processor time of the last build: the page takes at most 5% of a core
RENEW_SECONDS = 600.0  # until the page is renewed though nothing ended: readers see it is alive
NICENESS = 10
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class LivePage:
    """The report of a study while it runs. A study on an object store has none until its end.

    Leaving the block stops a build, so that the last page is that of the driver.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.problem = ""  # why the last build failed
        self.shown: object = None  # version of the study when the last build began
        self.due = 0.0  # when the next build may begin, on the monotonic clock
        self.renew_at = 0.0  # when it begins though nothing has ended
        self._build: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with this object
        self._spent = 0.0  # processor time of ended children when the build began

    def __enter__(self) -> "LivePage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._build:
            self._build.terminate()
            self._build.wait()
        self._errors.close()

    def update(self, version: object) -> None:
        """Begin to build the page if it is out of date and enough time has passed.

        Args:
            version: Of what the page shows; another one once a task has ended.
        """
        if isinstance(self.out, Remote) or not self._collected():
            return
        now = time.monotonic()
        if now >= self.due and (version != self.shown or now >= self.renew_at):
            self.shown, self._spent = version, _processor_seconds()
            self._errors.seek(0)
            self._errors.truncate()
            self._build = subprocess.Popen(
                [sys.executable, "-m", "analysis", "report", str(self.out), "--live"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=os.environ | ONE_THREAD,
                start_new_session=True,  # Ctrl-C is for the driver
            )
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, self._build.pid, NICENESS)

    def _collected(self) -> bool:
        """Tell whether no build is going on; note how the last one went."""
        if self._build is None:
            return True
        code = self._build.poll()
        if code is None:
            return False
        now, self._build = time.monotonic(), None
        self.due = now + WAIT * (_processor_seconds() - self._spent)
        self.renew_at = max(self.due, now + RENEW_SECONDS)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.problem = (lines[-1] if lines else f"exit code {code}") if code else ""
        return True


def _processor_seconds() -> float:
    """Return the processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def publishing(progress: Progress, page: LivePage) -> Iterator[None]:
    """Write snapshots of a batch to its study's folder, and renew the page, during the block.

    The user is told of a page that cannot be built, once for each batch.
    """
    ended = threading.Event()

    def publish() -> None:
        with contextlib.suppress(OSError, UserError):  # a full disk or a lost network: try again
            record.write_json(page.out / FILE, progress.snapshot())

    def keep_publishing() -> None:
        told = False
        while True:
            publish()
            progress.remind()
            if progress.before or progress.rows:
                page.update((progress.began, len(progress.rows)))
            if page.problem and not told:
                told = True
                progress.note(f"the page could not be written, runs continue: {page.problem}")
            if ended.wait(PUBLISH_SECONDS):
                return

    thread = threading.Thread(target=keep_publishing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        publish()
