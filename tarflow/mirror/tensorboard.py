"""Runs as event files for `tensorboard --logdir OUT/tensorboard`."""

import io
import shutil
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from tarflow.errors import UserError
from tarflow.mirror.recorded import Recorded, numbers
from tarflow.storage import Remote

FILE = "events.out.tfevents"  # in a folder; TensorBoard follows what is appended


class TensorBoard:
    """A folder for each run, with one event file, to which each call appends.

    tensorboardX's own writer is not used: it opens another file whenever a study is resumed, and
    writes in a thread, later than it says.
    """

    def __init__(self, study: Path) -> None:
        """Write below the folder of a study.

        Raises:
            UserError: If that is on an object store.
        """
        if isinstance(study, Remote):
            raise UserError("--tracker tensorboard writes event files: choose a local --out")
        self.folder = study / "tensorboard"
        self.studied = False  # whether this command has written to the run named study

    def put_run(self, run: Recorded, since: int) -> None:
        """Write a run; its step is the number of training images."""
        events = []
        if not since:
            events.append(_text("config", (f"{n}: {v}" for n, v in run.config.items())))
        events += [
            _scalar(f"curve/{name}", value, point["images"])
            for point in run.curve
            for name, value in point.items()
            if name != "images"
        ]
        events += [_picture(*each) for each in run.pictures]
        final = [("run", run.row)] if run.ended else []
        final += [("samples", row) for row in run.evaluations if row.get("half", "all") == "all"]
        events += [
            _scalar(f"{group}/{name}", value, run.images)
            for group, row in final
            for name, value in numbers(row).items()
        ]
        self._append(run.name, events, anew=not since)

    def put_law(self, picture: bytes, runs: int) -> None:
        """Write the picture of the law; its step is the number of runs."""
        self._append_to_study(_picture("law", runs, picture))

    def put_study(self, page: bytes, words: str) -> None:
        """Write what the report advises; TensorBoard shows no pages."""
        del page
        self._append_to_study(_text("best.yaml", words.splitlines()))

    def _append_to_study(self, event: Event) -> None:
        """Write to a run named study, which takes the place of one of an earlier command."""
        self._append("study", [event], anew=not self.studied)
        self.studied = True

    def _append(self, name: str, events: Iterable[Event], anew: bool) -> None:
        """Append events to those of a name, or write them in their place."""
        if anew:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        path = self.folder / name / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        first = [] if path.exists() else [Event(file_version="brain.Event:2")]
        records = b"".join(_record(event) for event in (*first, *events))
        with path.open("ab") as file:
            file.write(records)


def _record(event: Event) -> bytes:
    """Return an event as it stands in a file: its length and content, with a checksum each."""
    event.wall_time = time.time()
    content: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(sums) + content + next(sums)


def _scalar(name: str, value: float, step: float) -> Event:
    return Event(step=int(step), summary=summary.scalar(name, value))


def _text(name: str, lines: Iterable[str]) -> Event:
    """Return lines as Markdown that shows them as they are."""
    return Event(summary=summary.text(name, "\n".join(f"    {line}" for line in lines)))


def _picture(name: str, step: int, png: bytes) -> Event:
    pixels: Any = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return Event(step=step, summary=summary.image(name, pixels, dataformats="HWC"))
