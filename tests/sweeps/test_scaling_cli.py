import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from image_files import noise_images, png, write

from sweeps import driver, final, scaling, search
from sweeps.design.declared import declare
from sweeps.design.presets import PRESETS, description, load
from sweeps.design.study import Variant, grid, resolve_study
from tarflow.config import EvaluationConfig, NoiseConfig, RunConfig
from tarflow.config_files import read_yaml, to_yaml
from tarflow.errors import ConfigError, UserError
from tarflow.run import resolve_config


def test_dry_run_lists_every_run_and_starts_nothing(call, tmp_path):
    out = tmp_path / "study"
    code, printed = call(scaling, "tiny", "--dry-run", "--out", out)
    assert code == 0
    for run in grid(resolve_study(load("tiny"))):
        assert f"\n{run.label.rsplit('-', 2)[0]} " in printed.out  # the size
    plan = printed.out.partition(" runs (")[0].splitlines()[:-1]
    assert max(map(len, plan)) <= 80  # the width that `ray submit` has
    assert "matrix-product probe" in printed.out
    assert not out.exists()


def test_dry_run_is_fast_and_needs_neither_torch_nor_ray(tmp_path):
    program = (
        "import sys, runpy; sys.argv = ['scaling.py', 'digits', '--dry-run']\n"
        f"try: runpy.run_path({scaling.__file__!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=60)
    assert time.perf_counter() - start < 15  # 3 on an idle machine: benchmarks/startup.py
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", [scaling, search, final])
def test_help_needs_nothing_heavy_and_lists_the_presets(script):
    program = (
        f"import sys, runpy; sys.argv = [{script.__file__!r}, '--help']\n"
        f"try: runpy.run_path({script.__file__!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'pandas', 'plotly', 'scipy', 'optuna'}\n"
        "assert not heavy & set(sys.modules)"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    listed = [f"- {name}: {description(name)}" in printed.stdout for name in PRESETS]
    assert all(listed) if script is not final else not any(listed)


def test_the_list_prices_every_preset_and_says_how_to_make_missing_data(
    call, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    code, printed = call(scaling, "--list")
    assert code == 0
    lines = printed.out.splitlines()
    for name in PRESETS:
        price = lines[lines.index(f"{name}: {description(name)}") + 1]
        assert re.fullmatch(r"    \d+ runs?, \S+ FLOPs, .* on \d+ \w+.*; data: .*", price)
    assert "data/cifar10: make it with: python -m tarflow data cifar-10-batches-py" in printed.out
    assert call(scaling, "--list", "--accelerator", "H10")[0] == 2
    assert not any(tmp_path.iterdir())


def test_a_plan_needs_no_data_but_a_run_does(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, printed = call(scaling, "cifar10", "--dry-run", "--accelerator", "H100")
    assert code == 0
    assert "about $" in printed.out
    assert "ids are provisional" in printed.out
    code, printed = call(scaling, "cifar10", "--yes")
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    assert "python -m tarflow data cifar-10-batches-py data/cifar10 --kind cifar" in printed.err
    code, printed = call(scaling, "fashion", "--yes")
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    assert "apt-get install dataset-fashion-mnist && python -m tarflow data /usr/" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digts"], "did you mean 'digits'?"),
        (["tiny", "--dry-runn"], "--dry-run"),
        (["tiny", "--seeds", "0"], "seeds is 0"),
        (["tiny", "--seeds", "many"], "many"),
        (["tiny", "--devices", "0"], "devices is 0"),
        (["tiny", "--max-hours", "-1"], "max-hours is -1"),
        (["tiny", "--max-cost", "5"], "--max-cost needs the price of a device-hour"),
        (["tiny", "--until", "half past six"], "--until half past six is no time: write 18:30"),
        (["tiny", "--until", "2020-01-01T06:00"], "--until 2020-01-01T06:00 has passed"),
        (["tiny", "--max-hours", "nan"], "--max-hours is nan: it must be a finite number"),
        (["tiny", "--price", "nan"], "--price is nan: it must be a finite number"),
        (["tiny", "--price", "-3"], "--price is -3: it must be a finite number, 0 or more"),
        (["tiny", "--price", "inf"], "--price is inf: it must be a finite number"),
        (["tiny", "--out", "s4://bucket/study"], "Unrecognized filesystem"),
        (["tiny", "--accelerator", "H10"], "did you mean 'H100'?"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(call, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, printed = call(scaling, *arguments)
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["data/cifar", "imagenet"])
def test_a_mistyped_data_path_in_a_study_is_told_in_one_line(call, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    study = load("tiny")
    base = replace(study.base, data=replace(study.base.data, name=name))
    (tmp_path / "mine.yaml").write_text(to_yaml(replace(study, base=base)))
    code, printed = call(scaling, "mine.yaml", "--yes")
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    assert name in printed.err
    assert not (tmp_path / "studies").exists()
    code, printed = call(scaling, "mine.yaml", "--dry-run")
    assert code == 0
    assert name in printed.out
    assert "ids are provisional" in printed.out


def test_an_out_that_is_a_file_is_refused(call, tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert call(scaling, "tiny", "--out", path)[0] == 2


def test_flags_change_the_study():
    options = scaling.Options(study="tiny", seeds=3, features="inception")
    study = scaling.chosen_study(options)
    assert study.seeds == 3
    assert study.base.evaluation.features == "inception"


def test_set_changes_the_study_and_never_one_that_has_begun(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, printed = call(
        scaling, "tiny", "--dry-run", "--set", "seeds=2", "noise.std=0.5", "--set", "batch=16"
    )
    assert code == 0
    assert "13 runs (0 done)" in printed.out
    declare(resolve_study(load("tiny")), tmp_path / "studies" / "tiny")
    code, printed = call(scaling, "tiny", "--yes", "--set", "noise.std=0.5")
    assert code == 2
    assert "base.noise.std is 0.25 there, 0.5 here" in printed.err


def test_study_yaml_is_kept_and_may_grow_but_not_change(tmp_path):
    study = resolve_study(load("tiny"))
    declare(study, tmp_path)
    assert read_yaml(type(study), tmp_path / "study.yaml") == study
    more = replace(study, seeds=2, budgets=(*study.budgets, 5e9))
    declare(more, tmp_path)
    assert read_yaml(type(study), tmp_path / "study.yaml") == more
    noisier = replace(study, base=replace(study.base, noise=NoiseConfig(std=0.3)))
    with pytest.raises(UserError, match=r"noise.std is 0.25 there, 0.3 here"):
        declare(noisier, tmp_path)
    assert read_yaml(type(study), tmp_path / "study.yaml") == more


def test_a_note_changes_no_run_and_stays_until_it_is_replaced(tmp_path):
    def with_note(note):
        command = scaling.Scaling(scaling.Options(study="tiny", out=tmp_path, note=note))
        command.begin()
        ids = [row.run.run_id for row in command.plan.rows]
        return read_yaml(type(command.study), tmp_path / "study.yaml").note, ids

    text, ids = with_note("First try,\n with 4 cores")
    assert text == "First try, with 4 cores"
    assert with_note(None) == (text, ids)
    assert with_note("Second try") == ("Second try", ids)
    assert with_note("") == ("", ids)


def test_a_study_is_continued_in_the_folder_that_holds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere"
    declare(resolve_study(load("tiny")), folder)
    (folder / "runs").mkdir()
    shutil.copy(folder / "study.yaml", tmp_path)
    ours = {"elsewhere": folder, "elsewhere/study.yaml": folder, "study.yaml": "studies/tiny"}
    for name, out in ours.items():
        options = {"study": name, "dry_run": True}
        assert scaling.Scaling(scaling.Options(**options)).out == tmp_path / out
        assert search.Search(search.Options(**options)).out == tmp_path / out


@pytest.mark.parametrize("flags", [["--dry-run"], ["--yes"]])
def test_another_study_of_the_same_name_is_refused_before_its_plan(
    call, monkeypatch, tmp_path, flags
):
    monkeypatch.chdir(tmp_path)
    study = resolve_study(load("tiny"))
    folder = tmp_path / "studies" / "tiny"
    declare(study, folder)
    kept = (folder / "study.yaml").read_text()
    copied = replace(study, base=replace(study.base, batch=16))
    (tmp_path / "copy.yaml").write_text(to_yaml(copied))
    code, printed = call(scaling, "copy.yaml", *flags)
    assert code == 2
    assert printed.out == ""
    batch = "base.batch is 32 there, 16 here"
    assert printed.err == (
        f"error: {folder} holds a study with other settings ({batch}); choose another --out, or "
        "give the study another name\n"
    )
    assert (folder / "study.yaml").read_text() == kept
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


def test_a_study_whose_data_are_missing_is_planned_in_its_folder(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = load("cifar10")
    base = replace(study.base, data=replace(study.base.data, hash="0" * 16), precision="bfloat16")
    declare(replace(study, base=base), tmp_path / "studies" / "cifar10")
    code, printed = call(scaling, "cifar10", "--dry-run")
    assert code == 0
    assert "ids are provisional" in printed.out


@pytest.mark.parametrize("flags", [["--dry-run"], ["--yes"]])
@pytest.mark.parametrize(("held_out", "samples", "code"), [(3, 64, 2), (4, 64, 0), (3, 0, 0)])
def test_too_few_images_to_compare_samples_with_are_refused_in_the_plan(
    call, monkeypatch, tmp_path, flags, held_out, samples, code
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "execute", lambda *_: 0)
    splits = ["train"] * 20 + ["val"] * held_out + ["test"] * 5
    blob = png(noise_images(1, 28, 1)[0])
    images = write(tmp_path / "few.parquet", [blob] * len(splits), split=splits)
    base = load("tiny").base
    base = replace(base, data=images, evaluation=replace(base.evaluation, samples=samples))
    (tmp_path / "few.yaml").write_text(to_yaml(replace(load("tiny"), name="few", base=base)))
    ended, printed = call(scaling, "few.yaml", *flags)
    assert ended == code
    if code:
        assert printed.out == ""
        assert printed.err == (
            "error: evaluation.split is validation, which has 3 images: take data with at least "
            "4, or 0 for evaluation.samples\n"
        )


def test_too_few_images_are_refused_before_a_single_run_trains(tmp_path):
    splits = ["train"] * 20 + ["val"] * 3 + ["test"] * 5
    blob = png(noise_images(1, 28, 1)[0])
    images = write(tmp_path / "few.parquet", [blob] * len(splits), split=splits)
    with pytest.raises(ConfigError, match=r"evaluation\.split is validation, which has 3 images"):
        resolve_config(RunConfig(data=images))
    test = EvaluationConfig(split="test")
    assert resolve_config(RunConfig(data=images, evaluation=test)).evaluation == test


@pytest.mark.parametrize(
    "name", ["lr[half]", "lr[/0.1]", "lr[x2]", "[red]", ":smile:", "a\\\\[b]"]
)
def test_names_are_printed_as_they_are(call, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    variants = (Variant(name=name, change={"optim": {"lr": 0.002}}), Variant(name="plain"))
    study = replace(load("tiny"), name="mine", variants=variants)
    (tmp_path / "mine.yaml").write_text(to_yaml(study))
    monkeypatch.setattr(
        driver, "execute", lambda command, console, _: console.print(f"report: {command.out}") or 0
    )
    code, printed = call(scaling, "mine.yaml", "--out", f"exp {name}", "--yes")
    assert code == 0
    assert f"{name}-c16-b2-l1 " in printed.out
    folder = tmp_path / f"exp {name}"
    assert f"report: {folder}" in printed.out.replace("\n", "")


def test_a_printed_command_can_be_pasted_into_a_shell(tmp_path):
    out = tmp_path / "exp $HOME's [v1]"
    declare(resolve_study(load("tiny")), out)
    command = (out / "study.yaml").read_text().splitlines()[0].split(": ", 1)[1]
    assert shlex.split(command) == ["python", "sweeps/scaling.py", str(out / "study.yaml")]
    with pytest.raises(UserError) as caught:
        final.existing_folder(str(tmp_path / "no [such] study"))
    command = str(caught.value).split("with ", 1)[1]
    assert shlex.split(command) == ["python", "sweeps/scaling.py", "no [such] study"]


def test_only_an_expensive_study_asks_and_only_a_person(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(driver, "confirmed", lambda: asked.append(1) and False)
    monkeypatch.setattr(driver, "execute", lambda *_: 0)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    call(scaling, "digits")
    assert not asked
    call(scaling, "digits", "--price", "1000")
    assert asked == [1]
    call(scaling, "digits", "--price", "1000", "--yes")
    assert asked == [1]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    call(scaling, "digits", "--price", "1000")
    assert asked == [1]


def test_the_script_works_alone_in_an_empty_folder(tmp_path):
    script = Path(shutil.copy(scaling.__file__, tmp_path))
    (tmp_path / "mine.yaml").write_text(to_yaml(replace(load("tiny"), name="mine", seeds=2)))
    command = [sys.executable, script.name, "mine.yaml", "--dry-run"]
    printed = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "13 runs (0 done)" in printed


@pytest.mark.parametrize("home", ["/", "/nonexistent"])
def test_ray_gets_a_home_that_it_can_write_to(call, monkeypatch, tmp_path, home):
    from sweeps.running import cluster

    def join(*_):
        raise UserError(f"home {os.environ['HOME']}")

    monkeypatch.setattr(cluster, "join", join)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", home)
    code, printed = call(scaling, "tiny", "--yes", "--out", tmp_path / "out")
    assert code == 2
    assert printed.err == f"error: home {tmp_path}/tarflow-{os.getuid()}\n"


def test_a_path_in_the_home_of_nobody_is_one_line(call):
    code, printed = call(scaling, "tiny", "--dry-run", "--out", "~no-such-user/study")
    assert code == 2
    assert printed.err.startswith("error: ~no-such-user/study has no home folder")
    assert len(printed.err.splitlines()) == 1
