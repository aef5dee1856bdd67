"""Mirrors in real trackers, and that a resumed study repeats nothing there."""

import importlib
import json
import shutil
import sys
import time

import pytest
from PIL import Image
from synthetic import plant

from tarflow.errors import UserError
from tarflow.mirror.mirror import Mirror, mirroring, open_tracker
from tarflow.record import (
    CURVE,
    PREVIEWS,
    STARTED,
    gather,
    read_result,
    read_table,
    write_json,
    write_table,
)

pytestmark = pytest.mark.filterwarnings("default")  # those of the packages


@pytest.fixture
def study(tmp_path):
    """A planted study of four ended runs, one of which has drawn while it trained."""
    folder = plant(tmp_path / "planted", limit=4)
    run = best_of(folder)
    rows = [{"images": run["images"] // 2, "seconds": 1.0, "loss": 0.5, "samples": png(tmp_path)}]
    write_table(folder / "runs" / run["run_id"] / "previews.parquet", rows, PREVIEWS)
    (folder / "report.html").write_text("<p>law</p>")
    (folder / "law.png").write_bytes(png(tmp_path))
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


def watched(name, study):
    """Mirror a study one of whose runs trains, is stopped and resumed, and ends.

    The mirror is opened anew as by another command, and each look finds more of the curve.

    Returns:
        The row of the run, and the images of all points of its curve.
    """
    best = best_of(study)
    folder = study / "runs" / best["run_id"]
    ended = (folder / "result.json").rename(study / "ended.json")
    points = read_table(folder / "curve.parquet").to_pylist()
    write_json(folder / STARTED, {key: best[key] for key in best.keys() - {"status", "bpd"}})
    for command in (2, 3), (2, 3, 4, 4):  # quarters of the curve: the second repeats two
        mirror = Mirror(name, study)
        for quarters in command:
            write_table(folder / "curve.parquet", points[: quarters * len(points) // 4], CURVE)
            mirror.update()
            assert not mirror.problem
    assert mirror.done[folder.name] == points[-1]["images"]
    ended.rename(folder / "result.json")
    Image.new("L", (9, 9)).save(study / "law.png")  # as the report is written again
    mirror.conclude()
    assert not mirror.problem
    assert mirror.done[folder.name] == "done"
    return best, [point["images"] for point in points]


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


def test_tensorboard_gets_a_curve_while_a_run_trains_and_no_point_twice(study):
    pytest.importorskip("tensorboardX")
    best, images = watched("tensorboard", study)
    files = (study / "tensorboard" / f"{best['label']} {best['run_id']}").iterdir()
    assert steps_of(files, "curve/loss") == images
    assert steps_of((study / "tensorboard" / "study").iterdir(), "law") == [3, 4]


def test_a_run_that_is_tried_again_appears_while_it_trains(study):
    pytest.importorskip("tensorboardX")
    best = best_of(study)
    folder = study / "runs" / best["run_id"]
    points = read_table(folder / "curve.parquet").to_pylist()
    done = read_result(folder)
    failed = {"run": best | {"status": "failed", "error": "again"}, "evaluations": []}
    write_json(folder / "result.json", failed)
    mirror = Mirror("tensorboard", study)
    mirror.update()
    write_json(folder / STARTED, {key: best[key] for key in best.keys() - {"status", "bpd"}})
    for count in len(points) // 2, len(points):
        write_table(folder / "curve.parquet", points[:count], CURVE)
        mirror.update()
        assert mirror.done[folder.name] == points[count - 1]["images"]
    write_json(folder / "result.json", done)
    mirror.update()
    assert mirror.done[folder.name] == "done"
    files = (study / "tensorboard" / f"{best['label']} {best['run_id']}").iterdir()
    assert steps_of(files, "curve/loss") == [point["images"] for point in points]


def test_a_run_whose_folder_was_deleted_appears_anew(study):
    pytest.importorskip("tensorboardX")
    deleted, *others = mirrored("tensorboard", study)
    runs = study / "runs"
    for run in (deleted, *others):
        Mirror("tensorboard", runs, only=runs / run).update()
    shutil.rmtree(runs / deleted)
    assert Mirror("tensorboard", study).done.keys() == {*others}
    assert Mirror("tensorboard", runs, only=runs / deleted).done.keys() == {*others}


def steps_of(files, tag):
    """Return the steps of all values of a tag in event files, in order of step."""
    from tensorboardX.proto.event_pb2 import Event

    steps = []
    for file in files:
        content = file.read_bytes()
        while content:  # length, its checksum, event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            steps += [event.step for value in event.summary.value if value.tag == tag]
            content = content[16 + size :]
    return sorted(steps)


def test_mlflow_gets_a_run_for_each_while_it_trains_and_no_point_twice(study, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    best, images = watched("mlflow", study)
    done = mirrored("mlflow", study)
    client = mlflow.MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("planted").experiment_id
    runs = {run.data.tags["tarflow_run"]: run for run in client.search_runs([experiment])}
    assert runs.keys() == {*done, "study"}
    run = runs[best["run_id"]]
    assert run.data.metrics["bpd"] == best["bpd"]
    assert run.data.params["model.channels"] == str(best["channels"])
    assert run.info.status == "FINISHED"
    curve = client.get_metric_history(run.info.run_id, "curve/loss")
    assert sorted(point.step for point in curve) == images
    rate = client.get_metric_history(run.info.run_id, "curve/images_per_second")
    assert len(rate) == len(images) - 1
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {f"samples-{best['images']}.png", f"previews-{best['images'] // 2}.png"}
    files = {file.path for file in client.list_artifacts(runs["study"].info.run_id)}
    assert files == {"report.html", "best.yaml", "law.png"}


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


def test_trackio_gets_a_curve_while_a_run_trains_and_no_point_twice(
    study, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # read at the import
    trackio = pytest.importorskip("trackio")
    best, images = watched("trackio", study)
    name = f"{best['label']} {best['run_id']}"
    assert mirrored("trackio", study)[best["run_id"]] == "done"
    runs = [run.name for run in trackio.Api().runs("planted")]
    assert len(runs) == len(set(runs)) == 4 + 1
    (run,) = (run for run in trackio.Api().runs("planted") if run.name == name)
    assert run.config["model.channels"] == best["channels"]
    rows = logs(name)
    assert [row["step"] for row in rows if "loss" in row] == images
    assert any("run/bpd" in row for row in rows)
    assert any("samples/kid" in row for row in rows)
    assert any("samples" in row for row in rows)
    assert [row["step"] for row in logs("study") if "law" in row] == [4]
    assert any("report" in row for row in logs("study"))
    assert "trackio" not in capsys.readouterr().out.lower()


def logs(name):
    """Return what Trackio has stored of a run, in the order in which it came."""
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage.get_logs("planted", name)


def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tarflow.mirror.wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"the package wandb: pip install 'tarflow\[wandb\]'"):
        open_tracker("wandb", tmp_path)


def test_a_tracker_that_fails_is_told_at_once_and_at_the_end_and_costs_nothing(study, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr("tarflow.mirror.mirror.LOOK_SECONDS", 0.02)
    module = importlib.import_module("tarflow.mirror.tensorboard")
    (study / "tensorboard").write_text("in the way")
    said = []
    with mirroring(Mirror("tensorboard", study), said.append):
        time.sleep(0.5)
    assert len(said) == 2
    assert said[0].startswith("tensorboard fails, runs continue and it is tried again: ")
    assert said[1].startswith("not all is in tensorboard, the next command tries again: ")
    (study / "tensorboard").unlink()
    assert isinstance(Mirror("tensorboard", study).tracker, module.TensorBoard)
    assert len(mirrored("tensorboard", study)) == 4
