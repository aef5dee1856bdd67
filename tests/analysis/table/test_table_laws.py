"""The law of a table of runs: planted truths, and honest answers where there is no law."""

import json

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.__main__ import main
from analysis.laws.fit import fit
from analysis.laws.forms import TIED
from analysis.laws.observations import Observations
from analysis.table.law import fit_table, hold_out
from tarflow.errors import UserError
from tarflow.human import count

COLUMNS = ["--params", "N", "--tokens", "D", "--loss", "loss"]
E, A, B, EXPONENT = 1.7, 400.0, 1200.0, 0.35


def truth(size, tokens):
    """The planted law, and its best size at a budget where 6 N D are its FLOPs."""
    return E + A / size**EXPONENT + B / tokens**EXPONENT


def runs(rows, noise=0.003, seed=0):
    """Runs of the planted law at random sizes and lengths."""
    rng = np.random.default_rng(seed)
    size, tokens = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(9, 12, rows)
    loss = truth(size, tokens) * np.exp(noise * rng.standard_normal(rows))
    return pd.DataFrame({"params": size, "tokens": tokens, "loss": loss})


def ask(tmp_path, capsys, table, *options):
    """Return what the command prints about a table, in one line."""
    path = tmp_path / "runs.csv"
    table.rename(columns={"params": "N", "tokens": "D"}).to_csv(path, index=False)
    code = main(["fit", str(path), *COLUMNS, *options])
    shown = capsys.readouterr()
    assert code == (2 if shown.err else 0)
    return " ".join((shown.out + shown.err).split())


def test_the_answer_holds_the_planted_law(tmp_path, capsys):
    out = tmp_path / "fit.json"
    options = ["--predict", "N=20B,D=2T", "--budget", "1e24", "--holdout", "0.8"]
    shown = ask(tmp_path, capsys, runs(40), *options, "--json", str(out))
    plain = json.loads(out.read_text())
    ((point, low, high),) = ((p["inputs"], p["low"], p["high"]) for p in plain["predictions"])
    assert low < truth(point["params"], point["tokens"]) < high < 1.05 * low
    best = (A / B) ** (1 / (2 * EXPONENT)) * (1e24 / 6) ** 0.5
    ends = plain["best_size"]["params_interval"]
    assert ends[0] < best < ends[1] < 3 * ends[0]
    held = plain["held_out"]
    assert (held["rows"], plain["law"].split(",")[0]) == (8, "tied")
    assert held["inside"] >= 6
    assert held["error"] < 0.01 < held["repeat_error"]
    assert "Prediction at N = 20G, D = 2T" in shown
    order = ["40 of 40 rows", "Law:", "There,", "Prediction", "Best size", "Held out", "┃ par"]
    places = [shown.index(start) for start in order]
    assert places == sorted(places)


def test_evenly_spaced_runs_still_test_the_forms():
    steps = 1.15 ** np.arange(8)
    size, tokens = (axis.ravel() for axis in np.meshgrid(1e8 * steps, 2e9 * steps))
    noise = 1 + 0.001 * np.random.default_rng(0).standard_normal(64)
    values = {"params": size, "tokens": tokens, "loss": truth(size, tokens) * noise}
    assert len(fit_table(pd.DataFrame(values)).law.trials.windows) >= 3


def test_a_learning_curve_keeps_its_floor():
    x = np.geomspace(1e4, 1e8, 40)
    law = fit_table(pd.DataFrame({"flops": x, "loss": 0.25 + 30 / x**0.45})).law
    assert (law.name, round(law.values["E"], 6)) == ("power", 0.25)


def test_the_bend_of_a_short_learning_curve_is_no_wrong_row():
    x = np.array([1e3, 1e6, 2e6, 4e6, 8e6, 1.6e7])
    noise = 1 + 0.002 * np.random.default_rng(1).standard_normal(6)
    law = fit_table(pd.DataFrame({"flops": x, "loss": (0.25 + 30 / x**0.45) * noise}))
    assert not law.alone


def test_a_best_size_that_is_not_told_has_an_interval_all_the_same(tmp_path, capsys):
    table = runs(6, noise=0.03)
    law = fit_table(table)
    assert law.best_size(1e24) is None
    low, high = law.size_interval(1e24)
    assert low < (A / B) ** (1 / (2 * EXPONENT)) * (1e24 / 6) ** 0.5 < high
    assert high > 10 * low
    shown = ask(tmp_path, capsys, table, "--budget", "1e24")
    assert f"within a factor of 10 (90% interval {count(low)} to {count(high)} p" in shown


def test_sizes_and_tokens_that_vary_together_are_a_law_of_compute(tmp_path, capsys):
    table = runs(15)
    table = table.assign(tokens=30 * table["params"])
    table["loss"] = truth(table["params"], table["tokens"])
    law = fit_table(table)
    assert law.law.identified == {"E": True, "A": True, "a": True}
    assert law.law.values["E"] == pytest.approx(E, rel=1e-3)
    assert law.law.values["a"] == pytest.approx(EXPONENT / 2, rel=1e-3)
    assert law.predict(params=2e10, tokens=6e11).value == pytest.approx(truth(2e10, 6e11))
    with pytest.raises(UserError, match="D = 30 N"):
        law.predict(params=2e10, tokens=2e12)
    assert "as --flops would fit" in ask(tmp_path, capsys, table)


def test_losses_without_a_law_are_called_so(tmp_path, capsys):
    table = runs(14)
    table["loss"] = np.exp(0.25 * np.random.default_rng(3).standard_normal(14) + 1)
    shown = ask(tmp_path, capsys, table)
    assert "no law: residuals" in shown
    assert "as large as the spread of the losses" in shown
    assert "identified" not in shown
    assert "no law: the losses are equal" in ask(tmp_path, capsys, table.assign(loss=2.5))


def test_one_wrong_run_of_a_few_is_named_and_left_out(tmp_path, capsys):
    table = runs(8, noise=0.002, seed=5)
    wrong = (table["params"] * table["tokens"]).idxmax()
    table.loc[wrong, "loss"] = 9.0
    shown = ask(tmp_path, capsys, table)
    assert f"7 of 8 rows are used. 1 row left out: row {wrong + 1} (without it, resid" in shown
    assert "(4 times the largest compute)" in shown
    assert fit_table(table).law.values["E"] == pytest.approx(E, rel=0.1)
    assert not fit_table(runs(8, noise=0.002, seed=5)).alone


def test_a_wrong_run_of_many_is_named():
    table = runs(30)
    table.loc[6, "loss"] *= 1.5
    assert list(fit_table(table).outliers) == [6]


def test_rows_of_one_run_share_their_error():
    """Intervals from 12 runs of 8 checkpoints hold the truth; as independent rows they do not."""
    rng = np.random.default_rng(0)
    size = np.tile(np.geomspace(1e7, 3e9, 6), 2)
    last = np.repeat([2e10, 2e11], 6)
    tokens = last[:, None] * np.geomspace(0.05, 1, 8)
    names = np.repeat([f"run {number}" for number in range(12)], 8).tolist()
    held = {True: 0, False: 0}
    for _ in range(10):
        error = 0.01 * rng.standard_normal((12, 1)) + 0.001 * rng.standard_normal((12, 8))
        inputs = {"params": np.repeat(size, 8), "tokens": tokens.ravel()}
        loss = (truth(size[:, None], tokens) * np.exp(error)).ravel()
        for grouped in held:
            data = Observations(inputs, loss, names if grouped else None)
            law = fit(TIED, data, starts=8, draws=200)
            low, high = law.intervals["a"]
            held[grouped] += low <= EXPONENT <= high
    assert held[True] >= 8
    assert held[False] <= 6


def test_five_rows_identify_nothing():
    law = fit_table(runs(5))
    assert not any(law.law.identified.values())
    assert not law.nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--predict", "N=7B"], "write it as N=1e9,D=1e9"),
        (["--budget", "-1"], "--budget is -1"),
        (["--holdout", "80"], "give the share of rows to fit, such as 0.8"),
        (["--holdout", "0.1"], "leaves too little to fit"),
        (["--where", "N>1e20"], "no row with N>1e20"),
        (["--where", "N"], "compares nothing"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    assert message in ask(tmp_path, capsys, runs(12), *options)


def test_held_out_runs_stay_whole():
    table = runs(40).sort_values("loss", ignore_index=True)
    table["run"] = ["long" if row % 2 else f"short {row}" for row in range(40)]
    table.loc[1, ["params", "tokens"]] = [1e10, 1e13]
    table.loc[1, "loss"] = truth(1e10, 1e13)
    assert hold_out(table, 0.5).rows == 20


def test_the_shell_reads_conditions_more_than_once(tmp_path, capsys):
    table = runs(30).assign(kind=["a", "b", "a"] * 10)
    shown = ask(tmp_path, capsys, table, "--where", "kind=a", "--where", "loss<100")
    assert "20 of 30 rows are used. --where excludes 10 rows." in shown


def test_groups_share_exponents_and_have_floors_of_their_own(tmp_path, capsys):
    parts = [runs(20, seed=1).assign(kind="web"), runs(20, seed=2).assign(kind="code")]
    parts[1]["loss"] += 0.6
    table = pd.concat(parts, ignore_index=True)
    point = ["--predict", "N=20B,D=2T,group=code", "--json", str(tmp_path / "fit.json")]
    shown = ask(tmp_path, capsys, table, "--group", "kind", *point)
    assert "kind = code" in shown
    plain = json.loads((tmp_path / "fit.json").read_text())
    low, high = (plain["predictions"][0][end] for end in ("low", "high"))
    assert low < truth(2e10, 2e12) + 0.6 < high < 1.05 * low
    alone = ask(tmp_path, capsys, table, "--group", "kind", "--predict", "N=20B,D=2T,group=maths")
    assert "group 'maths': the groups are code, web" in alone


def test_a_form_by_name_is_fitted_alone(tmp_path, capsys):
    shown = ask(tmp_path, capsys, runs(30), "--form", "chinchilla")
    assert "chinchilla 100%" in shown
    assert "tied" not in shown
    assert "did you mean 'chinchilla'" in ask(tmp_path, capsys, runs(30), "--form", "chinchila")


def test_training_sets_of_several_sizes_are_an_input(tmp_path, capsys):
    rng = np.random.default_rng(4)
    table = runs(60).assign(unique=np.repeat([3e9, 3e10, 3e11], 20))
    table["tokens"] = table["unique"] * 4 ** rng.uniform(-1, 3, 60)
    repeats = np.maximum(table["tokens"] / table["unique"] - 1, 0)
    worth = np.minimum(table["tokens"], table["unique"]) * (1 + 6 * (1 - np.exp(-repeats / 6)))
    table["loss"] = truth(table["params"], worth) * np.exp(0.002 * rng.standard_normal(60))
    point = ["--predict", "N=1B,D=200B,unique=3B", "--json", str(tmp_path / "fit.json")]
    ask(tmp_path, capsys, table, "--input", "unique_tokens=unique", *point)
    plain = json.loads((tmp_path / "fit.json").read_text())
    value = plain["predictions"][0]["value"]
    far = 3e9 * (1 + 6 * (1 - np.exp(-(200 / 3 - 1) / 6)))
    assert value == pytest.approx(truth(1e9, far), rel=0.01)


def test_weights_say_how_often_a_row_counts(tmp_path, capsys):
    """Rows of a wrong law that count a thousandth leave the law of the others alone."""
    table = runs(40, noise=1e-4).assign(often=1.0)
    wrong = runs(20, seed=9).assign(often=1e-3)
    wrong["loss"] += 0.3
    mixed = pd.concat([table, wrong], ignore_index=True)
    options = ["--weights", "often", "--predict", "N=20B,D=2T", "--json"]
    ask(tmp_path, capsys, mixed, *options, str(tmp_path / "fit.json"))
    value = json.loads((tmp_path / "fit.json").read_text())["predictions"][0]["value"]
    assert value == pytest.approx(truth(2e10, 2e12), rel=2e-3)


def test_three_lines_of_python_ask_a_table(tmp_path):
    table = runs(30)
    table.to_csv(tmp_path / "runs.csv", index=False)
    columns = {"loss": "loss", "params": "params", "tokens": "tokens"}
    laws = [analysis.fit(source, **columns) for source in (table, tmp_path / "runs.csv")]
    values = [law.predict(params=2e10, tokens=2e12).value for law in laws]
    assert values == pytest.approx([truth(2e10, 2e12)] * 2, rel=0.01)
    with pytest.raises(UserError, match="no column 'size'"):
        analysis.fit(table, **columns | {"params": "size"})


def test_a_design_that_tells_little_is_said_before_the_prediction(tmp_path, capsys):
    """All but two runs have 20 tokens for each parameter."""
    table = runs(14)
    table["tokens"] = 20 * table["params"]
    table.loc[:1, "tokens"] *= 10
    table["loss"] = truth(table["params"], table["tokens"])
    shown = ask(tmp_path, capsys, table)
    doubt = shown.index("Only 2 of 14 configs lie off D = 20 N")
    assert doubt < shown.index("Prediction at")
