"""Two studies compared: by their laws, and run by run."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic import BUDGETS, CHANNELS, LARGEST, Law, plant, run_config, run_row

from analysis.__main__ import main
from analysis.comparing.comparison import Compared, compare, frontier_of_findings, reach
from analysis.comparing.words import in_sentences, reach_in_words
from analysis.study.findings import find


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A study with a search, whose runs vary the noise and have no partner elsewhere."""
    return plant(tmp_path_factory.mktemp("one") / "digits", search=3)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A study whose every run is 0.05 bits worse."""
    return plant(tmp_path_factory.mktemp("two") / "digits-old", law=Law(E=1.47), seed=1)


def findings_of(efficiency, seed, draws):
    """Findings of runs that learn from each image as others do from `efficiency` images.

    Cost is proportional to images, so they need `efficiency` times less compute for equal bits.
    """
    law, rng = Law(), np.random.default_rng(seed)
    grid = [run_config(channels, budget) for budget in BUDGETS for channels in CHANNELS]
    grid += [run_config(48, BUDGETS[1], seed=number) for number in (1, 2)]
    grid += [run_config(*LARGEST)]
    rows = [run_row(config, "grid") | {"status": "done", "epochs": 1e-3} for config in grid]
    for row in rows:
        row["bpd"] = law(row["params"], efficiency * row["tokens"]) + 0.003 * rng.normal()
    return find(pd.DataFrame(rows), None, draws=draws)


def compared(name, efficiency, seed, draws=100):
    findings = findings_of(efficiency, seed, draws)
    return Compared(name, None, {}, findings, frontier_of_findings(findings))


@pytest.fixture(scope="module")
def usual():
    return compared("A", 1.0, 1)


@pytest.mark.slow
def test_the_interval_of_saved_compute_holds_the_truth_nine_times_in_ten():
    rng, held, miss = np.random.default_rng(0), 0, []
    for seed in range(20):
        a, b = compared("A", 1.0, 2 * seed, 400), compared("B", 1.6, 2 * seed + 1, 400)
        low, high = reach(b, a, rng).interval
        held += low <= 1.6 <= high
        miss.append(np.log(high / low))
    assert held >= 16  # of 20, at 90%: fewer happen once in 25 times
    assert np.mean(miss) < 0.25  # and the intervals say something


def test_a_planted_saving_is_found_and_said(usual):
    a, b = usual, compared("B", 1.6, 2)
    rng = np.random.default_rng(0)
    there, back = reach(b, a, rng), reach(a, b, rng)
    assert there.ratio == pytest.approx(1.6, rel=0.1)
    assert there.interval[0] < 1.6 < there.interval[1]
    assert "B reaches A's best (1." in reach_in_words(there)
    assert "x less compute (1." in reach_in_words(there)
    assert "x more compute (1." in reach_in_words(back)
    assert back.ratio == pytest.approx(1 / there.ratio, rel=0.1)


def test_a_law_that_never_reaches_gives_a_bound(usual):
    a, b = usual, compared("B", 1e4, 2)
    rng = np.random.default_rng(0)
    assert reach(a, b, rng).ratio == 0
    words = reach_in_words(reach(a, b, rng))
    assert words.startswith("By its law, A does not reach B's best")
    assert "100 times its largest budget" in words
    words = reach_in_words(reach(b, a, rng))
    assert "The cheapest budget of B reaches A's best" in words
    assert "it needs at least " in words


def test_pairs_share_images_and_know_their_differences(first, second):
    comparison = compare([first, second])
    (contrast,) = comparison.contrasts
    rows = contrast.pairs.rows
    assert len(rows) == 21
    assert rows["difference"].to_numpy() == pytest.approx(0.05, abs=0.02)
    assert (rows["error"] < 0.01 * rows["bpd_first"]).all()  # unpaired, each is 2% of its run
    low, high = contrast.pairs.interval
    assert low < 0.05 < high
    assert rows["name"].is_unique
    assert contrast.equal.difference == pytest.approx(0.05, abs=0.01)
    lines = in_sentences(comparison)
    assert lines[0].startswith("digits is better than digits-old by 0.0")
    assert "digits is better than digits-old in 21 of the 21 runs" in "".join(lines)
    assert "different noise" not in "".join(lines)


def test_settings_that_differ_are_listed_by_name(tmp_path):
    first, other = (plant(tmp_path / name, limit=2) for name in ("digits", "other"))
    settings = {"name": "other", "seed": 0, "base": {"noise": {"std": 0.3}}, "note": "wide"}
    (other / "study.yaml").write_text(yaml.safe_dump(settings))
    table = compare([first, other]).settings
    assert table.to_numpy().tolist() == [["base.noise.std", "", "0.3"]]
    assert list(table) == ["setting", "digits", "other"]


def changed(study, folder, **columns):
    """Copy the results of a study with other values in the table of runs."""
    for path in study.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        result["run"] |= columns
        copy = folder / "runs" / path.parent.name / "result.json"
        copy.parent.mkdir(parents=True)
        copy.write_text(json.dumps(result))
    return folder


def test_studies_of_other_images_are_refused_in_one_line(first, tmp_path, capsys):
    other = changed(first, tmp_path / "fashion", data="fashion", data_hash="fa51")
    assert main(["compare", str(first), str(other), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "digits and fashion were not trained on the same images" in error
    assert not (tmp_path / "page.html").exists()


def test_likelihoods_of_latents_are_compared_at_one_noise_only(first, tmp_path, capsys):
    latents = changed(first, tmp_path / "latents", bpd_kind="latent", noise_std=0.3)
    noisier = changed(first, tmp_path / "noisier", bpd_kind="latent", noise_std=0.5)
    for one, other, reason in (
        (first, latents, "bits per dimension and latents in bits per latent dimension"),
        (latents, noisier, "add different noise to latents (std 0.3, and 0.5)"),
    ):
        assert main(["compare", str(one), str(other), "--out", str(tmp_path / "page.html")]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_study_is_not_compared_with_itself(first, capsys):
    assert main(["compare", str(first), f"{first}/."]) == 2
    assert "named twice" in capsys.readouterr().err


def test_too_few_runs_other_noise_and_missing_images_are_said(tmp_path):
    few = plant(tmp_path / "few", limit=3)
    comparison = compare([few, changed(few, tmp_path / "noisier", noise_std=0.4)])
    printed = "\n".join(in_sentences(comparison))
    assert "add different noise" in printed
    assert "cannot be compared at equal compute: that needs a law of each" in printed
    assert comparison.contrasts[0].pairs.rows["error"].isna().all()  # no images.parquet
    assert (comparison.contrasts[0].pairs.rows["difference"] == 0).all()
