"""A released model: its folder, its card, and an upload to a stand-in of Hugging Face."""

import base64
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from training_runs import config
from written_forecasts import written

import tarflow
from tarflow import data, publish
from tarflow.__main__ import main
from tarflow.config import EvaluationConfig, ExecutionConfig
from tarflow.forecasts import write_forecast, write_outcome
from tarflow.record import read_result, write_json, write_text

hub = pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[1]
QUALITY = {
    "half": "all",
    "reference": "digits/validation",
    "n": 500,
    "n_reference": 500,
    "feature_extractor": "classifier:12345678",
    "kid": 0.25,
    "kid_se": 0.125,
    "fid": None,
    "fd": 7.5,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a study, whose law met it, with scores of its samples and on test images."""
    study = tmp_path_factory.mktemp("studies") / "small"
    chosen = config(
        precision="float32",
        execution=ExecutionConfig(device="cpu"),
        images=32,
        evaluation=EvaluationConfig(samples=0, decoder_images=20),
    )
    run_id = tarflow.train(chosen, study / "trained").row["run_id"]
    (study / "runs").mkdir()
    folder = (study / "trained").rename(study / "runs" / run_id)
    row = read_result(folder)["run"]
    write_json(folder / "result.json", {"run": row, "evaluations": [QUALITY]})
    write_json(folder / "test.json", row | {"bpd": row["bpd"] + 0.5})
    write_text(study / "study.yaml", "name: small\n")
    write_forecast(study, written(row["bpd"], row["bpd"] - 1, row["bpd"] + 1, run_id=run_id))
    write_outcome(study, row)
    return folder


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("released") / "flow"
    assert main(["release", str(run), str(out), "--license", "apache-2.0"]) == 0
    return out


def test_the_folder_is_a_model_like_its_run(run, released):
    names = ["README.md", "metrics.json", "model.safetensors", "provenance.json", "samples.png"]
    assert sorted(path.name for path in released.iterdir()) == names
    pixels = data.open_split(tarflow.load(run).config.data, "validation").pixels[:2]
    assert (tarflow.load(released).bits(pixels) == tarflow.load(run).bits(pixels)).all()
    for command in ("sample", "score", "check"):
        extra = ["--count", "2", "--grid", str(released.parent / "a.png")]
        assert main([command, str(released), *(extra if command == "sample" else [])]) == 0
    with Image.open(released / "samples.png") as picture:
        assert picture.text["model"] == "flow"
        assert max(picture.size) >= 512


def test_numbers_have_errors_an_expectation_and_an_origin(run, released):
    row = read_result(run)["run"]
    metrics = json.loads((released / "metrics.json").read_text())
    bits = metrics["bits_per_dimension"]
    assert bits["validation"]["bpd"] == row["bpd"]
    assert bits["validation"]["bpd_se"] == row["bpd_se"]
    assert bits["test"]["bpd"] == row["bpd"] + 0.5
    assert metrics["samples"][0]["kid_se"] == 0.125
    assert metrics["forecast"]["inside"] is True
    provenance = json.loads((released / "provenance.json").read_text())
    assert (provenance["study"], provenance["run_id"]) == ("small", row["run_id"])
    assert provenance["data_hash"] == row["data_hash"]
    assert provenance["versions"]["torch"]


def test_the_card_is_one_of_hugging_face_filled_with_these_numbers(run, released):
    row = read_result(run)["run"]
    card = hub.ModelCard.load(released / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "tarflow"
    results = {(r.metric_type, r.dataset_split): r.metric_value for r in card.data.eval_results}
    assert results["bits_per_dimension", "validation"] == row["bpd"]
    assert results["bits_per_dimension", "test"] == row["bpd"] + 0.5
    assert results["kid", "validation"] == 0.25
    assert "fid" not in dict(results)
    assert f"| {row['bpd']:.3f} ± {row['bpd_se']:.3f} |" in card.text
    assert "inside the 90% interval" in card.text
    assert 'tarflow.load("flow")' in card.text
    assert "\n\nBits per dimension bound" in card.text  # not a row of the table above
    assert str(run.parent.parent.parent) not in card.content


def test_mistakes_are_one_line(run, released, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    for arguments, message in (
        ([released], "exists: remove it"),
        ([tmp_path / "new", "--push", "a/b/c"], "--push a/b/c"),
        ([tmp_path / "new", "--push", "a/b"], "hf auth login"),
    ):
        assert main(["release", str(run), *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert main(["release", str(unfinished), str(tmp_path / "new")]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    monkeypatch.setattr(publish.importlib.util, "find_spec", lambda _: None)
    assert main(["release", str(run), str(tmp_path / "new"), "--push", "a/b"]) == 2
    assert "pip install 'tarflow[hub]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_example_releases_and_uses_a_model(run, tmp_path, monkeypatch, capsys):
    example = ROOT / "examples" / "release.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(run), str(tmp_path / "flow")])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert "inside the 90% interval" in printed
    assert "4 images of 1 x 28 x 28" in printed


class Hub(BaseHTTPRequestHandler):
    """The calls that an upload makes, answered as Hugging Face does."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply({}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        if self.headers["Authorization"] != "Bearer secret":
            self.reply({"error": "Invalid credentials"}, 401)
        elif self.path.endswith("/repos/create"):
            server.repository = json.loads(body)
            self.reply({"url": f"{server.endpoint}/me/flow"})
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply({"files": [{"path": path, **modes} for path in paths]})
        elif self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            server.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            url = f"{server.endpoint}/me/flow/commit/1"
            self.reply({"commitUrl": url, "commitOid": "1", "hookOutput": "", "success": True})
        else:
            self.reply({"errors": [], "warnings": []})  # of the card

    def reply(self, plain, status=200):
        content = json.dumps(plain).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_push_uploads_the_folder(run, server, tmp_path):
    command = ["release", str(run), str(tmp_path / "flow"), "--push", "me/flow"]
    done = subprocess.run(
        [sys.executable, "-m", "tarflow", *command],
        env={**os.environ, "HF_ENDPOINT": server.endpoint, "HF_TOKEN": "secret"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"pushed to {server.endpoint}/me/flow" in done.stdout
    assert server.repository["name"] == "flow"
    assert server.files == {path.name: path.read_bytes() for path in (tmp_path / "flow").iterdir()}
    assert b"hf download me/flow --local-dir flow" in server.files["README.md"]


def test_a_push_that_fails_leaves_the_folder(released, server, monkeypatch):
    monkeypatch.setattr(hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(tarflow.UserError, match=r"cannot push to me/flow: .*401") as caught:
        publish.push_release(released, "me/flow")
    assert f"hf upload me/flow {released}" in str(caught.value)
    assert "\n" not in str(caught.value)
