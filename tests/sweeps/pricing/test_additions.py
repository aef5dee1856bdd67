import shutil
from dataclasses import replace
from functools import partial

import pytest
from small_studies import rows, wee, with_ray, write_study
from synthetic import BUDGETS, CHANNELS, LARGEST, plant, run_config

from sweeps import scaling
from sweeps.design.declared import declare, with_kept
from sweeps.design.presets import load
from sweeps.design.study import Addition, Point, Size, Study, Variant, grid, resolve_study
from sweeps.pricing.additions import candidates, grow
from sweeps.pricing.plan import make_plan
from tarflow.config_files import read_yaml
from tarflow.errors import UserError
from tarflow.forecasts import forecast_of, read_forecasts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture
def study():
    return resolve_study(wee("wee"))


def test_candidates_lie_in_and_around_the_grid_and_are_new():
    study = resolve_study(load("digits"))
    offers = candidates(study)
    widths = {addition.size.channels for addition, _ in offers}
    budgets = {addition.budget for addition, _ in offers}
    assert widths == {8, 16, 24, 32, 40, 48, 56, 64, 88}
    assert budgets == {4e10, 7.1e10, 1.26e11, 2.24e11, 4e11, 6.93e11, 1.2e12}
    assert not {run.run_id for _, run in offers} & {run.run_id for run in grid(study)}
    assert len({run.run_id for _, run in offers}) == len(offers)
    assert all(study.min_images <= run.config.images <= study.max_images for _, run in offers)


def test_runs_added_before_are_part_of_the_study_whatever_it_is_started_from(study, tmp_path):
    addition = Addition(size=Size(channels=24, blocks=2, layers=1), budget=3e8)
    declare(replace(study, added=(addition,)), tmp_path)
    again = with_kept(study, tmp_path)
    assert again.added == (addition,)
    assert with_kept(again, tmp_path) == again
    assert [run.label for run in grid(again)][-1] == "c24-b2-l1-3e08-s0"
    plan_of = partial(make_plan, out=tmp_path)
    assert grow(again, tmp_path, 1, plan_of) == (again, [])  # resumes, although it is not done


def test_mistakes_are_told(study, tmp_path):
    plan_of = partial(make_plan, out=tmp_path)
    with pytest.raises(UserError, match="next is 0: it must be at least 1"):
        grow(study, tmp_path, 0, plan_of)
    with pytest.raises(UserError, match="4 runs of this study are not done: run it without"):
        grow(study, tmp_path, 1, plan_of)
    two = replace(study, variants=(Variant(name="a"), Variant(name="b")))
    with pytest.raises(UserError, match="one law, not one that compares variants"):
        grow(two, tmp_path, 1, plan_of)


def test_a_finished_study_grows_to_the_number_asked_for(tmp_path):
    sizes = tuple(Size(channels=channels, blocks=4, layers=2) for channels in CHANNELS)
    held_out = Point(size=f"c{LARGEST[0]}-b4-l2", budget=LARGEST[1])
    base = run_config(16, 1e11)
    study = Study(name="planted", base=base, sizes=sizes, budgets=BUDGETS, held_out=held_out)
    plan_of = partial(make_plan, out=plant(tmp_path))
    two, lines = grow(study, tmp_path, 2, plan_of)
    assert len(two.added) == 2
    assert [row.state for row in plan_of(two).left] == ["to do", "to do"]
    assert "prediction at 2.4e13 FLOPs, 4 times the largest budget" in lines[0]
    assert grow(two, tmp_path, 2, plan_of) == (two, [])
    with pytest.raises(UserError, match="2 runs of this study are not done"):
        grow(two, tmp_path, 3, plan_of)


@pytest.mark.slow
@with_ray
def test_added_runs_are_trained_once_and_read_by_the_laws(call, study, tmp_path):
    out, file = tmp_path / "out", write_study(tmp_path, wee("wee"))
    command = (file, "--out", out, "--yes")
    code, printed = call(scaling, *command)
    assert code == 0
    assert f"train next: python sweeps/final.py {out}\n" in printed.out
    (best,) = read_forecasts(out)
    assert (best.origin, best.done) == ("best", False)
    code, printed = call(scaling, *command, "--next", "1", "--dry-run")
    assert code == 0
    assert "1 more run, chosen to lower the uncertainty" in printed.out
    assert not read_yaml(Study, out / "study.yaml").added
    assert call(scaling, *command, "--next", "1")[0] == 0
    (addition,) = read_yaml(Study, out / "study.yaml").added
    run = grid(replace(study, added=(addition,)))[-1]
    assert rows(out)[run.run_id]["role"] == "grid"
    assert rows(out)[run.run_id]["status"] == "done"
    added = forecast_of(out, run.run_id)
    assert (added.origin, added.achieved) == ("next", rows(out)[run.run_id]["bpd"])
    assert added.time <= rows(out)[run.run_id]["started"]
    assert read_forecasts(out)[0] == best
    shutil.rmtree(out / "runs" / run.run_id)  # as if it had been interrupted
    assert call(scaling, *command)[0] == 0
    assert run.run_id in rows(out)
    code, printed = call(scaling, *command, "--next", "1")
    assert code == 0
    assert "every run is done already" in printed.out
