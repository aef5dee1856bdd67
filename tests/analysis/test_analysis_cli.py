"""The command line of the analysis, run as a user runs it."""

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from synthetic import Law

from analysis.__main__ import main
from tarflow.config import RunConfig
from tarflow.config_files import read_yaml
from tarflow.identity import run_id


@pytest.fixture
def table(tmp_path):
    """A table without noise from a planted law."""
    law, path = Law(), tmp_path / "runs.csv"
    grid = [(n, d) for n in np.geomspace(1e4, 1e7, 6) for d in np.geomspace(1e5, 1e8, 6)]
    rows = [{"size": n, "data": d, "bpd": law(n, d)} for n, d in grid]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_fit_recovers_a_planted_law(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    columns = ["--loss", "bpd", "--params", "size", "--tokens", "data"]
    assert main(["fit", str(table), *columns, "--json", str(out)]) == 0
    fits = {law["name"]: law["parameters"] for law in json.loads(out.read_text())["fits"]}
    planted = Law()
    assert fits["chinchilla"]["E"]["value"] == pytest.approx(planted.E, rel=1e-4)
    assert fits["chinchilla"]["a"]["value"] == pytest.approx(planted.a, rel=1e-4)
    assert fits["tied"]["A"]["value"] == pytest.approx(planted.A, rel=1e-3)
    assert "E + (A / N^a + B / D^b)^g" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["--loss", "bdp", "--flops", "data"], "did you mean 'bpd'?"),
        (["--loss", "bpd", "--params", "size"], "--tokens COLUMN"),
        (["--loss", "bpd", "--params", "size", "--flops", "data"], "--flops alone"),
    ],
)
def test_fit_mistakes_are_one_line(table, capsys, columns, message):
    assert main(["fit", str(table), *columns]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_report_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err


def test_best_writes_a_run_that_is_not_done(digits, tmp_path, capsys):
    out = tmp_path / "best.yaml"
    assert main(["best", str(digits), "--flops", "2e13", "--out", str(out)]) == 0
    config = read_yaml(RunConfig, out)
    assert not (digits / "runs" / run_id(config)).exists()
    assert out.read_text().startswith("#")
    from tarflow.cost import run_flops

    assert run_flops(config) == pytest.approx(2e13, rel=0.1)
    assert str(out) in capsys.readouterr().out


def test_help_is_fast_and_light():
    start = time.perf_counter()
    code = (
        "import sys, contextlib; sys.argv = ['analysis', '--help']\n"
        "from analysis.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "heavy = {'pandas', 'plotly', 'scipy', 'pyarrow', 'torch', 'ray'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout
    assert time.perf_counter() - start < 5  # under one on an idle machine


@pytest.fixture
def candidates(tmp_path):
    """Runs that could be trained, and what an hour of each costs."""
    path, sizes = tmp_path / "candidates.csv", np.geomspace(1e5, 1e8, 5)
    frame = pd.DataFrame({"size": sizes, "data": 20 * sizes, "hours": sizes / 1e6})
    frame.to_csv(path, index=False)
    return path


NEXT = ["--loss", "bpd", "--params", "size", "--tokens", "data"]


@pytest.mark.parametrize("rows", [0, 1, 36])
def test_next_says_what_to_train_and_what_for(table, candidates, tmp_path, capsys, rows):
    pd.read_csv(table).head(rows).to_csv(table, index=False)
    out = tmp_path / "next.json"
    options = ["--candidates", str(candidates), "--count", "2", "--json", str(out)]
    assert main(["next", str(table), *NEXT, *options, "--target", "N=1B,D=20B"]) == 0
    plain = json.loads(out.read_text())
    first, second = plain["runs"]
    assert plain["rows_used"] == rows
    assert first["cost"] == pytest.approx(6 * first["params"] * first["tokens"])
    assert first["uncertainty_before"] > first["uncertainty_after"]
    assert second["uncertainty_before"] == first["uncertainty_after"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"Train rows {first['row']}, {second['row']} next: they lower the")
    assert "at N = 1G, D = 20G from" in printed


def test_next_accounts_for_every_row_of_both_files(table, candidates, capsys):
    with table.open("a") as file:
        file.write("1e5,1e6,diverged\n")
    with candidates.open("a") as file:
        file.write("OOM,1e6,1\n")
    assert (
        main(["next", str(table), *NEXT, "--candidates", str(candidates), "--budget", "1e20"]) == 0
    )
    printed = capsys.readouterr().out
    assert f"{table}: 36 of 37 rows are used. 1 row left out: row 37 (bpd is 'dive" in printed
    assert f"{candidates}: 5 of 6 rows are used. 1 row left out: row 6 (size is 'OOM')." in printed


def test_next_counts_the_cost_it_is_told(table, candidates, capsys):
    """Where all runs cost the same, the largest is worth most."""
    frame = pd.read_csv(candidates)
    frame.assign(hours=1.0).to_csv(candidates, index=False)
    options = ["--candidates", str(candidates), "--budget", "1e24", "--count", "1"]
    pd.read_csv(table).head(2).to_csv(table, index=False)
    assert main(["next", str(table), *NEXT, *options, "--cost", "hours"]) == 0
    assert "N = 100M, D = 2G (row 5)" in capsys.readouterr().out


def test_next_refuses_more_candidates_than_memory_holds(table, tmp_path, capsys):
    many = tmp_path / "many.csv"
    sizes = np.geomspace(1e5, 1e8, 2001)
    pd.DataFrame({"size": sizes, "data": sizes}).to_csv(many, index=False)
    assert main(["next", str(table), *NEXT, "--candidates", str(many), "--budget", "1e24"]) == 2
    assert "has 2,001 rows: name at most 2,000 candidates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--target N=7B,D=2T, or --budget FLOPS"),
        (["--target", "N=7B,D=2T", "--budget", "1e24"], "--target N=7B,D=2T, or --budget"),
        (["--target", "N=7B"], "--target 'N=7B': write it as N=7B,D=2T"),
        (["--target", "N=7B,D=0"], "--target 'N=7B,D=0': write it as"),
        (["--budget", "-1"], "--budget is -1: it must be positive"),
        (["--budget", "1e24", "--count", "0"], "--count is 0"),
        (["--budget", "1e24", "--cost", "hour"], "did you mean 'hours'?"),
    ],
)
def test_next_mistakes_are_one_line(table, candidates, capsys, options, message):
    code = main(["next", str(table), *NEXT, "--candidates", str(candidates), *options])
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
