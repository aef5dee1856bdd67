"""Runs of several workers side by side, and small runs in the room that they leave."""

import io
import math
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from rich.console import Console
from small_studies import wee

from sweeps.design.study import grid, resolve_study
from sweeps.lease import lease
from sweeps.running.batch import BatchContext
from sweeps.running.cluster import join
from sweeps.running.gangs import Gangs
from sweeps.running.room import (
    Occupant,
    capacity,
    free,
    longest_that_may_start,
    may_start,
    start_of,
)
from sweeps.running.runner import run_all
from sweeps.running.trainable import single_threaded
from sweeps.watching.live import LivePage
from sweeps.watching.progress import Progress

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
MACHINES = {name: {"CPU": 4.0, "GPU": 4.0} for name in "abc"}


def small(seconds, nodes=()):
    return Occupant({"CPU": 1.0, "GPU": 0.25}, 1, seconds, nodes)


def gang(workers, seconds, nodes=()):
    return Occupant({"CPU": 1.0, "GPU": 1.0}, workers, seconds, nodes)


def test_a_small_run_may_not_delay_the_gang_that_waits():
    running = [gang(8, 100.0, tuple("aaaabbbb")), small(30.0, ("c",))]
    first = gang(4, 50.0)
    assert start_of(first, MACHINES, running) == 30.0
    assert longest_that_may_start(small(1.0), first, MACHINES, running) == 30.0
    assert longest_that_may_start(small(1.0), None, MACHINES, running) == math.inf
    wider = gang(12, 50.0)
    assert start_of(wider, MACHINES, running) == 100.0
    assert may_start(small(60.0), wider, MACHINES, running)
    assert not may_start(gang(4, 1.0), wider, MACHINES, running)  # there is no room


work = st.one_of(
    st.builds(small, st.integers(1, 50).map(float)),
    st.builds(gang, st.integers(2, 12), st.integers(1, 50).map(float)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(work, max_size=25), st.integers(1, 3))
def test_runs_that_the_rule_starts_fit_end_and_leave_nothing_idle(runs, count):
    """Simulate a batch in which runs take as long as expected, placed where the rule expects."""
    machines = dict(list(MACHINES.items())[:count])
    order = sorted(runs, key=lambda run: (-run.workers, -run.ends))
    waiting = [run for run in order if capacity(run.needs, machines) >= run.workers]
    now, running, foreseen = 0.0, [], {}
    while waiting or running:
        going = [replace(run, ends=run.ends - now) for run in running]
        first = None
        for run in list(waiting):
            if run.workers == 1 or may_start(run, first, machines, going):
                limit = longest_that_may_start(run, first, machines, going)
                if run.workers == 1 and run.ends > limit:
                    continue
                nodes = placed(run, machines, going)
                going.append(replace(run, nodes=nodes))
                running.append(replace(run, nodes=nodes, ends=now + run.ends))
                del waiting[next(i for i, each in enumerate(waiting) if each is run)]
            elif first is None:
                first = run
                start = now + start_of(run, machines, going)
                assert start <= foreseen.setdefault(id(run), start)  # no gang starves
        left = free(machines, going)
        assert all(amount >= 0 for has in left.values() for amount in has.values())
        if first is None:  # no gang waits
            assert not any(capacity(run.needs, left) >= run.workers for run in waiting)
        now = min(run.ends for run in running)
        running = [run for run in running if run.ends > now]


def placed(run, machines, going):
    before, after = free(machines, going), free(machines, [*going, run])
    return tuple(
        node
        for node in machines
        for _ in range(round((before[node]["CPU"] - after[node]["CPU"]) / run.needs["CPU"]))
    )


def test_the_time_left_counts_every_worker():
    expected, widths = {"a": 10.0, "b": 10.0, "c": 4.0}, {"a": 4.0, "b": 4.0}
    progress = Progress(3, expected, 4, Console(quiet=True), widths=widths)
    assert progress.seconds_left() == 10 + 10 + 1


def mixed(gangs, small):
    """Return runs that differ in their seeds only: some of two workers, some of one."""
    study = wee("mixed", seeds=gangs + small, branches=False)
    study = replace(study, sizes=study.sizes[:1], held_out=None, replicated=None)
    runs = [single_threaded(run) for run in grid(resolve_study(study))]
    return [widened(run) if index < gangs else run for index, run in enumerate(runs)]


def widened(run):
    execution = replace(run.config.execution, workers=2)
    return replace(run, config=replace(run.config, execution=execution))


class Batch(threading.Thread):
    """Carries out runs in a thread; nodes can be added only in the main thread."""

    def __init__(self, runs, out):
        super().__init__()
        self.runs, self.out, self.outcome = runs, out, None
        self.console = Console(file=io.StringIO(), width=200)

    def run(self):
        expected = {run.run_id: 1.0 for run in self.runs}
        with lease(self.out) as owned, join() as joined, LivePage(self.out) as page:
            context = BatchContext(self.out, joined, owned, self.console, page)
            self.outcome = run_all(self.runs, expected, context)


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False}
    )
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


@pytest.mark.ray
def test_gangs_run_at_a_time_and_a_machine_that_joins_is_used(tmp_path, cluster, monkeypatch):
    """Two of three gangs fit at first, and a small run beside them."""
    look, together, nodes = Gangs.look, [0], set()

    def look_and_note(gangs):
        look(gangs)
        placed = [gang for gang in gangs.left if gang.nodes]
        together.append(len(placed))
        nodes.update(node for gang in placed for node in gang.nodes)

    monkeypatch.setattr(Gangs, "look", look_and_note)
    cluster.add_node(num_cpus=2)
    batch = Batch(mixed(gangs=3, small=3), tmp_path)
    batch.start()
    while not together[-1] and batch.is_alive():
        time.sleep(0.1)
    joined = cluster.add_node(num_cpus=2)
    batch.join()
    printed = batch.console.file.getvalue()
    assert [row["status"] for row in batch.outcome.rows] == ["done"] * 6, printed
    assert {row["run_id"] for row in batch.outcome.rows} == {run.run_id for run in batch.runs}
    assert max(together) > 1
    assert joined.node_id in nodes
