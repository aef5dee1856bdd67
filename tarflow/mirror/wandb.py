"""Runs in Weights & Biases. WANDB_MODE=offline keeps them on this machine for `wandb sync`."""

import io
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from tarflow.mirror.recorded import Recorded, by_step


class WeightsAndBiases:
    """A project named after the folder of the study, with a run for each run."""

    def __init__(self, study: Path) -> None:
        self.project = study.name
        self.records: dict[str, Any] = {}  # by run, while it trains

    def _record(self, run_id: str, name: str) -> Any:
        """Return what writes to a run, open until it is finished."""
        if run_id not in self.records:
            self.records[run_id] = wandb.init(
                project=self.project,
                id=f"{self.project}-{run_id}",
                name=name,
                resume="allow",  # it refuses steps that it has already
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        return self.records[run_id]

    def put_run(self, run: Recorded, since: int) -> None:
        """Write a run; its step is the number of training images."""
        record = self._record(run.run_id, run.name)
        if not since:
            record.config.update(dict(run.config), allow_val_change=True)
        for images, values in by_step(run, picture):
            record.log(values, step=images)
        if run.ended:
            record.summary.update(run.row)
            if run.evaluations:
                columns = sorted({name for row in run.evaluations for name in row})
                rows = [[row.get(name) for name in columns] for row in run.evaluations]
                record.summary["evaluations"] = wandb.Table(columns, rows, allow_mixed_types=True)
            self.records.pop(run.run_id).finish()

    def put_law(self, png: bytes, runs: int) -> None:
        """Write the picture of the law to a run named study."""
        self._record("study", "study").log({"law": picture(png), "runs": runs})

    def put_study(self, page: bytes, words: str) -> None:
        """Write the report as a panel of a run named study."""
        record = self._record("study", "study")
        record.config.update({"best": words}, allow_val_change=True)
        record.log({"report": wandb.Html(page.decode(), inject=False)})
        self.records.pop("study").finish()


def picture(png: bytes) -> wandb.Image:
    """Return a picture as it is logged."""
    return wandb.Image(Image.open(io.BytesIO(png)))
