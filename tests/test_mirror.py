"""Mirrors in real trackers, and that a resumed study repeats nothing there."""

import importlib
import json
import sys

import pytest
from PIL import Image
from synthetic import plant

from tarflow.errors import UserError
from tarflow.mirror.mirror import Mirror, mirroring, open_tracker
from tarflow.record import PREVIEWS, gather, read_result, write_json, write_table

pytestmark = pytest.mark.filterwarnings("default")  # those of the packages


@pytest.fixture
def study(tmp_path):
    """A planted study of four ended runs, one of which has drawn while it trained."""
    folder = plant(tmp_path / "planted", limit=4)
    run = best_of(folder)
    rows = [{"images": run["images"] // 2, "seconds": 1.0, "loss": 0.5, "samples": png(tmp_path)}]
    write_table(folder / "runs" / run["run_id"] / "previews.parquet", rows, PREVIEWS)
    (folder / "report.html").write_text("<p>law</p>")
    (folder / "best.yaml").write_text("# 2 bits\nmodel: {}\n")
    return folder


def png(folder):
    Image.new("L", (242, 32)).save(folder / "row.png")
    return (folder / "row.png").read_bytes()


def best_of(folder):
    results = [read_result(path.parent)["run"] for path in folder.glob("runs/*/result.json")]
    return min((row for row in results if row["status"] == "done"), key=lambda row: row["bpd"])


def mirrored(name, study):
    """Mirror a study twice, as a resumed one is; the second time finds nothing new."""
    for _ in range(2):
        said = []
        with mirroring(Mirror(name, study), said.append):
            pass
        assert not said
    return json.loads((study / f"mirrored-{name}.json").read_text())


def test_tensorboard_gets_curves_samples_scores_and_no_run_twice(study):
    pytest.importorskip("tensorboardX")
    done, best = mirrored("tensorboard", study), best_of(study)
    folders = sorted((study / "tensorboard").iterdir())
    assert len(folders) == len(done) + 1
    assert all(len(list(folder.iterdir())) == 1 for folder in folders)
    (events,) = (study / "tensorboard" / f"{best['label']} {best['run_id']}").iterdir()
    content = events.read_bytes()
    names = (b"curve/loss", b"curve/validation_loss", b"previews", b"samples", b"run/bpd")
    assert all(name in content for name in (*names, b"model.channels", b"samples/kid"))
    failed = {"run": best | {"status": "failed", "error": "again"}, "evaluations": []}
    write_json(study / "runs" / best["run_id"] / "result.json", failed)
    gather(study)
    again = Mirror("tensorboard", study)
    again.done[best["run_id"]] = "failed before"  # one that is tried again
    again.update()
    assert again.done[best["run_id"]] == "failed"
    assert len(sorted((study / "tensorboard").iterdir())) == len(folders)


def test_mlflow_gets_a_run_for_each_in_a_database(study, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done, best = mirrored("mlflow", study), best_of(study)
    client = mlflow.MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("planted").experiment_id
    runs = {run.data.tags["tarflow_run"]: run for run in client.search_runs([experiment])}
    assert runs.keys() == {*done, "study"}
    run = runs[best["run_id"]]
    assert run.data.metrics["bpd"] == best["bpd"]
    assert run.data.params["model.channels"] == str(best["channels"])
    curve = client.get_metric_history(run.info.run_id, "curve/loss")
    assert curve[-1].step == best["images"]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {f"samples-{best['images']}.png", f"previews-{best['images'] // 2}.png"}
    files = {file.path for file in client.list_artifacts(runs["study"].info.run_id)}
    assert files == {"report.html", "best.yaml"}


def test_weights_and_biases_gets_them_offline(study, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    done = mirrored("wandb", study)
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == len(done) + 2  # each run once, and the report each time
    best = best_of(study)
    (file,) = (file for file in files if best["run_id"] in file.name)
    content = file.read_bytes()
    assert b"validation_loss" in content
    assert b"media/images/samples" in content
    assert b"evaluations" in content


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tarflow.mirror.wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"the package wandb: pip install 'tarflow\[wandb\]'"):
        open_tracker("wandb", tmp_path)


def test_a_tracker_that_fails_is_told_once_and_costs_nothing(study):
    pytest.importorskip("tensorboardX")
    module = importlib.import_module("tarflow.mirror.tensorboard")
    (study / "tensorboard").write_text("in the way")
    said = []
    with mirroring(Mirror("tensorboard", study), said.append):
        pass
    assert len(said) == 1
    assert said[0].startswith("not all is in tensorboard, the next command tries again: ")
    (study / "tensorboard").unlink()
    assert isinstance(Mirror("tensorboard", study).tracker, module.TensorBoard)
    assert len(mirrored("tensorboard", study)) == 4
