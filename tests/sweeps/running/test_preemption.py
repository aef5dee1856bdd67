"""Machines are drained and workers get SIGTERM, again and again; no run starts afresh."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from small_studies import rows, wee, write_study

from sweeps import scaling
from sweeps.design.study import grid, resolve_study
from sweeps.running import large, runner
from tarflow.record import read_table
from tarflow.run import run
from tarflow.train.interruptions import read_interruptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
PREEMPTION = "preemption"


def study_of(budget, seeds=1, **execution):
    """Return a study of runs that save their state hardly ever but when they have to leave."""
    study = wee("preempted", seeds=seeds)
    changed = replace(study.base.execution, checkpoint_seconds=99, threads=1, **execution)
    base = replace(study.base, execution=changed, precision="float64")
    one = {"sizes": study.sizes[:1], "budgets": (budget,), "held_out": None, "replicated": None}
    return replace(study, base=base, **one)


def slowed(function, notes):
    """Let a function train slowly, and note the machine of each process that trains.

    Args:
        function: Trains in a worker.
        notes: Folder of the notes, named by process. Training is quick once it holds "quick".
    """

    def train(*arguments, **keywords):
        import tarflow.data

        node, quick, steps = ray.get_runtime_context().get_node_id(), tarflow.data.batch, []

        def batch(*arguments):
            steps.append(None)
            if len(steps) == 3:
                begun = notes / f".{os.getpid()}"
                begun.write_text(node)
                begun.rename(notes / str(os.getpid()))  # never read half written
            time.sleep(0 if (notes / "quick").exists() else 0.2)
            return quick(*arguments)

        tarflow.data.batch = batch
        try:
            return function(*arguments, **keywords)
        finally:
            tarflow.data.batch = quick

    return train


class Preemptions(threading.Thread):
    """Takes the machine away from every run that trains, a few times over.

    By turns its machine is drained, and replaced, or one of its processes gets SIGTERM.
    """

    def __init__(self, cluster, notes, rounds, runs, workers):
        super().__init__(daemon=True)
        self.cluster, self.notes = cluster, notes
        self.rounds, self.runs, self.workers = rounds, runs, workers
        self.drained, self.back, self.error = set(), 0, None
        self.over = threading.Event()

    def run(self):
        try:
            for number in range(self.rounds):
                processes = self.wait_for_training()
                for turn, (pid, node) in enumerate(processes[:: self.workers]):
                    if (number + turn) % 2:
                        os.kill(pid, signal.SIGTERM)
                    else:
                        self.drain(node)
                for pid, _ in processes:
                    (self.notes / str(pid)).unlink()
            self.wait_for_training()
        except Exception as error:
            self.error = error
        (self.notes / "quick").touch()
        self.over.wait()  # Linux ends the machines with the thread that has started them

    def wait_for_training(self):
        """Wait until all runs train; return the process and the machine of each worker."""
        deadline = time.monotonic() + 300
        while len(noted := sorted(self.notes.glob("[0-9]*"))) < self.runs * self.workers:
            assert time.monotonic() < deadline, f"{len(noted)} processes train"
            time.sleep(0.1)
        processes = [(int(path.name), path.read_text()) for path in noted]
        self.back += sum(node in self.drained for _, node in processes)
        return processes

    def drain(self, node):
        """Announce that a machine will be taken away; another one comes."""
        self.drained.add(node)
        self.cluster.add_node(num_cpus=1)
        client = ray._raylet.GcsClient(address=self.cluster.address)
        deadline = int((time.time() + 30) * 1000)
        assert client.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "spot", deadline)[0]


def losses(folder):
    return read_table(folder / "curve.parquet").to_pydict()["loss"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("rounds", "seeds", "workers"),
    [
        (2, 2, 1),
        pytest.param(22, 2, 1, marks=(pytest.mark.slow, pytest.mark.timeout(1500))),
        pytest.param(6, 1, 2, marks=(pytest.mark.slow, pytest.mark.timeout(1500))),
    ],
)
def test_preempted_runs_resume_where_they_stopped(
    tmp_path, monkeypatch, capsys, rounds, seeds, workers
):
    study = study_of(1e9 * rounds, seeds, workers=workers)
    planned = grid(resolve_study(study))
    notes, out, reference = (tmp_path / name for name in ("notes", "out", "reference"))
    notes.mkdir()
    monkeypatch.setattr(runner, "train_planned", slowed(runner.train_planned, notes))
    monkeypatch.setattr(large, "execute", slowed(large.execute, notes))
    monkeypatch.setattr(ray._private.utils, "set_sigterm_handler", lambda _: None)  # in a thread
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    preemptions = Preemptions(cluster, notes, rounds, seeds, workers)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        preemptions.start()
        path = write_study(tmp_path, study)
        assert scaling.scale(scaling.Options(study=str(path), out=out)) == 0
    finally:
        cluster.shutdown()
        preemptions.over.set()
    print(capsys.readouterr().out)
    assert preemptions.error is None
    assert preemptions.back == 0  # no run came back to a machine that was drained
    table = rows(out)
    assert len(table) == seeds
    for item in planned:
        folder, row = out / "runs" / item.run_id, table[item.run_id]
        stops = read_interruptions(folder)
        assert [stop.kind for stop in stops] == [PREEMPTION] * rounds
        assert [stop.resumed for stop in stops] == [0, *(stop.images for stop in stops[:-1])]
        assert (row["status"], row["preemptions"], row["lost_processes"]) == ("done", rounds, 0)
        assert row["lost_seconds"] > 0
        alone = replace(item.config, execution=replace(item.config.execution, workers=1))
        run(alone, reference / item.run_id)
        expected = losses(reference / item.run_id)
        if workers == 1:
            assert losses(folder) == expected
        else:
            assert losses(folder) == pytest.approx(expected, rel=0, abs=1e-9)
