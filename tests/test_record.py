"""A table is whole or absent, of this version or refused, and can be rebuilt from its runs."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarflow import record
from tarflow.errors import UserError

ROW = {"run_id": "0123456789", "label": "w64", "role": "grid", "status": "done"}


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "result.json"
    record.write_text(path, "old")

    def fail_half_way():
        with record.replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "result.json"
    record.write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from tarflow import record\n"
        "with record.replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of the n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    record.write_text(path, "new")  # what the killed writer left is not in the way
    assert path.read_text() == "new"


def test_a_reader_of_the_old_file_never_sees_part_of_the_new(tmp_path: Path):
    path = tmp_path / "result.json"
    record.write_text(path, "old")
    with path.open() as reader:
        record.write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_numbers_json_lacks_become_null(tmp_path: Path):
    path = tmp_path / "deep" / "result.json"
    record.write_json(path, {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1, 2.5, "x")})
    text = path.read_text()
    assert json.loads(text) == {"a": None, "b": [None, {"c": None}], "d": [1, 2.5, "x"]}
    assert text.endswith("}\n")


def test_table_round_trip_types_every_column_and_nulls_what_is_not_finite(tmp_path: Path):
    path = tmp_path / "runs.parquet"
    record.write_table(
        path, [{**ROW, "bpd": math.nan, "images": 640}, {**ROW, "bpd": 1.5}], record.RUNS
    )
    table = record.read_table(path)
    assert table.schema.equals(record.RUNS, check_metadata=True)
    assert table.column("bpd").to_pylist() == [None, 1.5]
    assert table.column("images").to_pylist() == [640, None]


def test_a_column_that_the_schema_lacks_is_refused_and_nothing_is_written(tmp_path: Path):
    path = tmp_path / "runs.parquet"
    with pytest.raises(ValueError, match="no such column: bits, fidd"):
        record.write_table(path, [ROW, {**ROW, "fidd": 1.0, "bits": 2.0}], record.RUNS)
    assert list(tmp_path.iterdir()) == []


def test_a_row_without_its_id_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="run_id"):
        record.write_table(tmp_path / "runs.parquet", [{"status": "done"}], record.RUNS)


@pytest.mark.parametrize(("metadata", "version"), [({"schema_version": "0"}, "0"), (None, "none")])
def test_a_table_of_another_version_is_refused_in_one_line(tmp_path: Path, metadata, version):
    path = tmp_path / "runs.parquet"
    pq.write_table(pa.Table.from_pylist([ROW]).replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match=f"schema version {version}, this program reads") as caught:
        record.read_table(path)
    assert "\n" not in str(caught.value)
    assert "rebuild" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"run_id,bpd\n"])
def test_what_is_not_a_table_is_refused_in_one_line(tmp_path: Path, content):
    path = tmp_path / "runs.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read") as caught:
        record.read_table(path)
    assert "\n" not in str(caught.value)


def test_gather_rebuilds_both_tables_from_the_runs(tmp_path: Path):
    for name, status, scores in (("b", "done", 2), ("a", "failed", 0), ("c", "done", 1)):
        record.write_json(
            tmp_path / "runs" / name / "result.json",
            {
                "run": {**ROW, "run_id": name, "status": status},
                "evaluations": [{"run_id": name, "kid": float(i)} for i in range(scores)],
            },
        )
    (tmp_path / "runs" / "unfinished").mkdir()
    torn = tmp_path / "runs" / "torn"
    torn.mkdir()
    (torn / "result.json").write_text('{"run": {"run_id": "to')

    runs, evaluations = record.gather(tmp_path)
    assert [(row["run_id"], row["status"]) for row in runs] == [
        ("a", "failed"),
        ("b", "done"),
        ("c", "done"),
    ]
    assert [(row["run_id"], row["kid"]) for row in evaluations] == [("b", 0), ("b", 1), ("c", 0)]
    first = (tmp_path / "runs.parquet").read_bytes()
    (tmp_path / "runs.parquet").unlink()
    record.gather(tmp_path)
    assert (tmp_path / "runs.parquet").read_bytes() == first
    assert record.read_table(tmp_path / "evaluations.parquet").num_rows == 3


def test_gather_adds_what_was_sampled_later(tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    record.write_json(
        folder / "result.json",
        {"run": {**ROW, "run_id": "a"}, "evaluations": [{"run_id": "a", "half": "all"}]},
    )
    halves = [{"run_id": "a", "half": "chosen"}, {"run_id": "a", "half": "scored"}]
    record.write_json(folder / "evaluations" / "0123.json", halves)
    (folder / "evaluations" / "4567.json").write_text('[{"run_id": "a", "ha')
    record.write_json(tmp_path / "runs" / "b" / "evaluations" / "0123.json", halves)  # no result
    _, evaluations = record.gather(tmp_path)
    assert [row["half"] for row in evaluations] == ["all", "chosen", "scored"]
    assert record.read_table(tmp_path / "evaluations.parquet").num_rows == 3


def test_a_study_without_runs_has_empty_tables(tmp_path: Path):
    assert record.gather(tmp_path) == ([], [])
    assert record.read_table(tmp_path / "runs.parquet").num_rows == 0


def test_the_environment_names_versions_commit_and_host():
    environment = record.environment()
    assert {"python", "torch", "ray", "optuna"} <= json.loads(environment["versions"]).keys()
    assert environment["git"]
    assert environment["host"]
