"""A command may leave out runs of its study for now, says so, and a later one completes it."""

from dataclasses import replace

import pytest

from analysis.report.spending import missing_runs
from sweeps import scaling, search
from sweeps.design.declared import declare
from sweeps.design.presets import load
from sweeps.design.study import grid, resolve_study
from sweeps.pricing.plan import LEFT_OUT, make_plan
from sweeps.pricing.selection import in_words, left_out, pinned
from tarflow.errors import UserError

TINY = resolve_study(load("tiny"))
RUNS = grid(TINY)


def kept(only=(), skip=()):
    over = left_out(RUNS, only, skip)
    return {run.label for run in RUNS if run.run_id not in over}


@pytest.mark.parametrize(
    ("conditions", "labels"),
    [
        (["channels=32"], {"c32-b2-l1-1e09-s0", "c32-b2-l1-3e09-s0"}),
        (["channels=8,32,budget<2e9"], {"c8-b2-l1-1e09-s0", "c32-b2-l1-1e09-s0"}),
        (["model.channels>=32", "budget>=3e9"], {"c32-b2-l1-3e09-s0"}),
        (["budget=9e9"], {"c16-b2-l1-9e09-s0"}),
        (["channels!=16", "params<10000", "flops<2e9"], {"c8-b2-l1-1e09-s0"}),
        (["run=c16-b2-l1-9e09-s0"], {"c16-b2-l1-9e09-s0"}),
        (["data.name=digits,channels>16,images<300"], {"c32-b2-l1-1e09-s0"}),
    ],
)
def test_conditions_choose_runs_by_their_fields(conditions, labels):
    assert kept(only=conditions) == labels


def test_runs_are_skipped_by_name_as_in_the_plan_or_by_id():
    everything = {run.label for run in RUNS}
    assert everything - kept(skip=["c32"]) == {"c32-b2-l1-1e09-s0", "c32-b2-l1-3e09-s0"}
    assert everything - kept(skip=["c16-b2-l1-9e9"]) == {"c16-b2-l1-9e09-s0"}
    first = RUNS[0]
    assert everything - kept(skip=[first.run_id[:6]]) == {first.label}


@pytest.mark.parametrize(
    ("only", "skip", "message"),
    [
        (["width=64"], [], "unknown key 'width'; did you mean 'channels'?"),
        (["channels"], [], "write NAME=VALUE, such as --only 'channels>=32'"),
        (["channels<big"], [], "--only channels<big: big is not a number"),
        (["channels=64"], [], "leave no run of this study"),
        ([], ["c17-b2-l1"], "run 'c17-b2-l1' is not known; did you mean 'c16-b2-l1'?"),
    ],
)
def test_a_mistake_is_one_line(only, skip, message):
    with pytest.raises(UserError) as caught:
        left_out(RUNS, only, skip)
    assert message in str(caught.value)


def test_what_is_left_out_costs_nothing_and_nothing_waits_for_it(tmp_path):
    over = left_out(RUNS, ["channels=16"], ["c16-b2-l1-9e9"])
    plan = make_plan(TINY, tmp_path, left_out=over)
    whole = make_plan(TINY, tmp_path)
    assert {row.run.label for row in plan.left} == {"c16-b2-l1-1e09-s0", "c16-b2-l1-3e09-s0"}
    assert sum(row.state == LEFT_OUT for row in plan.rows) == 5
    assert plan.device_hours < whole.device_hours / 2
    longest = next(row for row in plan.left if row.run.label == "c16-b2-l1-3e09-s0")
    shorter = next(row for row in plan.left if row.run.label == "c16-b2-l1-1e09-s0")
    assert longest.start.after == ""  # though the whole study would branch it off
    assert shorter.start.after == longest.run.run_id
    lines = in_words(plan)
    assert "left out by --skip c16-b2-l1-9e9: 1 run, c16-b2-l1-9e09-s0" in lines
    assert any(line.startswith("left out by --only channels=16: 4 runs, ") for line in lines)


def test_the_page_says_what_was_left_out():
    words = missing_runs({"missing": [], "stopped": "", "left_out": ["c8-b2-l1"]})
    assert words == " Left out by --only or --skip: c8-b2-l1; without them, it runs the rest."


def test_pins_name_one_run_each(tmp_path):
    first = RUNS[0]
    assert pinned(["c16-b2-l1-9e9", first.run_id[:6], first.label], RUNS, tmp_path) == (
        RUNS[-1].run_id,
        first.run_id,
    )
    assert pinned([""], RUNS, tmp_path) == ()
    with pytest.raises(UserError, match="--pin c16 fits 3 runs"):
        pinned(["c16"], RUNS, tmp_path)
    with pytest.raises(UserError, match="did you mean"):
        pinned(["c17-b2-l1"], RUNS, tmp_path)


@pytest.mark.parametrize("script", [scaling, search])
def test_tags_and_pins_stay_until_others_replace_them(script, tmp_path):
    command = {scaling: scaling.Scaling, search: search.Search}[script]

    def marks(**options):
        made = command(script.Options(study="tiny", out=tmp_path, **options))
        if script is scaling:
            made.begin()
            assert {row.run.tags for row in made.plan.rows} == {made.study.tags}
            return made.study.tags, made.study.pinned
        return made.space.run_of(made.space.base).tags

    if script is search:
        declare(replace(TINY, tags=("kept",)), tmp_path)
        assert marks() == ("kept",)
        assert marks(tag=("new",)) == ("new",)
        return
    assert marks(tag=("wide, a b", "new"), pin=("c16-b2-l1-9e9",)) == (
        ("wide", "a b", "new"),
        (RUNS[-1].run_id,),
    )
    assert marks() == (("wide", "a b", "new"), (RUNS[-1].run_id,))
    assert marks(tag=("",), pin=("",)) == ((), ())
    assert [run.run_id for run in grid(replace(TINY, tags=("x",)))] == [x.run_id for x in RUNS]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_later_command_completes_the_study(call, tmp_path):
    flags = ("tiny", "--out", tmp_path, "--yes", "--sampler-trials", "0", "--set")
    flags += ("base.evaluation.samples=0", "base.evaluation.decoder_images=50")
    code, printed = call(scaling, *flags, "--only", "budget<2e9", "--skip", "c8")
    assert code == 0, printed.err
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert (tmp_path / "report.html").exists()
    again = call(scaling, *flags, "--only", "budget<2e9", "--skip", "c8")
    assert again[0] == 0
    assert "every run that was asked for is done already" in again[1].out
    code, printed = call(scaling, *flags)
    assert code == 0, printed.err
    assert len(list((tmp_path / "runs").iterdir())) == 7
