"""Runs in MLflow: the server of MLFLOW_TRACKING_URI, or else a database in the study's folder."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from tarflow.errors import UserError
from tarflow.mirror.recorded import Recorded, numbers
from tarflow.storage import Remote

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
AT_ONCE = 100  # parameters and metrics that a request may hold


class MLflow:
    """An experiment named after the folder of the study, with a run for each run."""

    def __init__(self, study: Path) -> None:
        """Find or make the experiment.

        Raises:
            UserError: If the study is on an object store and no server is named.
        """
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address and isinstance(study, Remote):
            raise UserError("--tracker mlflow: name a server in MLFLOW_TRACKING_URI")
        if not address:
            study.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(address or f"sqlite:///{study / 'mlflow.db'}")
        files = None if address else (study / "mlflow").as_uri()
        found = self.client.get_experiment_by_name(study.name)
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(study.name, files)
        )

    def _replace(self, run_id: str, name: str) -> str:
        """Return the id of a new run in place of the one that mirrors the same."""
        same = f"tags.tarflow_run = '{run_id}'"
        for old in self.client.search_runs([self.experiment], same):
            self.client.delete_run(old.info.run_id)
        tags = {"tarflow_run": run_id}
        run: str = self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
        return run

    def put_run(self, run: Recorded) -> None:
        """Write a run; its step is the number of training images."""
        new, images = self._replace(run.run_id, run.name), int(run.row["images"])
        metrics = [
            Metric(f"curve/{name}", float(point[name]), 0, int(point["images"]))
            for point in run.curve
            for name in point.keys() - {"images"}
        ]
        metrics += [Metric(name, value, 0, images) for name, value in numbers(run.row).items()]
        for row in run.evaluations:
            if row.get("half", "all") == "all":
                scores = numbers(row).items()
                metrics += [Metric(f"samples/{name}", value, 0, images) for name, value in scores]
        params = [Param(name, str(value)) for name, value in run.config.items()]
        for start in range(0, max(len(metrics), len(params)), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self.client.log_batch(new, metrics[part], params[part])
        for name in run.row.keys() - numbers(run.row).keys():
            self.client.set_tag(new, name, str(run.row[name]))
        for name, seen, png in run.pictures:
            self._artifact(new, f"{name}-{seen}.png", png)
        failed = run.row["status"] == "failed"
        self.client.set_terminated(new, "FAILED" if failed else "FINISHED")

    def put_study(self, page: bytes, words: str) -> None:
        """Write the report and best.yaml as files of a run named study."""
        new = self._replace("study", "study")
        self._artifact(new, "report.html", page)
        self._artifact(new, "best.yaml", words.encode())
        self.client.set_terminated(new)

    def _artifact(self, run: str, name: str, content: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self.client.log_artifact(run, str(path))
