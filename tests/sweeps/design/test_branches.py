"""Which runs begin where, which have to wait, and what that saves."""

from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from analysis.report.spending import saving
from sweeps import hardware
from sweeps.design.branches import StartPoint, remove_trunks, start_points, with_branch_points
from sweeps.design.presets import load
from sweeps.design.study import Point, grid, resolve_study
from sweeps.pricing.expect import Job, Rate, timetable
from sweeps.pricing.plan import make_plan
from sweeps.pricing.words import study_summary, table
from sweeps.running import run_queue
from sweeps.running.batch import BatchContext, StopConditions
from sweeps.running.run_queue import RunQueue
from sweeps.watching.progress import Progress
from tarflow import cost
from tarflow.record import write_json
from tarflow.train.schedule import shared_images
from tarflow.train.trunk import trunk_folder

NOTHING = StartPoint()


@pytest.fixture(autouse=True)
def probed(monkeypatch, tmp_path):
    """Give every test its own cache and a rate without a probe."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "probe", lambda: Rate(1e11, "test").flops)


@pytest.fixture
def family():
    """Return four runs that differ in their images only, the longest first, and one other."""
    study = resolve_study(load("tiny"))
    study = replace(study, budgets=(1e9, 3e9, 6e9), sizes=study.sizes[1:2], replicated=None)
    study = replace(study, held_out=Point(size="c16-b2-l1", budget=1.2e10))
    runs = sorted(grid(study), key=lambda run: -run.config.images)
    return [*runs, replace(runs[1], config=replace(runs[1].config, seed=5), trunk=0)]


def leave_states(folder, *images):
    for each in images:
        write_json(folder / f"{each:015d}.json", {})


def test_the_longest_run_is_the_trunk_and_the_others_wait_for_it(family, tmp_path):
    trunk, *shorter, other = family
    begin = start_points(family, tmp_path)
    assert begin[trunk.run_id] == begin[other.run_id] == NOTHING
    points = [shared_images(run.config) for run in shorter]
    for run, point in zip(shorter, points, strict=True):
        assert begin[run.run_id] == StartPoint(point, point, after=trunk.run_id)
        assert run.trunk == trunk.config.images
    branch_points = {run.run_id: run.branch_points for run in with_branch_points(family, begin)}
    assert branch_points.pop(trunk.run_id) == set(points)
    assert set(branch_points.values()) == {frozenset()}


def test_states_on_disk_and_runs_that_are_done_decide_who_waits(family, tmp_path):
    trunk, long, middle, short, _ = family
    point = {run.run_id: shared_images(run.config) for run in family}
    leave_states(trunk_folder(short.config, tmp_path), point[short.run_id])
    begin = start_points(family, tmp_path)
    assert begin[short.run_id] == StartPoint(point[short.run_id], point[short.run_id])
    assert begin[middle.run_id].after == trunk.run_id
    assert begin[trunk.run_id].images == point[short.run_id]  # it shares that state, too
    without = start_points([long, middle, short], tmp_path)  # the trunk is done
    assert without[long.run_id].images == point[short.run_id]
    assert without[middle.run_id].after == long.run_id
    own = tmp_path / "runs" / trunk.run_id / "state"
    leave_states(own, point[middle.run_id])  # the trunk is beyond the branch of the middle one
    begin = start_points(family, tmp_path)
    assert begin[trunk.run_id] == StartPoint(point[middle.run_id], 0)
    assert begin[long.run_id].after == trunk.run_id
    assert begin[middle.run_id].after == ""
    assert begin[middle.run_id].images == point[short.run_id]


def test_a_study_may_leave_branches_out_and_a_cosine_has_none(tmp_path):
    study = resolve_study(load("tiny"))
    cosine = replace(study.base, optim=replace(study.base.optim, schedule="cosine"))
    for each in (replace(study, branches=False), replace(study, base=cosine)):
        runs = grid(each)
        assert {run.trunk for run in runs} == {0}
        assert set(start_points(runs, tmp_path).values()) == {NOTHING}
    shared = [run for run in grid(study) if run.trunk]
    alone = [run for run in grid(study) if not run.trunk]
    assert len(shared) == 7
    assert all(run.config.seed == 1 for run in alone)


def test_a_branch_waits_for_its_state_or_the_end_of_its_trunk(family, tmp_path, monkeypatch):
    monkeypatch.setattr(run_queue, "LOOK_SECONDS", 0.0)
    trunk, long, middle, short, other = family
    progress = Progress(len(family), {}, 2, Console(quiet=True))
    context = BatchContext(tmp_path, None, None, None, None)
    stop = StopConditions(progress, context, 1.0)
    queue = RunQueue(family, stop, start_points(family, tmp_path))

    def given():
        found = queue.suggest("trial")
        return found and family[found["index"]]

    assert (given(), given(), given()) == (trunk, other, None)
    progress.start(trunk)
    progress.report(trunk, {"images": shared_images(short.config)})
    assert given() is None  # the state is still being written
    leave_states(trunk_folder(short.config, tmp_path), shared_images(short.config))
    assert (given(), given()) == (short, None)
    progress.end(trunk, {"status": "failed", "error": "the process died"})
    assert (given(), given(), given()) == (long, middle, None)


def test_states_go_when_the_last_of_their_runs_is_done(family, tmp_path):
    folder = trunk_folder(family[0].config, tmp_path)
    leave_states(folder, 64)
    *most, last = [run.run_id for run in family if run.trunk]
    remove_trunks(family, most, tmp_path)
    assert list(folder.iterdir())
    remove_trunks(family, [*most, last], tmp_path)
    assert not (tmp_path / "trunks").exists()


def test_the_plan_counts_what_is_left_to_train(tmp_path):
    study = resolve_study(load("tiny"))
    whole = make_plan(replace(study, branches=False), tmp_path, devices=2)
    plan = make_plan(study, tmp_path, devices=2)
    assert (whole.saved, plan.flops) == (0, whole.flops)
    per_image = {row.run.run_id: cost.training_flops(row.run.config.model) for row in plan.rows}
    branches = [row for row in plan.rows if row.start.after]
    assert plan.saved == sum(
        per_image[row.run.run_id] * shared_images(row.run.config) for row in branches
    )
    assert 0.2 < plan.saved / plan.flops < 0.3
    assert plan.device_hours < 0.95 * whole.device_hours
    assert plan.wall_seconds < whole.wall_seconds
    assert "23%" in next(line for line in study_summary(study, plan) if "shared trunks" in line)
    assert not any("trunk" in line for line in study_summary(study, whole))
    shown = zip(table(plan).columns[2].cells, table(plan).columns[-1].cells, strict=True)
    printed = sum(int(runs) for runs, state in shown if state.endswith("branch"))
    assert printed == len(branches)


def test_jobs_start_as_devices_fall_free_and_trunks_come_so_far():
    jobs = [
        Job("trunk", 10.0),
        Job("alone", 3.0),
        Job("late", 2.0, after="trunk", delay=8.0),
        Job("early", 1.0, after="trunk", delay=1.0),
        Job("orphan", 0.5, after="done before", delay=5.0),
    ]
    found = timetable(jobs, 2)
    begins = {name: begin for name, (begin, _) in found.items()}
    assert begins == {"trunk": 0, "alone": 0, "early": 3, "orphan": 4, "late": 8}
    ends = [end for _, end in timetable(jobs, 1).values()]
    assert max(ends) == sum(job.seconds for job in jobs)


def test_the_report_says_what_was_saved():
    runs = pd.DataFrame({"status": "done", "flops": [9e9, 1e9], "flops_marginal": [9e9, 2e8]})
    assert "8e8 of 1e10 training FLOPs (8.0%) were saved" in saving(runs)
    assert saving(runs.iloc[:1]) == ""
