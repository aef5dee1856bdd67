"""A field is changed from the shell by its path, and a mistake names the field that was meant."""

from dataclasses import replace

import pytest

from sweeps.design.presets import load
from sweeps.design.study import (
    BY_THE_GRID,
    Addition,
    Study,
    Variant,
    apply_variant,
    learning_rate,
    override_study,
)
from tarflow.__main__ import main
from tarflow.config import RunConfig
from tarflow.config_files import from_dict, to_dict
from tarflow.errors import UserError
from tarflow.fields import SYNONYMS, descriptions, leaves
from tarflow.model_config import STARFLOW
from tarflow.override import override

PLAIN = RunConfig()


def test_changes_reach_their_fields_and_the_last_one_counts():
    changes = ["model.channels=128", "optim.lr=1e-2", "optim.lr=2e-2", "noise={type: uniform}"]
    plain = to_dict(PLAIN)
    plain["model"]["channels"] = 128
    plain["optim"]["lr"] = 0.02
    plain["noise"]["type"] = "uniform"
    assert override(PLAIN, [*changes, "data.name=2024"]) == from_dict(
        RunConfig, plain | {"data": plain["data"] | {"name": "2024"}}
    )
    assert override(PLAIN, []) is PLAIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate=1", "--set: unknown key 'learning_rate'; did you mean 'optim.lr'?"),
        ("model.width=1", "--set: unknown key 'model.width'; did you mean 'model.channels'?"),
        ("depth=1", "--set: unknown key 'depth'; did you mean 'model.layers'?"),
        ("epochs=1", "--set: unknown key 'epochs'; did you mean 'images'?"),
        ("batch-size=1", "--set: unknown key 'batch-size'; did you mean 'batch'?"),
        ("sigma=1", "--set: unknown key 'sigma'; did you mean 'noise.std'?"),
        ("optim.wd=1", "--set: unknown key 'optim.wd'; did you mean 'optim.weight_decay'?"),
        ("cfg=1", "--set: unknown key 'cfg'; did you mean 'sampler.guidance'?"),
        ("optim.batch=1", "--set: unknown key 'optim.batch'; did you mean 'batch'?"),
        ("model.chanels=1", "--set: unknown key 'model.chanels'; did you mean 'model.channels'?"),
        ("noise.xyz=1", "--set: unknown key 'noise.xyz'; noise has: type, std"),
        ("batch", "--set batch: write NAME=VALUE, such as --set optim.lr=0.02"),
        ("optim.lr=fast", "command line: optim.lr is 'fast': it must be a number"),
        ("seed=1.5", "command line: seed is 1.5: it must be an integer"),
        ("data.flip=maybe", "command line: data.flip is 'maybe': it must be true or false"),
        ("noise=3", "command line: noise is 3: it must be a mapping of its fields"),
        (
            "precision=half",
            "command line: precision is 'half': it must be auto or float32 or bfloat16 or float64",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(change, message):
    with pytest.raises(UserError) as caught:
        override(PLAIN, [change])
    assert str(caught.value) == message


def test_every_synonym_leads_to_a_field_and_is_none():
    fields = {*leaves(RunConfig), *leaves(Study)}
    names = [name for synonyms in SYNONYMS.values() for name in synonyms.split()]
    assert {field for several in SYNONYMS for field in several.split()} <= fields
    assert len(names) == len(set(names))
    assert not {*names} & {path.rpartition(".")[2] for path in leaves(RunConfig)}


@pytest.mark.parametrize("kind", [RunConfig, Study])
def test_every_field_says_what_it_means(kind):
    assert [path for path, (_, text) in leaves(kind).items() if not text] == []
    assert descriptions(RunConfig)["batch"] == "images per optimizer step over all workers"


def test_a_study_is_changed_by_its_own_fields_and_those_of_its_base_run():
    study = load("tiny")
    assert not {*to_dict(study)} & {*to_dict(PLAIN)}  # so a name says which of them is meant
    changed = override_study(study, ["seeds=2", "budgets=[1e9, 5e9]", "optim.lr=0.02"])
    assert (changed.seeds, changed.budgets, changed.base.optim.lr) == (2, (1e9, 5e9), 0.02)
    assert override_study(study, ["base.optim.lr=0.02"]).base == changed.base
    with pytest.raises(UserError, match=r"'learning_rate'; did you mean 'optim.lr'\?"):
        override_study(study, ["learning_rate=1"])
    with pytest.raises(UserError, match=r"'epochs'; did you mean 'budgets'\?"):
        override_study(study, ["epochs=1"])
    for name, instead in BY_THE_GRID.items():
        with pytest.raises(UserError, match="a study derives it from its grid") as caught:
            override_study(study, [f"{name}=64"])
        assert instead in str(caught.value)
        override_study(study, [instead.replace("'", "")])


def test_a_size_is_set_in_every_size_of_a_study_and_points_follow():
    study = load("tiny")
    deep = override_study(study, ["model.blocks=3", "model.layers=[1, 1, 4]", "optim.lr=0.02"])
    assert [size.label for size in deep.sizes] == [f"c{c}-b3-l1-1-4" for c in (8, 16, 32)]
    assert deep.held_out == replace(study.held_out, size="c16-b3-l1-1-4")
    assert deep.base == replace(study.base, optim=replace(study.base.optim, lr=0.02))
    wide = override_study(deep, ["model.channels=64", "held_out.size=c64-b3-l1-1-4"])
    assert [size.label for size in wide.sizes] == [wide.held_out.size] == ["c64-b3-l1-1-4"]
    assert wide.base.model.channels == 16
    assert learning_rate(wide, 64) == 0.02 / 2  # still scaled from the width it was tuned at
    heads = ["model.head_dim=64", "base.model.channels=64", "model.channels=128"]
    assert override_study(study, heads).sizes[0].channels == 128
    added = replace(study, added=(Addition(size=study.sizes[0], budget=1e9),))
    assert override_study(added, ["model.channels=64"]).added[0].size.channels == 64
    with pytest.raises(UserError, match=r"set model.channels by itself, in every size"):
        override_study(study, ["model={channels: 64}"])


def test_a_family_sets_its_options_and_those_set_beside_it_override_it():
    changes = ["model.soft_clip=2", "model.family=starflow"]
    starflow = override(PLAIN, changes).model
    assert starflow == replace(PLAIN.model, **{**STARFLOW, "soft_clip": 2.0})
    assert override(replace(PLAIN, model=starflow), ["model={family: tarflow}"]) == PLAIN
    assert override_study(load("tiny"), ["model.family=starflow"]).base.model.positions == "rope"
    change = Variant(name="star", change={"model": {"family": "starflow"}})
    assert apply_variant(PLAIN, change).model == replace(PLAIN.model, **STARFLOW)
    with pytest.raises(UserError, match=r"model.family is 'glow': write tarflow or starflow"):
        override(PLAIN, ["model.family=glow"])
    written = to_dict(PLAIN)
    written["model"]["family"] = "starflow"
    with pytest.raises(UserError, match="every option of it is set beside it: remove family, or"):
        from_dict(RunConfig, written)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--learning-rate", "--optim.lr"),
        ("--lr=0.1", "--optim.lr"),
        ("--optim.learning_rate", "--optim.lr"),
        ("--epochs", "--images"),
        ("--optim.weight-deca", "--optim.weight-decay"),
    ],
)
def test_a_mistaken_flag_of_a_field_names_the_one_that_is_meant(capsys, flag, meant):
    assert main(["train", "best.yaml", flag, "0.1"]) == 2
    name = flag.partition("=")[0]
    error = f"error: unknown flag {name}; did you mean {meant}? (python -m tarflow train --help"
    assert capsys.readouterr().err == f"{error} lists all)\n"


def test_the_help_of_train_describes_every_field(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for path, (_, text) in leaves(RunConfig).items():
        assert text in shown
        assert "." not in path or f"--{path.replace('_', '-')} " in shown
