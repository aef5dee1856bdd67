import hashlib
import re
from dataclasses import replace

import pytest
import yaml

from sweeps import hardware
from sweeps.design import study as studies
from sweeps.design.presets import FOLDER, IMPORTS, PRESETS, description, load
from sweeps.design.sampling import settings
from sweeps.design.study import Point, Size, Study, Variant, apply_variant, grid, resolve_study
from tarflow import cost
from tarflow.config import NoiseConfig, RunConfig
from tarflow.config_files import from_dict, to_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.identity import with_hash

# Changed on purpose only: other ids mean that finished runs of the preset are trained again.
FROZEN = {
    "digits": "e5886d7a29",
    "tiny": "4a53357b58",
    "fashion": "aa97f0fbf6",
    "cifar10": "dbcbcf19b3",
    "imagenet64": "bf77fa4688",
    "ablation-noise": "d588c79991",
    "ablation-noise-leaves": "c06f0b564b",
    "ablation-noise-cifar10": "4a1805405d",
    "ablation-denoise": "f2e0d29210",
    "ablation-guidance": "77c565595c",
    "ablation-shape": "0f80e42d15",
    "resolution-8": "d7375372f6",
    "resolution-16": "5fe4d5b457",
    "resolution-32": "288e23c664",
    "resolution-64": "2d9cd3b17c",
    "starflow-split": "4c879d0c32",
    "paper-imagenet64-likelihood": "3d05e463a1",
    "paper-imagenet64": "341a070c84",
    "paper-imagenet64-labels": "95a0f3b0a1",
    "paper-imagenet128": "955d5225d6",
    "paper-afhq256": "b797175425",
    "paper-cifar10": "d00cd988f3",
    "paper-starflow-256": "fb3989830f",
}


def named(study):
    """Give the runs names without having the data."""
    return replace(study, base=with_hash(study.base, "0"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_their_run_ids(name):
    ids = " ".join(run.run_id for run in grid(named(load(name))))
    assert hashlib.sha256(ids.encode()).hexdigest()[:10] == FROZEN[name]


def test_presets_are_the_files_of_their_folder():
    assert set(PRESETS) == set(FROZEN) == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_named_as_its_file_and_opens_with_a_sentence(name):
    assert load(name).name == name
    assert load(str(FOLDER / f"{name}.yaml")) == load(name)
    assert re.match(r"[A-Z0-9].{20,}\.", description(name))


@pytest.mark.parametrize("name", PRESETS)
def test_every_run_spends_its_budget_and_no_two_are_the_same(name):
    runs = grid(named(load(name)))
    for run in runs:
        per_batch = cost.training_flops(run.config.model) * run.config.batch
        assert abs(cost.run_flops(run.config) - run.budget) <= per_batch / 2
    assert len({run.run_id for run in runs}) == len({run.label for run in runs}) == len(runs)


def test_digits_is_the_isoflop_grid_that_is_promised():
    study = load("digits")
    runs = grid(named(study))
    held_out = max(runs, key=lambda run: run.budget)
    inside = [run for run in runs if run is not held_out]
    budgets = {run.budget for run in inside}
    assert len(budgets) >= 3
    points = {(run.config.model.channels, run.budget) for run in inside}
    everywhere = [
        size.channels
        for size in study.sizes
        if all((size.channels, budget) in points for budget in budgets)
    ]
    assert len(everywhere) >= 5
    assert max(budgets) >= 10 * min(budgets)
    assert held_out.budget >= 30 * min(budgets)
    seeds = [run.config.seed for run in runs if run.label.startswith(study.replicated.size)]
    assert {0, 1, 2} <= set(seeds)


def test_seeds_apply_to_every_point():
    study = replace(load("tiny"), seeds=2, held_out=None)
    assert len(grid(named(study))) == 2 * len(study.sizes) * len(study.budgets)


def test_variants_change_what_they_name_and_nothing_else():
    study = named(load("ablation-noise"))
    by_noise = {}
    for run in grid(study):
        by_noise.setdefault((run.config.noise.type, run.config.noise.std), []).append(run)
    assert len(by_noise) == len(study.variants) == 7
    for runs in by_noise.values():
        assert [run.config.seed for run in runs] == [0, 1, 2]
        for run in runs:
            same = replace(run.config, noise=study.base.noise, seed=0)
            assert same == replace(runs[0].config, noise=study.base.noise)
            assert run.role == "ablation"


def test_splits_of_the_layers_cost_the_same():
    runs = grid(named(load("starflow-split")))
    models = {run.config.model for run in runs}
    assert {model.layer_split for model in models} == {"", "2-2-2-10", "1-1-1-13"}
    assert {(model.total_layers, model.start_token, model.classes) for model in models} == {
        (16, True, 10)
    }
    assert len({cost.run_flops(run.config) for run in runs}) == 1
    assert len({run.label for run in runs}) == len(runs) == 9


def test_shapes_of_the_ablation_cost_the_same_and_one_has_one_block():
    runs = grid(named(load("ablation-shape")))
    shapes = {(run.config.model.blocks, run.config.model.layers) for run in runs}
    assert {blocks * layers for blocks, layers in shapes} == {8}
    assert min(shapes) == (1, 8)
    costs = [cost.run_flops(run.config) for run in runs]
    assert max(costs) < 1.002 * min(costs)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("paper")])
def test_runs_of_the_paper_follow_its_recipe(name):
    study = named(load(name))
    (run,) = grid(study)
    optim, epochs = run.config.optim, run.config.images / study.train_images
    assert epochs == pytest.approx(round(epochs), abs=0.01)  # whole ones, as published
    assert (optim.lr, optim.beta1, optim.beta2, optim.weight_decay) == (1e-4, 0.9, 0.95, 1e-4)
    assert optim.schedule == "cosine"
    assert optim.warmup_images == study.train_images
    assert optim.clip < 10  # not published, but needed by those who trained it again
    assert optim.ema > 0
    uniform = run.config.noise.type == "uniform"
    assert run.config.precision == ("float32" if uniform else "bfloat16")
    memory = cost.memory(run.config).total
    assert memory < cost.ACCELERATORS[study.accelerator].memory
    assert "FID" in description(name) or "bits per dimension" in description(name)
    assert study.base.data.name in IMPORTS
    assert f" {study.base.data.name}" in IMPORTS[study.base.data.name]


def test_settings_that_do_the_same_are_sampled_once():
    study = named(load("ablation-guidance"))
    labels, none = (apply_variant(study.base, variant) for variant in study.variants)
    assert len(settings(study, labels)) == len(study.settings)
    assert {setting.temperature for setting in settings(study, none)} == {0.5, 1.5}
    study = named(load("ablation-noise"))
    uniform = apply_variant(study.base, study.variants[-1])
    assert [setting.denoise for setting in settings(study, study.base)] == [0.0]
    assert settings(study, uniform) == ()  # there is no Gaussian noise to take away
    assert settings(load("digits"), study.base) == ()


def test_learning_rate_is_a_power_of_the_width_and_the_base_is_on_it():
    study = replace(load("tiny"), lr_power=-1.0)
    base = study.base.model.channels, study.base.optim.lr
    assert studies.learning_rate(study, base[0]) == base[1]
    assert studies.learning_rate(study, 2 * base[0]) == base[1] / 2


def test_points_outside_the_image_limits_are_left_out_and_counted():
    study = named(load("tiny"))
    images = sorted(run.config.images for run in grid(study))
    limited = replace(study, min_images=images[0] + 1, max_images=images[-1] - 1)
    assert sorted(run.config.images for run in grid(limited)) == images[1:-1]
    assert studies.left_out(limited) == 2


@pytest.mark.parametrize("name", ["digits", "ablation-noise", "ablation-guidance"])
def test_a_study_survives_its_file_and_can_be_loaded_from_its_folder(tmp_path, name):
    study = named(load(name))
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    assert load(str(tmp_path)) == load(str(tmp_path / "study.yaml")) == study


def test_resolving_fills_in_what_the_data_know():
    study = resolve_study(replace(load("tiny"), train_images=1, validation_images=1))
    assert study.base.data.hash
    assert (study.train_images, study.validation_images) == (4000, 500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 32, "patch": 8}, "model.image_size is 32.*digits has 28; write 28"),
        ({"image_channels": 3}, "model.image_channels is 3.*has 1"),
        ({"classes": 7}, "model.classes is 7.*has 10"),
    ],
)
def test_images_that_do_not_fit_the_model_are_refused(change, message):
    study = load("tiny")
    base = replace(study.base, model=replace(study.base.model, **change))
    with pytest.raises(UserError, match=message):
        resolve_study(replace(study, base=base))


def test_images_that_do_not_fit_a_variant_are_refused():
    odd = Variant(name="odd", change={"model": {"classes": 7}})
    with pytest.raises(UserError, match=r"model.classes is 7.*has 10"):
        resolve_study(replace(load("tiny"), variants=(odd,)))


def test_automatic_precision_is_settled_before_runs_are_named():
    base = replace(load("tiny").base, precision="auto")
    base = replace(base, execution=replace(base.execution, device="cpu"))
    assert resolve_study(replace(load("tiny"), base=base)).base.precision == "float32"


@pytest.mark.parametrize("base_noise", ["gaussian", "uniform"])
def test_on_a_gpu_only_uniform_noise_stays_in_float32(monkeypatch, base_noise):
    monkeypatch.setattr(hardware, "has_gpu", lambda: True)
    base = replace(load("tiny").base, precision="auto", noise=NoiseConfig(type=base_noise))
    kinds = {"gaussian": "bfloat16", "uniform": "float32"}
    variants = tuple(Variant(name=kind, change={"noise": {"type": kind}}) for kind in kinds)
    study = resolve_study(replace(load("tiny"), base=base, variants=variants))
    chosen = {run.config.noise.type: run.config.precision for run in grid(study)}
    assert chosen == kinds
    assert study.base.precision == kinds[base_noise]


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_rounds_more_than_its_noise(name):
    assert not any(run.config.precision_warning for run in grid(named(load(name))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", "study 'digts' is not known; did you mean 'digits'?"),
        ("FOLDER/stdy.yaml", "did you mean 'FOLDER/study.yaml'?"),
    ],
)
def test_a_mistyped_study_names_the_nearest(tmp_path, name, message):
    (tmp_path / "study.yaml").write_text(to_yaml(load("tiny")))
    with pytest.raises(UserError, match=re.escape(message.replace("FOLDER", str(tmp_path)))):
        load(name.replace("FOLDER", str(tmp_path)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "channels: 16\n  blocks",
            "chanels: 16\n  blocks",
            "'sizes.1.chanels'; did you mean 'sizes.1.c",
        ),
        ("lr_power", "lr_powr", "unknown key 'lr_powr'; did you mean 'lr_power'?"),
        ("size: c16-b2-l1", "size: c17-b2-l1", "'c17-b2-l1' is not known; did you mean 'c16-b2"),
        ("- 1000000000.0", "- much", "budgets.0 is 'much': it must be a number"),
        ("- 1000000000.0", "- .nan", "budgets are training FLOPs: they must be positive and fin"),
        ("- 1000000000.0", "- .inf", "budgets are training FLOPs: they must be positive and fin"),
        ("- 1000000000.0", "- 1e400", "budgets are training FLOPs: they must be positive and fin"),
        ("- 1000000000.0", "- yes", "budgets.0 is true or false"),
        ("budget: 9000000000.0", "budget: .nan", "budget is nan: it must be a finite number"),
        (
            "channels: 16\n  blocks",
            "channels: 0\n  blocks",
            "channels is 0: it must be at least 1",
        ),
        ("lr_power: ", "lr_power: .nan # ", "lr_power is nan: it must be a finite number"),
        ("replicates: 2", "replicates: 0", "replicates is 0: it must be at least 1"),
        ("seeds: 1", "budgets: [4e12]", "repeats the key 'budgets': keep one"),
        (
            "variants: []",
            "variants: [{name: fast, change: {batch: yes}}]",
            "variant fast: batch is true or false",
        ),
        ("seeds: 1", "seeds: 0", "seeds is 0: it must be at least 1"),
        (
            "variants: []",
            "variants: [{name: wide, change: {nose: {std: 1}}}]",
            "variant wide: 'nose' is not known; did you mean 'noise'?",
        ),
        (
            "variants: []",
            "variants: [{name: wide, change: {noise: {sdt: 1}}}]",
            "variant wide: unknown key 'noise.sdt'; did you mean 'noise.std'?",
        ),
        (
            "variants: []",
            "variants: [{name: a}, {name: a}]",
            "every variant needs a different name",
        ),
    ],
)
def test_a_mistake_in_a_study_file_is_one_clear_line(tmp_path, old, new, message):
    text = to_yaml(load("tiny"))
    assert old in text
    path = tmp_path / "study.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


def test_a_size_that_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="head_dim 64 does not divide"):
        Study(
            name="x",
            base=RunConfig(),
            sizes=(Size(channels=80, blocks=1, layers=1),),
            budgets=(1,),
        )


def test_rates_are_not_scaled_twice():
    study = load("tiny")
    optim = replace(study.base.optim, base_channels=16)
    with pytest.raises(ConfigError, match=r"lr_power and optim.base_channels both scale rates"):
        replace(study, base=replace(study.base, optim=optim))


def test_a_point_may_only_name_a_size_of_the_study():
    with pytest.raises(ConfigError, match=r"held_out.size 'c9-b2-l1' is not known"):
        replace(load("tiny"), held_out=Point(size="c9-b2-l1", budget=1e9))


def test_a_study_file_may_hold_only_what_differs_from_its_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "preset: tiny\nseeds: 2\nbase: {noise: {std: 0.5}}\nheld_out: {budget: 2e10}\n"
    )
    tiny = load("tiny")
    base = replace(tiny.base, noise=replace(tiny.base.noise, std=0.5))
    held_out = replace(tiny.held_out, budget=2e10)
    changed = replace(tiny, name="mine", seeds=2, base=base, held_out=held_out)
    assert load(str(path)) == changed
    path.write_text("preset: tinny\n")
    with pytest.raises(ConfigError, match="preset 'tinny' is not known; did you mean 'tiny'"):
        load(str(path))


@pytest.mark.parametrize("note", ["", "a: b # c", "one\n\ntwo 'three'", "[red]", "ä" * 300])
@pytest.mark.parametrize("name", PRESETS)
def test_an_explained_study_is_read_back(name, note):
    study = replace(load(name), note=note)
    assert from_dict(Study, yaml.safe_load(to_yaml(study))) == study
