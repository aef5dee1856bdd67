import json
from dataclasses import replace

import pytest
from training_runs import config

from tarflow.__main__ import main
from tarflow.config import NoiseConfig
from tarflow.config_files import to_dict, to_yaml
from tarflow.identity import run_id
from tarflow.record import write_json, write_text

PLAIN = config(precision="float32")


def save(folder, run, **row):
    write_text(folder / "config.yaml", to_yaml(run))
    result = {"run": {"run_id": run_id(run), **row}, "evaluations": [{"kid": 0.5}]}
    write_json(folder / "result.json", result)
    return str(folder)


def table(printed):
    """Return the rows of printed tables as lists of cells."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in printed.splitlines()
        if line.startswith("│")
    ]


def test_runs_are_compared_field_by_field_with_their_results(tmp_path, capsys):
    noisier = replace(PLAIN, noise=NoiseConfig(std=0.2))
    one = save(tmp_path / "one", PLAIN, bpd=1.5, flops=3e9)
    other = save(tmp_path / "other", noisier, bpd=1.25, flops=3e9)
    assert main(["diff", one, other]) == 0
    printed = capsys.readouterr().out
    assert table(printed) == [
        ["noise.std", "0.1", "0.2"],
        ["bpd", "1.500", "1.250"],
        ["flops", "3e9", "3e9"],
        ["kid", "0.5", "0.5"],
    ]
    assert f"A is run {run_id(PLAIN)}, B is run {run_id(noisier)}" in printed


def test_a_file_of_a_run_needs_only_what_is_off_its_default(tmp_path, capsys):
    threaded = replace(PLAIN, execution=replace(PLAIN.execution, threads=2))
    sparse = to_dict(threaded)
    del sparse["sampler"], sparse["optim"]["clip"]
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(sparse))
    assert main(["diff", str(path), save(tmp_path / "run", PLAIN)]) == 0
    printed = capsys.readouterr().out
    assert table(printed)[0] == ["execution.threads", "2", "1"]
    assert f"both are run {run_id(PLAIN)}" in printed


def test_studies_are_compared_with_the_runs_they_share(tmp_path, capsys):
    study = {"name": "a", "base": {"seed": 0}, "sizes": [{"channels": 8}], "budgets": [1e9, 3e9]}
    for name, seeds, runs in (("a", 1, "xy"), ("b", 2, "yz")):
        write_text(tmp_path / name / "study.yaml", json.dumps(study | {"seeds": seeds}))
        for run in runs:
            write_json(tmp_path / name / "runs" / run / "result.json", {})
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert table(printed) == [["seeds", "1", "2"]]
    assert "1 in both, 1 only in A, 1 only in B" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("3", "it holds no fields"),
        ("budgets: [1]", "is a study and"),
        ("preset: tiny", "only what differs from the preset tiny"),
        ("modle: {}", "did you mean 'model'?"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "other.yaml"
    if content:
        path.write_text(content)
    assert main(["diff", save(tmp_path / "run", PLAIN), str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
