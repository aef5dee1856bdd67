"""Tables of runs as people write them: every cell read, or its row named."""

import json

import pandas as pd
import pytest

from analysis.table.reading import read_columns
from tarflow.errors import UserError

COLUMNS = {"params": "N", "tokens": "D", "loss": "loss"}
TEXT = "N,D,loss\n10M,1B,3.5\n40M,4B,3.0\n160M,16B,2.6\n"
NUMBERS = {"params": [1e7, 4e7, 1.6e8], "tokens": [1e9, 4e9, 1.6e10], "loss": [3.5, 3.0, 2.6]}


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def act(content, name="runs.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return act


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (TEXT, "runs.csv"),
        (TEXT.replace(",", ";"), "RUNS.CSV"),
        (TEXT.replace(",", "\t"), "runs.txt"),
        (TEXT.replace(",", ";").replace("3.5", "3,5"), "decimal comma"),
        (TEXT.replace("10M", '"10,000,000"').replace("4B", "4.0x10^9"), "thousands"),
        (TEXT.replace("10M", "10 000 000").replace("16B", "16_000_000_000"), "spaces"),
        (TEXT.encode("utf-16"), "utf-16"),
        (TEXT.encode("utf-16-le"), "no mark"),
        (TEXT.replace("loss", "loss,café").encode("latin-1"), "latin-1"),
        (TEXT.replace("\n", "\r\n").encode("utf-8-sig"), "windows"),
    ],
)
def test_every_way_to_write_a_table_gives_the_same_numbers(write, content, name):
    table = read_columns(write(content, name), COLUMNS)
    assert table.values.to_dict("list") == NUMBERS
    assert table.summary() == ["3 of 3 rows are used."]


def test_content_tells_the_format_not_the_ending(tmp_path, write):
    frame = pd.read_csv(write(TEXT), dtype=str)
    frame.to_parquet(tmp_path / "RUNS.PARQUET")
    frame.to_json(tmp_path / "runs.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "columns.json")
    frame.to_json(tmp_path / "rows.json", orient="records")
    for name in ("RUNS.PARQUET", "runs.jsonl", "columns.json", "rows.json"):
        assert read_columns(tmp_path / name, COLUMNS).values.to_dict("list") == NUMBERS


def test_rows_left_out_are_counted_and_named(write):
    more = "80M,8B,diverged\n80M,8B,OOM\n80M,,2.9\n80M,8B,inf\n80M,8B,OOM\n"
    table = read_columns(write(TEXT + more), COLUMNS)
    assert table.summary() == [
        "3 of 8 rows are used.",
        "5 rows left out: row 4 (loss is 'diverged'), rows 5 and 8 (loss is 'OOM'), "
        "row 6 (D is empty), row 7 (loss is 'inf').",
    ]


def test_rows_of_crashed_runs_are_left_out_unless_the_user_judges_them(write):
    path = write("N,D,loss,State\n1M,1B,3.5,finished\n2M,1B,9.9,crashed\n")
    assert "row 2 (State is 'crashed')" in " ".join(read_columns(path, COLUMNS).summary())
    judged = read_columns(path, COLUMNS, where=["State=crashed"])
    assert judged.values["loss"].tolist() == [9.9]
    assert "--where excludes 1 row." in judged.summary()


def test_repeated_rows_count_once_and_seeds_of_equal_loss_do_not_repeat(write):
    repeated = read_columns(write(TEXT + TEXT.split("\n", 1)[1]), COLUMNS)
    assert repeated.summary() == ["3 of 6 rows are used.", "3 rows repeat others: counted once."]
    seeds = read_columns(write("N,D,loss,seed\n1M,1B,3.5,0\n1M,1B,3.5,1\n"), COLUMNS)
    assert len(seeds.values) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT + "1M,1B,0\n", r"row 4 \(loss is 0\).*--where 'loss>0'"),
        (TEXT + "1,000,000,1B,3\n", "row 4 .* has 5 cells and the header 3"),
        (TEXT.replace("loss", "N"), "2 columns named 'N'"),
        ("N;D;loss\n1M;1B;3,512\n2M;1B;3,401\n", "'3,512' may be 3.512 or 3512"),
        ("N,D,loss\n1M,1B,OOM\n", "no row to use: row 1 .loss is 'OOM'"),
        ("", "no column|no row"),
        (b"PK\x03\x04 workbook", "save its table as CSV"),
        (json.dumps({"N": 1, "D": 1, "loss": 2}) + '\n{"N": 1,', "line 2 is no JSON"),
    ],
)
def test_what_cannot_be_read_is_named(write, content, message):
    with pytest.raises(UserError, match=message):
        read_columns(write(content), COLUMNS)


def test_bits_of_latents_and_of_pixels_are_not_fitted_together(write):
    path = write("N,D,bpd,bpd_kind\n1M,1B,3.5,bound\n2M,1B,1.9,latent\n")
    columns = {"params": "N", "tokens": "D", "loss": "bpd"}
    with pytest.raises(UserError, match=r"bound, latent.*--where bpd_kind=bound"):
        read_columns(path, columns)
    assert read_columns(path, columns, ["bpd_kind=latent"]).values["loss"].tolist() == [1.9]
    assert len(read_columns(path, columns, texts={"group": "bpd_kind"}).values) == 2


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["N>=40M"], [3.0, 2.6]),
        (["N>10M", "loss!=2.6"], [3.0]),
        (["N = 1e7"], [3.5]),
    ],
)
def test_conditions_compare_numbers_however_they_are_written(write, where, kept):
    assert read_columns(write(TEXT), COLUMNS, where).values["loss"].tolist() == kept
