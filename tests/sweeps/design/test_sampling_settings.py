"""A study that varies its base and samples its runs in several ways, end to end on Ray."""

import re
from dataclasses import replace

import pytest

from sweeps import scaling
from sweeps.design.presets import load
from sweeps.design.sampling import to_sample
from sweeps.design.study import Size, Variant, grid, resolve_study
from tarflow.config import SamplerConfig
from tarflow.config_files import to_yaml
from tarflow.record import read_table

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.ray,
    pytest.mark.usefixtures("local_ray"),
]


def wee():
    """Two runs of a second each, one of them without noise to take away."""
    study = load("tiny")
    base = replace(
        study.base,
        model=replace(study.base.model, patch=14, channels=8),
        evaluation=replace(study.base.evaluation, decoder_images=64, samples=16),
    )
    return replace(
        study,
        name="wee",
        base=base,
        role="ablation",
        sizes=(Size(channels=8, blocks=2, layers=1),),
        budgets=(2e8,),
        held_out=None,
        variants=(Variant(name="uniform", change={"noise": {"type": "uniform"}}),
                  Variant(name="noise0.3", change={"noise": {"std": 0.3}})),
        settings=(SamplerConfig(denoise=0.0), SamplerConfig(denoise=0.5), SamplerConfig()),
    )  # fmt: skip


def test_runs_are_sampled_as_asked_once_and_compared_in_the_report(tmp_path, capsys):
    path, out = tmp_path / "wee.yaml", tmp_path / "out"
    path.write_text(to_yaml(wee()))
    options = scaling.Options(study=str(path), out=out, yes=True)
    assert scaling.scale(options) == 0

    runs = {row["run_id"]: row for row in read_table(out / "runs.parquet").to_pylist()}
    assert {row["role"] for row in runs.values()} == {"ablation"}
    asked = {
        (runs[row["run_id"]]["noise_type"], row["denoise"], row["half"], row["seed"])
        for row in read_table(out / "evaluations.parquet").to_pylist()
    }
    assert asked == {
        (*way, part, 0)
        for way in (("uniform", 1.0), ("gaussian", 1.0), ("gaussian", 0.5), ("gaussian", 0.0))
        for part in ("all", "chosen", "scored")
    }
    pictures = list(out.glob("runs/*/evaluations/*.png"))
    assert len(pictures) == 2
    page = (out / "report.html").read_text()
    sections = re.findall(r'<section id="([\w-]+)"', page)
    assert sections[:2] == ["noise", "denoising"]
    assert not {"law", "allocation", "search"} & set(sections)
    assert page.count("data:image/png") >= 3
    assert not (out / "best.yaml").exists()  # nothing was extrapolated

    # One more way of sampling is one more task; what is there stays.
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/evaluations/*.json")}
    lost = next(iter(before))
    lost.unlink()
    study = resolve_study(wee())
    assert [each.setting_id for each in to_sample(study, grid(study), out)] == [lost.stem]
    assert scaling.scale(options) == 0
    after = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/evaluations/*.json")}
    assert {file for file in after if after[file] != before[file]} == {lost}
    assert scaling.scale(options) == 0
    assert "every run is done already" in capsys.readouterr().out
