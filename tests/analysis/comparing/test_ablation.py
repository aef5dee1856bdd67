"""Ablations: what is averaged, what is flagged, what is put beside published numbers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.comparing.ablation import (
    UNIFORM_STD,
    averaged,
    baseline,
    best,
    conclusions,
    kind,
    noise_level,
    titled,
    worth,
)
from analysis.comparing.shares import shares
from analysis.report.published import published
from analysis.report.sections.ablation import sections
from analysis.study.settings import SETTING
from analysis.study.signatures import GOOD, POOR, signatures
from tarflow import record
from tarflow.human import bits


def frame(**columns):
    return pd.DataFrame(columns).assign(run_id=lambda rows: [f"r{i}" for i in range(len(rows))])


def test_intervals_of_means_over_seeds_cover_the_truth():
    rng, inside, total = np.random.default_rng(0), 0, 0
    for _ in range(400):
        truth = {"a": 1.0, "b": 1.2, "c": 1.5}
        keys = np.repeat(list(truth), 3)
        values = np.array([truth[key] for key in keys]) + 0.05 * rng.standard_normal(9)
        means = averaged(frame(key=keys, bpd=values), ["key"], "bpd").set_index("key")
        for key, mean in truth.items():
            inside += means.loc[key, "low"] <= mean <= means.loc[key, "high"]
            total += 1
    assert inside / total == pytest.approx(0.9, abs=0.03)


def test_an_interval_is_no_narrower_than_the_error_of_its_runs():
    rows = frame(key=["a", "a", "b", "b"], kid=[0.1, 0.1, 0.5, 0.5], kid_se=[0.02, 0.02, 0.2, 0.2])
    means = averaged(rows, ["key"], "kid").set_index("key")
    assert means.loc["a", "high"] - 0.1 == pytest.approx(1.645 * 0.02 / 2**0.5, rel=1e-3)
    # The spread is pooled in units of each row's own error, which differs tenfold here.
    assert means.loc["b", "high"] - 0.5 == pytest.approx(1.645 * 0.2 / 2**0.5, rel=1e-3)


def test_one_run_of_each_has_no_interval_without_an_error():
    means = averaged(frame(key=["a", "b"], bpd=[1.0, 2.0]), ["key"], "bpd")
    assert means["mean"].tolist() == [1.0, 2.0]
    assert means[["low", "high"]].isna().all(axis=None)


def ablation_runs(**changes):
    """Six runs: three noise levels, two seeds each."""
    rows = [
        {
            "run_id": f"{name}{seed}", "role": "ablation", "status": "done", "seed": seed,
            "label": f"{name}-c8-b2-l1-1e9-s{seed}", "config": f'{{"noise": "{name}"}}',
            "noise_type": "uniform" if name == "uniform" else "gaussian",
            "noise_std": None if name == "uniform" else float(name),
            "blocks": 2, "layers": 1, "patch": 4, "bpd": 2.0,
        } | changes
        for name in ("0.1", "0.2", "uniform")
        for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_choices_are_named_by_what_differs():
    runs = titled(ablation_runs())
    assert kind(runs) == "noise"
    assert runs["title"].tolist()[::2] == ["noise 0.1", "noise 0.2", "uniform noise"]
    assert noise_level(runs).tolist()[::2] == [0.1, 0.2, UNIFORM_STD]
    assert pytest.approx(np.random.default_rng(0).uniform(0, 2 / 256, 10**5).std(), rel=0.01) == (
        UNIFORM_STD
    )
    other = titled(ablation_runs(noise_type="gaussian", noise_std=0.1))
    assert kind(other) == "choice"
    assert other["title"].tolist()[::2] == ["0.1", "0.2", "uniform"]
    assert titled(ablation_runs(role="grid")).empty
    patches = ablation_runs(noise_type="gaussian", noise_std=0.1).assign(patch=[4, 4, 1, 1, 2, 2])
    runs = titled(patches)
    assert kind(runs) == "patch"
    assert runs["title"].tolist()[::2] == ["patch 4", "patch 1", "patch 2"]
    assert baseline(runs) == "patch 1"


NOT_SAMPLED = pd.DataFrame(columns=["run_id", "kid", "half", *SETTING])
SPLITS = {"4-4-4-4": 0.0, "2-2-2-10": -0.02, "1-1-1-13": 0.0002}  # bits against the even split


def split_runs(folder, effects=SPLITS, seeds=3, images=400, noise=0.01):
    """Three splits whose seeds and images vary far more than the splits differ, but alike."""
    rng, rows = np.random.default_rng(0), []
    hard, seed_effect = rng.gamma(4, 0.25, images), 0.3 * rng.standard_normal(seeds)
    for split, effect in effects.items():
        for seed in range(seeds):
            run_id = f"{split}-{seed}"
            bpd = 1.0 + hard + effect + seed_effect[seed] + noise * rng.standard_normal(images)
            (folder / "runs" / run_id).mkdir(parents=True)
            values = [{"index": i, "bpd": value} for i, value in enumerate(bpd)]
            record.write_table(folder / "runs" / run_id / "images.parquet", values, record.IMAGES)
            rows.append(
                {
                    "run_id": run_id, "role": "ablation", "status": "done", "seed": seed,
                    "label": f"c32-b4-l{split}-4e11-s{seed}", "config": f'{{"split": "{split}"}}',
                    "noise_type": "gaussian", "noise_std": 0.25, "blocks": 4, "layers": 4,
                    "layer_split": None if split == "4-4-4-4" else split, "params": 1000,
                    "patch": 4,
                    "bpd": bpd.mean(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_what_a_split_is_worth_is_paired_and_named(tmp_path):
    runs = titled(split_runs(tmp_path))
    assert kind(runs) == "shape"
    assert set(runs["title"]) == {f"layers {split}" for split in SPLITS}
    assert baseline(runs) == "layers 4-4-4-4"
    points = worth(runs, tmp_path).set_index("title")
    assert points.index.tolist() == ["layers 2-2-2-10", "layers 1-1-1-13"]  # the deepest last
    for title, row in points.iterrows():
        assert row["low"] < SPLITS[title.removeprefix("layers ")] < row["high"]
        assert row["high"] - row["low"] < 0.01  # seeds alone spread by 0.3
    said = conclusions(runs, NOT_SAMPLED, tmp_path)
    assert said[0].startswith("Lowest bits per dimension: layers 2-2-2-10")
    assert "no clear difference from layers 4-4-4-4" in said[0]  # what means alone can tell
    assert said[1].startswith("Layers 2-2-2-10 against layers 4-4-4-4, on the same images")
    assert said[1].endswith("clearly better.")
    assert said[2].endswith("no clear difference.")


def test_the_page_names_every_split(tmp_path):
    runs = split_runs(tmp_path)
    scored = runs.reindex(columns=[*runs.columns, *SETTING, "kid", "kid_se", "fid", "fd", "half"])
    scored = scored.assign(half="all", guidance=0.0, denoise=1.0, kid=0.1, kid_se=0.01)
    findings = SimpleNamespace(finished=runs)
    section = sections(SimpleNamespace(findings=findings, scored=scored, study=tmp_path))[0]
    assert section.title == "Layers of each block at equal cost"
    for table in section.tables:
        named = [row[0].removesuffix(", denoised") for row in table.rows]
        assert named == [f"layers {split}" for split in SPLITS][-len(named) :]
    assert "minus those of layers 4-4-4-4" in section.tables[1].columns[1]
    for figure in section.figures.values():
        assert set(figure.data[0].x) <= set(SPLITS)


def drawn_settings(runs, kids, seed=0):
    """Rows of the evaluations table: every run at every setting, in both halves."""
    rng = np.random.default_rng(seed)
    return [
        {
            "run_id": run_id, "guidance": guidance, "denoise": denoise, "rule": "log-scale",
            "part": "both", "guided_blocks": "all", "annealed": True, "temperature": 1.0,
            "feature_extractor": "e", "half": half, "kid": kid + 0.01 * rng.standard_normal(),
            "kid_se": 0.01, "reference": "digits/validation", "solver": "sequential", "seed": 0,
            "n": 100, "n_reference": 100,
        }
        for run_id in runs["run_id"]
        for (guidance, denoise), kid in kids.items()
        for half in ("all", "chosen", "scored")
    ]  # fmt: skip


def test_the_shares_of_techniques_are_those_planted(tmp_path, capsys):
    study = tmp_path / "split"
    runs = split_runs(study)
    kids = {(0.0, 0.0): 0.5, (0.0, 1.0): 0.3, (2.0, 1.0): 0.1}
    rows = runs.assign(flops=1e9, channels=8).to_dict("records")
    rated = drawn_settings(runs, kids)
    record.write_table(study / "runs.parquet", rows, record.RUNS)
    record.write_table(study / "evaluations.parquet", rated, record.EVALUATIONS)
    worth = {(share.technique, share.score): share for share in shares([study])}
    bits_of_shape = worth["shape", "bits per dimension"]
    assert (bits_of_shape.best, bits_of_shape.without) == ("layers 2-2-2-10", "layers 4-4-4-4")
    assert bits_of_shape.interval[0] < -0.02 < bits_of_shape.interval[1] < 0
    assert not worth["shape", "KID"].clear
    for split in SPLITS:
        for technique in ("denoising", "guidance"):
            share = worth[f"{technique}, layers {split}", "KID"]
            assert share.clear
            assert share.difference == pytest.approx(-0.2, abs=0.04)
    assert main(["shares", str(study), "--out", str(tmp_path / "shares.html")]) == 0
    assert "Shape: layers 2-2-2-10 against layers 4-4-4-4: -0.0" in capsys.readouterr().out
    assert "guidance 2, temperature 1, denoising 1" in (tmp_path / "shares.html").read_text()
    record.write_table(study / "runs.parquet", [], record.RUNS)
    assert main(["shares", str(study)]) == 2
    assert "compares nothing" in capsys.readouterr().err


def test_intervals_of_what_a_choice_is_worth_cover_the_truth(tmp_path):
    rng, inside = np.random.default_rng(0), 0
    for trial in range(150):
        effects = {"4-4-4-4": 0.0, "2-2-2-10": 0.03}
        runs = split_runs(tmp_path / str(trial), effects, images=2)
        runs["bpd"] += 0.02 * rng.standard_normal(len(runs))  # trainings differ
        row = worth(titled(runs), tmp_path / str(trial)).iloc[0]
        inside += row["low"] <= 0.03 <= row["high"]
    assert 0.84 <= inside / 150 <= 0.97


def test_one_seed_is_worth_no_interval(tmp_path):
    said = conclusions(split_runs(tmp_path, seeds=1), NOT_SAMPLED, tmp_path)
    assert said[1].endswith("one seed gives no interval.")


def test_the_best_is_named_with_what_cannot_be_told_from_it():
    points = pd.DataFrame(
        {"title": ["a", "b", "c"], "mean": [1.0, 1.1, 2.0], "low": [0.9, 1.0, 1.9],
         "high": [1.1, 1.2, 2.1]}
    )  # fmt: skip
    assert best(points, "BPD", bits) == (
        "Lowest BPD: a, 1.000 (0.900 to 1.100); no clear difference from b."
    )
    other = points.assign(mean=[1.1, 1.0, 2.0])  # draws that choose: the mean is not theirs
    assert best(points, "BPD", bits, other) == (
        "Lowest BPD by one half of the draws: b, 1.100 by the other (1.000 to 1.200); no clear "
        "difference from a."
    )


def scores(bpd, kid, error=0.01):
    return pd.DataFrame(
        {"run_id": [f"r{i}" for i in range(len(bpd))], "bpd": bpd, "bpd_se": 0.5, "kid": kid,
         "kid_se": error}
    )  # fmt: skip


def images(scored, spread, seed=0):
    """Per-image BPD whose differences between runs hardly vary, as of equal images."""
    rng = np.random.default_rng(seed)
    hard = rng.gamma(4, 0.25, 300)
    tables = {}
    for run_id, bpd in zip(scored["run_id"], scored["bpd"], strict=True):
        values = hard + spread * rng.standard_normal(300)
        tables[run_id] = pd.DataFrame({"index": range(300), "bpd": bpd + values - values.mean()})
    return tables


def test_runs_whose_ranks_disagree_are_flagged_and_no_others():
    bpd = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    scored = scores(bpd, kid=[0.9, 0.2, 0.3, 0.4, 0.5, 0.1])
    disagreeing = signatures(scored, images(scored, 0.05))
    assert [(item.run_id, item.kind) for item in disagreeing] == [("r0", GOOD), ("r5", POOR)]
    assert (disagreeing[0].bpd_rank, disagreeing[0].kid_rank) == (1, 6)
    agreeing = scores(bpd, kid=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert signatures(agreeing, images(agreeing, 0.05)) == ()


def test_what_the_errors_allow_is_not_flagged():
    scored = scores([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], kid=[0.9, 0.2, 0.3, 0.4, 0.5, 0.1])
    tables = images(scored, 0.05)
    assert signatures(scored.assign(kid_se=1.0), tables) == ()
    assert signatures(scored, tables, noise=1.0) == ()  # seeds move BPD more than the choices
    assert signatures(scored, {}) == ()  # without images only the unpaired error is known
    assert signatures(scored.head(4), tables) == ()


def finished(**changes):
    row = {
        "run_id": "r", "name": "ours", "data": "data/imagenet64", "classes": 0, "patch": 2,
        "tokens": 1024 * 10, "images": 10, "bpd": 3.3, "bpd_kind": "dequantised",
        "split": "validation",
    }  # fmt: skip
    return pd.DataFrame([row | changes])


def drawn(runs, **changes):
    sampled = {
        "fid": 20.0, "n": 50_000, "n_reference": 50_000, "reference": "imagenet64/validation",
        "guidance": 0.0, "denoise": 1.0, "temperature": 1.0, "half": "all",
    }  # fmt: skip
    return runs.assign(**(sampled | changes))


def test_published_numbers_stand_around_ours_in_order():
    runs = finished()
    likelihood, fid = published(drawn(runs), runs)
    for table, ours in ((likelihood, "3.300"), (fid, "20")):
        values = [float(row[2]) for row in table.rows]
        assert values == sorted(values)
        assert next(row[2] for row in table.rows if row[1] == "this study") == ours
        assert all(row[4] for row in table.rows)
    families = {row[1] for row in (*likelihood.rows, *fid.rows)}
    assert {"flow", "GAN", "diffusion"} < families
    assert next(row for row in likelihood.rows if "TarFlow" in row[0])[2] == "2.99"


@pytest.mark.parametrize(
    "changes",
    [
        {"bpd_kind": "bound"},  # a bound is not the quantity that was published
        {"data": "digits"},
        {"patch": 4},  # 128 pixels: another data set of the same name
        {"classes": 1000},  # likelihoods with labels have not been published
    ],
)
def test_unlike_is_never_put_beside_like(changes):
    runs = finished(**changes)
    assert published(drawn(runs, fid=None), runs) == ()


def test_every_published_number_has_a_protocol_and_a_source():
    from analysis.report.published import NUMBERS

    known = pd.read_csv(NUMBERS)
    assert not known.isna().any(axis=None)
    assert set(known["metric"]) == {"bpd", "fid"}
    assert not known.duplicated(["data", "labels", "metric", "model", "protocol"]).any()
