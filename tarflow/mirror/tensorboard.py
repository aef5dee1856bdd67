"""Runs as event files for `tensorboard --logdir OUT/tensorboard`."""

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from tarflow.errors import UserError
from tarflow.mirror.recorded import Recorded, numbers
from tarflow.storage import Remote


class TensorBoard:
    """A folder of event files for each run."""

    def __init__(self, study: Path) -> None:
        """Write below the folder of a study.

        Raises:
            UserError: If that is on an object store.
        """
        if isinstance(study, Remote):
            raise UserError("--tracker tensorboard writes event files: choose a local --out")
        self.folder = study / "tensorboard"

    def _writer(self, name: str) -> SummaryWriter:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return SummaryWriter(str(self.folder / name))

    def put_run(self, run: Recorded) -> None:
        """Write a run; its step is the number of training images."""
        with self._writer(run.name) as writer:
            lines = [f"    {name}: {value}" for name, value in run.config.items()]
            writer.add_text("config", "\n".join(lines))
            for point in run.curve:
                for name in point.keys() - {"images"}:
                    writer.add_scalar(f"curve/{name}", point[name], point["images"])
            for name, images, png in run.pictures:
                pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
                writer.add_image(name, pixels, images, dataformats="HWC")
            for name, value in numbers(run.row).items():
                writer.add_scalar(f"run/{name}", value, run.row["images"])
            for row in run.evaluations:
                if row.get("half", "all") == "all":
                    for name, value in numbers(row).items():
                        writer.add_scalar(f"samples/{name}", value, run.row["images"])

    def put_study(self, page: bytes, words: str) -> None:
        """Write what the report advises; TensorBoard shows no pages."""
        del page
        with self._writer("study") as writer:
            writer.add_text("best.yaml", "\n".join(f"    {line}" for line in words.splitlines()))
