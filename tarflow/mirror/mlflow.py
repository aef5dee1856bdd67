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

    def _run(self, run_id: str, name: str, anew: bool) -> str:
        """Return the id here of what mirrors a run, or of an empty one in its place."""
        same = f"tags.tarflow_run = '{run_id}'"
        for old in self.client.search_runs([self.experiment], same):
            if not anew:
                return str(old.info.run_id)
            self.client.delete_run(old.info.run_id)
        tags = {"tarflow_run": run_id}
        new: str = self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
        return new

    def put_run(self, run: Recorded, since: int) -> None:
        """Write a run; its step is the number of training images.

        Without a time, a point that is written twice is one point.
        """
        own = self._run(run.run_id, run.name, anew=not since)
        metrics = [
            Metric(f"curve/{name}", float(point[name]), 0, int(point["images"]))
            for point in run.curve
            for name in point.keys() - {"images"}
        ]
        final = numbers(run.row) if run.ended else {}
        metrics += [Metric(name, value, 0, run.images) for name, value in final.items()]
        for row in run.evaluations:
            if row.get("half", "all") == "all":
                metrics += [
                    Metric(f"samples/{name}", value, 0, run.images)
                    for name, value in numbers(row).items()
                ]
        params = [] if since else [Param(name, str(value)) for name, value in run.config.items()]
        for start in range(0, max(len(metrics), len(params)), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self.client.log_batch(own, metrics[part], params[part])
        for name, seen, png in run.pictures:
            self._artifact(own, f"{name}-{seen}.png", png)
        if run.ended:
            for name in run.row.keys() - final.keys():
                self.client.set_tag(own, name, str(run.row[name]))
            failed = run.row["status"] == "failed"
            self.client.set_terminated(own, "FAILED" if failed else "FINISHED")

    def put_law(self, picture: bytes, runs: int) -> None:
        """Write the picture of the law as a file of a run named study."""
        del runs
        self._artifact(self._run("study", "study", anew=False), "law.png", picture)

    def put_study(self, page: bytes, words: str) -> None:
        """Write the report and best.yaml as files of a run named study."""
        own = self._run("study", "study", anew=False)
        self._artifact(own, "report.html", page)
        self._artifact(own, "best.yaml", words.encode())
        self.client.set_terminated(own)

    def _artifact(self, run: str, name: str, content: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self.client.log_artifact(run, str(path))
