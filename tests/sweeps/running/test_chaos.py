"""Two hundred short runs while workers, machines and the driver are killed, twenty times each.

Run as a script, this file is the driver: `python tests/sweeps/running/test_chaos.py FOLDER`.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from sweeps.design.presets import load
from sweeps.design.study import PlannedRun, resolve_study
from sweeps.lease import lease
from sweeps.pricing.plan import make_plan
from sweeps.running.batch import BatchContext
from sweeps.running.cluster import join
from sweeps.running.runner import run_all
from sweeps.watching.live import LivePage
from tarflow.record import gather, read_result

TRAINING = ("ray::ImplicitFu", "ray::RayTrainWo")  # names of processes, cut by Linux
RUNS, ROUNDS, MACHINES = 200, 20, 4
KIND = {0: "diverges", 1: "two workers"}  # of each twenty runs; the others are small


def study():
    study = load("tiny")
    model = replace(study.base.model, patch=14, channels=8, blocks=2, layers=1)
    return resolve_study(replace(study, base=replace(study.base, model=model)))


def planned(study):
    """Return the runs: most are small, some have two workers, some fail for good."""
    base = replace(
        study.base,
        evaluation=replace(study.base.evaluation, decoder_images=16, samples=0),
        execution=replace(study.base.execution, checkpoint_seconds=0.5),
    )
    runs = []
    for seed in range(RUNS):
        images = study.base.batch * (1 + seed % 17)
        config = replace(base, seed=seed, images=images)
        kind = KIND.get(seed % 20, "small")
        if kind == "diverges":
            config = replace(config, optim=replace(config.optim, lr=1e30))
        if kind == "two workers":
            config = replace(config, execution=replace(config.execution, workers=2))
        runs.append(PlannedRun(config=config, label=f"{kind}-{seed}", budget=1e8))
    return runs


def drive(out):
    """Carry out what is left of the runs, as `sweeps/scaling.py` does."""
    of = study()
    with lease(out) as own, join() as cluster, LivePage(out) as page:
        plan = replace(make_plan(of, out, runs=planned(of)), retry=False)
        runs = [row.run for row in plan.rows if row.state == "done" or row in plan.left]
        expected = {row.run.run_id: row.left for row in plan.rows}
        run_all(runs, expected, BatchContext(out, cluster, own, Console(width=120), page))
    gather(out)


class Chaos:
    """A cluster whose parts are killed, and the driver on it."""

    def __init__(self, out, log):
        self.random, self.out, self.log = random.Random(0), out, log
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.machines = [self.new_machine() for _ in range(MACHINES)]
        self.kills = Counter()

    def new_machine(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

    def start_driver(self):
        environment = os.environ | {"RAY_ADDRESS": self.cluster.address, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(self.out)]
        return subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)

    def ended(self):
        """Return the results of the runs that need not be carried out again."""
        results = {path.name: read_result(path) for path in self.out.glob("runs/*")}
        return {
            name: result
            for name, result in results.items()
            if result and (result["run"].get("error") or "Diverged").startswith("Diverged")
        }

    def kill_worker(self):
        """Kill a process that trains; tell whether one did."""
        raylets = [
            each.process.pid
            for machine in self.machines
            for each in machine.all_processes["raylet"]
        ]
        for raylet in self.random.sample(raylets, len(raylets)):
            for pid in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if Path(f"/proc/{pid}/comm").read_text().startswith(TRAINING):
                        os.kill(int(pid), signal.SIGKILL)
                        self.kills["worker"] += 1
                        return True
        return False

    def kill_machine(self):
        machine = self.machines.pop(self.random.randrange(MACHINES))
        self.cluster.remove_node(machine, allow_graceful=False)
        self.machines.append(self.new_machine())
        self.kills["machine"] += 1

    def wait_for(self, ended, driver):
        """Wait until this number of runs has ended."""
        deadline = time.monotonic() + 300
        while len(self.ended()) < ended:
            assert driver.poll() is None, "the driver has ended by itself"
            assert time.monotonic() < deadline, f"{len(self.ended())} of {ended} runs have ended"
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_every_run_ends_once_whatever_is_killed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ended = {}
    with (tmp_path / "log").open("wb") as log:
        chaos = Chaos(out, log)
        try:
            for number in range(ROUNDS):
                driver = chaos.start_driver()
                chaos.wait_for(len(ended) + 2, driver)
                while not chaos.kill_worker():
                    time.sleep(0.1)
                chaos.wait_for(len(ended) + 4, driver)
                chaos.kill_machine()
                chaos.wait_for(len(ended) + 6, driver)
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                chaos.kills["driver"] += 1
                now = chaos.ended()
                assert ended.items() <= now.items()  # none of them was carried out again
                ended = now
                print(f"round {number}: {len(ended)} runs have ended, {dict(chaos.kills)}")
            driver = chaos.start_driver()
            assert driver.wait(900) == 0
        finally:
            driver.kill()
            chaos.cluster.shutdown()
    assert ended.items() <= chaos.ended().items()
    assert set(chaos.kills.values()) == {ROUNDS}
    runs, _ = gather(out)
    expected = {run.run_id: run.label for run in planned(study())}
    assert sorted(row["run_id"] for row in runs) == sorted(expected)
    failed = {expected[row["run_id"]].partition("-")[0] for row in runs if row.get("error")}
    assert failed == {"diverges"}
    assert sum(row["status"] == "failed" for row in runs) == RUNS // 20


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
