"""The ranges of a search that a study file sets."""

from dataclasses import replace

import pytest
import yaml

from sweeps import search
from sweeps.design.presets import load
from sweeps.design.ranges import SearchRanges
from sweeps.design.study import grid, resolve_study
from sweeps.search import Options, middle
from sweeps.searching.journal import draws, open_journal, open_study
from sweeps.searching.sampler_space import SamplingSpace
from sweeps.searching.space import TrainingSpace
from tarflow.config import SamplerConfig
from tarflow.config_files import read_yaml, to_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.identity import run_id


def written(folder, **ranges):
    """Return the space of a study file with this section `search`."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"preset": "tiny", "search": ranges}))
    study = resolve_study(load(str(path)))
    return TrainingSpace(study, middle(study.budgets))


def test_a_search_stays_within_the_ranges_of_its_study(tmp_path):
    space = written(
        tmp_path,
        channels=[24, 64],
        blocks=[1, 6],
        layers=[2, 3],
        lr_ratio=[0.5, 0.8],
        noise_std=[0.02, 0.04],
    )
    suggested = draws(space, 60, seed=1)
    for name, (low, high) in {"layers": (2, 3), "lr_ratio": (0.5, 0.8)}.items():
        assert all(low <= params[name] <= high for params in suggested)
    assert {params["blocks"] for params in suggested} == {1, 2, 3, 4, 5, 6}
    widths = {params["channels"] for params in suggested}
    assert min(widths) == 24
    assert max(widths) > 32  # wider than any size of the study
    base = space.base  # the nearest to the study's own choice
    assert base == {
        "blocks": 2,
        "layers": 2,
        "channels": 24,
        "lr_ratio": 0.8,
        "noise_std": 0.04,
    }


def test_a_range_depends_on_what_is_chosen_before(tmp_path):
    cases = [
        {"when": {"blocks": 2}, "channels": [8, 8], "lr_ratio": [1.0, 2.0]},
        {"when": {"blocks": [3, 9], "layers": 1}, "channels": [16, 24]},
    ]
    space = written(tmp_path, channels=[32, 32], cases=cases)
    suggested = draws(space, 60, seed=1)
    kinds = set()
    for params in suggested:
        kind = 0 if params["blocks"] == 2 else 1 if params["layers"] == 1 else 2
        kinds.add(kind)
        assert params["channels"] in ((8,), (16, 24), (32,))[kind]
        low, high = (1.0, 2.0) if kind == 0 else (0.25, 2.0)
        assert low <= params["lr_ratio"] <= high
    assert kinds == {0, 1, 2}
    assert space.base["channels"] == 8  # that of two blocks
    options = Options(trials=1)
    plan = search.make_search_plan(options, space, tmp_path / "nowhere")
    lines = search.in_words(options, space, plan, 1.0)
    assert "channels 32 to 32 · learning rate, times the study's 0.25 to 2" in lines[1]
    rate = "learning rate, times the study's 1 to 2"
    assert lines[2] == f"  if blocks is 2: channels 8 to 8 · {rate}"
    assert lines[3] == "  if blocks is 3 to 9, layers is 1: channels 16 to 24"


def test_splits_are_chosen_from_those_of_the_file(tmp_path):
    space = written(tmp_path, split=["1-1", "1-3"], total_layers=[4, 8])
    models = [space.run_of(params).config.model for params in draws(space, 40, seed=1)]
    assert {model.layers for model in models} >= {2, 3, 4, (1, 3), (2, 6)}
    open_study(space, open_journal(tmp_path)).ask()
    study = open_study(space, open_journal(tmp_path))
    space(study.ask())
    other = written(tmp_path, split=["1-1"], total_layers=[4, 8])
    with pytest.raises(UserError, match="chose split from 1-1, 1-3, which cannot change"):
        open_study(other, open_journal(tmp_path))
    wider = written(tmp_path, split=["1-1", "1-3"], total_layers=[2, 16])
    wider(open_study(wider, open_journal(tmp_path)).ask())  # numbers may change


WRONG = {
    "channels: [64, 16]": "search.channels is (64, 16): write its lowest and highest value",
    "channels: [8, 16, 32]": "search.channels is (8, 16, 32): write its lowest and highest",
    "channels: [12, 16]": "search.channels is (12, 16): both must be multiples of "
    "base.model.head_dim, which is 8",
    "lr_ratio: [0, 1]": "search.lr_ratio is (0.0, 1.0): write its lowest",
    "split: []": "split is empty",
    "split: [1-x]": "split '1-x': write the layers of each block",
    "total_layers: [2, 8]": "search.total_layers: the blocks are alike: give blocks and layers",
    "{split: [1-1-1], total_layers: [2, 8]}": "a split has 3 blocks, and each needs a layer",
    "{split: [1-1], blocks: [2, 3]}": "search.blocks: layers are split over the blocks",
    "guidance: [-1, 2]": "search.guidance is (-1.0, 2.0): write its lowest and highest value, at "
    "least 0, the lowest first",
    "temperature: [0, 2]": "search.temperature is (0.0, 2.0): write its lowest and highest value, "
    "at least 0.01",
    "denoise: [1]": "search.denoise is (1.0,): write its lowest and highest value",
    "cases: [{when: {blocks: 2}, guidance: [0, 1]}]": "guidance",
    "cases: [{when: {blocks: 2}}]": "at least one range beside it",
    "cases: [{when: {channels: 8}, blocks: [2, 4]}]": "blocks cannot depend on channels",
    "cases: [{when: {blocks: [4, 2]}, layers: [1, 2]}]": "when.blocks is [4, 2]: write one value",
    "cases: [{when: {blocks: 2}, channels: [12, 16]}]": "search.cases.0.channels is (12, 16)",
}


@pytest.mark.parametrize("ranges", WRONG)
def test_a_wrong_range_is_one_clear_line(ranges, tmp_path):
    with pytest.raises(ConfigError) as error:
        written(tmp_path, **yaml.safe_load(ranges))
    assert WRONG[ranges] in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_sampled_within_the_ranges_of_the_study(tmp_path):
    study = written(tmp_path, guidance=[0.5, 0.8], temperature=[0.4, 0.6]).study
    space = SamplingSpace("a", "a", study.base, study.search)
    own, guided = space.starts
    assert space.sampler(own) == SamplerConfig()  # has to be beaten, without guidance
    assert (guided["guidance"], guided["temperature"]) == (0.2, 0.4)
    assert space.ranges == {
        "guidance": (0.0, 0.8),
        "temperature": (0.4, 0.6),
        "denoise": (0.75, 1.25),
    }
    settings = [space.sampler(params) for params in draws(space, 40, seed=1)]
    assert 0.6 < max(setting.guidance for setting in settings) <= 0.8
    options, outer = Options(trials=1), TrainingSpace(study, 1e9)
    plan = search.make_search_plan(options, outer, tmp_path / "nowhere")
    lines = search.in_words(options, outer, plan, 1.0)
    assert "  guidance 0 to 0.8 · temperature 0.4 to 0.6 · denoise 0.75 to 1.25" in lines[-2]


def test_uniform_noise_has_no_range():
    study = load("tiny")
    uniform = replace(study.base.noise, type="uniform")
    ranges = replace(study.search, noise_std=(0.1, 0.2))
    study = replace(study, base=replace(study.base, noise=uniform), search=ranges)
    with pytest.raises(ConfigError, match="uniform and has no level"):
        TrainingSpace(study, 1e9)
    with pytest.raises(ConfigError, match="none is taken away"):
        TrainingSpace(replace(study, search=SearchRanges(denoise=(0.5, 1.0))), 1e9)


def test_ranges_name_no_run(tmp_path):
    plain, ranged = resolve_study(load("tiny")), written(tmp_path, channels=[8, 16]).study
    assert [run_id(run.config) for run in grid(plain)] == [
        run_id(run.config) for run in grid(ranged)
    ]
    (tmp_path / "study.yaml").write_text(to_yaml(ranged))
    assert read_yaml(type(ranged), tmp_path / "study.yaml") == ranged
