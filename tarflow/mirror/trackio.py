"""Runs in Trackio: a database in TRACKIO_DIR, or the space of TRACKIO_SPACE_ID on Hugging Face."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trackio
from PIL import Image
from trackio import run, utils

from tarflow.mirror.recorded import Recorded, by_step

# It tells of each run that it opens, amid the progress of the study.
for module in (trackio, run, utils):
    vars(module)["print"] = lambda *_, **__: None


class Trackio:
    """A project named after the folder of the study, with a run for each run."""

    def __init__(self, study: Path) -> None:
        self.project = study.name
        self.studied = False  # whether this command has written to the run named study

    @contextlib.contextmanager
    def _record(
        self, name: str, anew: bool, config: dict[str, Any] | None = None
    ) -> Iterator[Any]:
        """Yield what writes to a run. One is open at a time, so each is closed at once."""
        if anew:
            with contextlib.suppress(ValueError):  # there is no such project yet
                for old in trackio.Api().runs(self.project):
                    if old.name == name:
                        old.delete()
        record = trackio.init(
            self.project,
            name,
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,  # of this machine, which need not train the run
            auto_log_cpu=False,
        )
        try:
            yield record
        finally:
            trackio.finish()

    def put_run(self, run: Recorded, since: int) -> None:
        """Write a run; its step is the number of training images."""
        with self._record(run.name, not since, dict(run.config)) as record:
            for images, values in by_step(run, picture):
                record.log(values, step=images)
            if run.ended:
                record.log({f"run/{name}": value for name, value in run.row.items()}, run.images)
            for row in run.evaluations:
                record.log({f"samples/{name}": value for name, value in row.items()}, run.images)

    def put_law(self, png: bytes, runs: int) -> None:
        """Write the picture of the law; its step is the number of runs."""
        self._log_study({"law": picture(png)}, runs)

    def put_study(self, page: bytes, words: str) -> None:
        """Write what the report advises, and the page."""
        report, advice = trackio.Html(page.decode()), trackio.Markdown(f"```yaml\n{words}```")
        self._log_study({"report": report, "best.yaml": advice}, None)

    def _log_study(self, values: dict[str, Any], step: int | None) -> None:
        """Write to a run named study, which takes the place of one of an earlier command."""
        with self._record("study", anew=not self.studied) as record:
            record.log(values, step)
        self.studied = True


def picture(png: bytes) -> trackio.Image:
    """Return a picture as it is logged."""
    return trackio.Image(Image.open(io.BytesIO(png)))
