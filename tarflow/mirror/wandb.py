"""Runs in Weights & Biases. WANDB_MODE=offline keeps them on this machine for `wandb sync`."""

import io
from pathlib import Path
from typing import Any

import wandb
from PIL import Image

from tarflow.mirror.recorded import Recorded


class WeightsAndBiases:
    """A project named after the folder of the study, with a run for each run."""

    def __init__(self, study: Path) -> None:
        self.project = study.name

    def _begin(self, run_id: str, name: str, config: dict[str, Any]) -> Any:
        return wandb.init(
            project=self.project,
            id=f"{self.project}-{run_id}",
            name=name,
            config=config,
            resume="allow",  # it refuses steps that it has already
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def put_run(self, run: Recorded) -> None:
        """Write a run; its step is the number of training images."""
        with self._begin(run.run_id, run.name, dict(run.config)) as record:
            steps: dict[int, dict[str, Any]] = {}
            for point in run.curve:
                steps.setdefault(int(point["images"]), {}).update(point)
            for name, images, png in run.pictures:
                steps.setdefault(images, {})[name] = wandb.Image(Image.open(io.BytesIO(png)))
            for images in sorted(steps):
                record.log(steps[images], step=images)
            record.summary.update(run.row)
            if run.evaluations:
                columns = sorted({name for row in run.evaluations for name in row})
                rows = [[row.get(name) for name in columns] for row in run.evaluations]
                record.summary["evaluations"] = wandb.Table(columns, rows, allow_mixed_types=True)

    def put_study(self, page: bytes, words: str) -> None:
        """Write the report as a panel of a run named study."""
        with self._begin("study", "study", {"best": words}) as record:
            record.log({"report": wandb.Html(page.decode(), inject=False)})
