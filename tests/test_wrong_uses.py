"""What people get wrong, and the one line that each mistake is answered with.

`wrong_uses.txt` lists them: `$` begins a command, `>>>` a call, and the next line is the message,
taken literally, so that a change of its words is seen and judged. It is all that a command writes
to stderr, without exception.
"""

import re
import shlex
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from synthetic import plant
from training_runs import config

import analysis
import sweeps.final
import sweeps.scaling
import sweeps.search
import tarflow
from analysis.__main__ import main as analysis_main
from sweeps.design.presets import load
from tarflow.__main__ import main as tarflow_main
from tarflow.config import ExecutionConfig
from tarflow.config_files import to_yaml
from tarflow.errors import UserError
from tarflow.model.flow import TarFlow
from tarflow.model.weights import save_model

PROGRAMS = {
    "scaling": sweeps.scaling.main,
    "search": sweeps.search.main,
    "final": sweeps.final.main,
}
GRID = "".join(
    f"{n},{d},{1.4 + 30 / n**0.4 + 46 / d**0.4:.4f}\n"
    for n in (1e6, 3e6, 1e7, 3e7)
    for d in (1e8, 3e8, 1e9)
)
FILES = {
    "latin.yaml": "note: café\n".encode("latin-1"),
    "tabs.yaml": "model:\n\tchannels: 16\n",
    "twice.yaml": "batch: 16\nbatch: 32\n",
    "octal.yaml": "batch: 0100\n",
    "two.yaml": "batch: 1\n---\nbatch: 2\n",
    "unclosed.yaml": "model: {channels: 16\n",
    "code.yaml": "model: !!python/object:os.system {}\n",
    "list.yaml": "- 1\n- 2\n",
    "text.yaml": "hello\n",
    "family.yaml": "model: {family: glow}\n",
    "layers.yaml": "model: {blocks: 3, layers: [1, 4]}\n",
    "half.yaml": "model: {condition_tokens: 3}\n",
    "both.yaml": "model: {classes: 10, condition_tokens: 3, condition_dim: 8}\n",
    "rope.yaml": "model: {family: starflow, channels: 24, head_dim: 6}\n",
    "heads.yaml": "model: {channels: 96}\n",
    "patch.yaml": "model: {patch: 5}\n",
    "classes.yaml": "model: {classes: 7, patch: 7}\n",
    "size.yaml": "model: {image_size: 32, patch: 8}\n",
    "vectors.yaml": "model: {condition_tokens: 3, condition_dim: 8, patch: 7}\n",
    "nodata.yaml": "data: {name: data/nowhere}\n",
    "noimages.yaml": "data: {name: noimages.parquet}\n",
    "lr.yaml": "optim: {lr: fast}\n",
    "nan.yaml": "optim: {lr: .nan}\n",
    "yes.yaml": "batch: yes\n",
    "images.yaml": "images: 100\nbatch: 64\n",
    "device.yaml": "execution: {device: tpu}\n",
    "solver.yaml": "execution: {solver: fast}\n",
    "best.yaml": to_yaml(config()),
    "written.yaml": to_yaml(config()).replace("model:", "model:\n  family: starflow", 1),
    "variant.yaml": "preset: tiny\nvariants: [{name: a, change: {bacth: 3}}]\n",
    "star.yaml": "preset: tiny\nvariants: [{name: a, change: {model: {family: glow}}}]\n",
    "nosizes.yaml": "name: v\nbudgets: [1e9]\n",
    "depths.yaml": "preset: tiny\nsizes: [{channels: 64, blocks: 3, layers: [1, 4]}]\n",
    "preset.yaml": "preset: digitz\n",
    "ranges.yaml": "preset: tiny\nsearch: {channels: [64, 16]}\n",
    "misnamed.yaml": "preset: tiny\nsearch: {chanels: [16, 64]}\n",
    "late.yaml": "preset: tiny\nsearch: {cases: [{when: {channels: 8}, blocks: [2, 4]}]}\n",
    "accelerator.yaml": "preset: tiny\naccelerator: H1000\n",
    "heldout.yaml": "preset: tiny\nheld_out: {size: c9-b2-l1, budget: 1e9}\n",
    "budget.yaml": "preset: tiny\nbudgets: [-1e9]\n",
    "onebudget.yaml": "preset: tiny\nbudgets: 1e9\n",
    "few.yaml": "preset: tiny\nmin_images: 1000000\n",
    "fit.csv": "N,D,loss\n" + GRID,
    "few.csv": "N,D,loss\n1e6,1e8,3\n2e6,1e8,2.9\n",
    "empty.csv": "",
    "header.csv": "N,D,loss\n",
    "negative.csv": "N,D,loss\n1e6,1e8,3\n1e6,2e8,-1\n",
    "words.csv": "N,D,loss\nsmall,1e8,3\nlarge,1e9,2\n",
    "constant.csv": "N,D,loss\n" + "1e6,1e8,3\n" * 8,
    "zero.csv": "N,D,loss\n" + "0,1e8,3\n" * 8,
    "columns.csv": "N,N,loss\n1,2,3\n",
    "binary.csv": bytes(range(256)),
    "form.py": "x = 1\n",
    "file": "a file, no folder",
    "fake.parquet": b"PAR1 and no more",
    "notes.png": "no picture",
    "short.safetensors": b"hello",
}
SHORT = {  # words of the catalogue that stand for several
    "NEW": "--dry-run --out new",
    "FIT": "--loss loss --params N --tokens D --draws 50",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with wrong files, models that were never trained, and a finished study."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        if isinstance(content, str):
            content = content.encode()
        (folder / name).write_bytes(content)
    kinds = {
        "labels": {},
        "plain": {"classes": 0},
        "vectors": {"classes": 0, "condition_tokens": 3, "condition_dim": 8},
    }
    for name, fields in kinds.items():
        chosen = config(precision="float32", execution=ExecutionConfig(device="cpu"))
        chosen = replace(chosen, model=replace(chosen.model, **fields))
        flow = TarFlow(chosen.model)
        save_model(folder / name / "model.safetensors", flow.state_dict(), chosen)
    (folder / "misfit").mkdir()
    wide = replace(chosen, model=replace(chosen.model, channels=32))
    save_model(folder / "misfit/model.safetensors", flow.state_dict(), wide)
    whole = (folder / "labels/model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (32, 32)).save(folder / "rgb.png")
    np.savez(folder / "arrays.npz", a=np.zeros(3))
    pq.write_table(pa.table({"a": [1, 2]}), folder / "noimages.parquet")
    vectors = pa.table({"condition": [[[0.0] * 8] * 2] * 2})
    pq.write_table(vectors, folder / "conditions.parquet")
    (folder / "empty").mkdir()
    plant(folder / "study", limit=3)
    failed = plant(folder / "planted")
    shutil.copytree(next(failed.glob("runs/*/error.txt")).parent, folder / "failed")
    (folder / "study/study.yaml").write_text(to_yaml(load("digits")))
    shutil.copytree(folder / "study", folder / "later")
    table = pq.read_table(folder / "later/runs.parquet")
    table = table.replace_schema_metadata({"schema_version": "99"})
    pq.write_table(table, folder / "later/runs.parquet")
    shutil.copytree(folder / "study", folder / "broken")
    (folder / "broken/runs.parquet").write_bytes(b"nonsense")
    return folder


@pytest.fixture(autouse=True)
def _in_place(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("TARFLOW_CACHE", str(place / "cache"))
    monkeypatch.delenv("TARFLOW_PRICES", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "tarflow.mirror.wandb", raising=False)


def end(line, monkeypatch):
    """Run a command line in this process and return its exit code."""
    program, *words = shlex.split(line)
    if program == "tarflow":
        return tarflow_main(words)
    if program == "analysis":
        return analysis_main(words)
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *words])
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program]()
    return ended.value.code


def catalogue(sign):
    """Return the wrong uses that begin with a sign, each with the line that answers it."""
    lines = (Path(__file__).parent / "wrong_uses.txt").read_text(encoding="utf-8").splitlines()
    return [
        pytest.param(use.removeprefix(sign), answer, id=use)
        for use, answer in pairwise(lines)
        if use.startswith(sign)
    ]


@pytest.mark.parametrize(("line", "expected"), catalogue("$ "))
def test_a_wrong_command_ends_with_one_line(line, expected, place, capsys, monkeypatch):
    for name, words in SHORT.items():
        line = line.replace(name, words)
    code = end(line, monkeypatch)
    error = capsys.readouterr().err.replace(str(place), "HERE")
    assert (code, error) == (2, f"error: {expected}\n")


@pytest.mark.parametrize(("code", "expected"), catalogue(">>> "))
def test_a_wrong_call_raises_one_line(code, expected):
    names = {"tarflow": tarflow, "analysis": analysis, "np": np}
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        eval(code, names)
