"""What cluster/local.yaml promises, over real SSH: a laptop, a head and two workers on one box.

The tests follow one another, as a cluster is too slow to start for each. They print their times.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from machines import SHARED, Machine, call, machines, wait_for, what_is_missing

ROOT = Path(__file__).parents[2]
FILE = "cluster/local.yaml"
TRAINER = re.compile(r"ray::(ImplicitFunc|RayTrainWorker)")
pytestmark = pytest.mark.cluster

# Runs take seconds.
STUDY = """
name: {name}
base:
  model: {{image_size: 28, patch: 7, channels: 16, head_dim: 8}}
  data: {{name: digits}}
  noise: {{std: 0.25}}
  optim: {{lr: 0.005, warmup_images: 128}}
  batch: 32
  precision: float32
  evaluation: {{decoder_images: 200, samples: 0}}
  execution: {{workers: {workers}, checkpoint_seconds: 1}}
sizes: {sizes}
budgets: {budgets}
lr_power: -0.5
min_images: 64
train_images: 4000
"""
BUCKET = """
import json, os, pathlib, sys
from pyarrow import fs
from tarflow.storage import locate

endpoint = os.environ["AWS_ENDPOINT_URL"]
fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir("bucket")
found = locate("s3://bucket/kept").glob("runs/*/result.json")
results = {path.parent.name: path.read_text() for path in found}
pathlib.Path(sys.argv[1]).write_text(json.dumps(results))
"""
SIZES = [{"channels": channels, "blocks": 2, "layers": 1} for channels in (8, 16, 32)]


@dataclass(frozen=True)
class Boxes:
    """The machines, and what a user does with them from the laptop."""

    running: dict[str, Machine]
    work: Path

    @property
    def nodes(self) -> list[Machine]:
        """The machines of the cluster that have not been lost."""
        return [box for name, box in self.running.items() if name != "laptop" and box.alive]

    @contextlib.contextmanager
    def started(self, command: str) -> Iterator[subprocess.Popen]:
        """Start a command on the laptop; after the block, neither it nor a driver runs."""
        log = self.work / "log"
        job = self.running["laptop"].start(f"cd ~/repository && {command}", log)
        try:
            yield job
        except BaseException:
            print(log.read_text(errors="replace")[-5000:])
            raise
        finally:
            self.kill("head", "scaling.py")
            job.kill()
            job.wait()

    def run(self, command: str) -> None:
        """Run a command that must succeed on the laptop."""
        with self.started(command) as job:
            finish(job, command)

    def kill(self, name: str, word: str) -> None:
        """Kill the processes of a machine that have a word in their command line."""
        for pid, line in self.running[name].processes().items():
            if word in line:
                os.kill(pid, signal.SIGKILL)

    def study(self, name: str, sizes: list, budgets: list, workers: int = 1) -> "StudyThere":
        """Put a study on the shared disk."""
        text = STUDY.format(name=name, sizes=sizes, budgets=budgets, workers=workers)
        (self.work / f"shared/{name}.yaml").write_text(text)
        return StudyThere(name, self.work / "shared" / name)

    def left(self, kind: str, ended: str) -> list[dict[str, Any]]:
        """Return what Ray lists of a kind, without what has ended."""
        query = f'ray list {kind} --filter "state!={ended}" --format json > {SHARED}/listed'
        self.run(f"ray exec {FILE} '{query}'")
        listed = (self.work / "shared/listed").read_text()
        return [] if listed.startswith("No resource") else json.loads(listed)

    def in_bucket(self) -> dict[str, str]:
        """Return the results of the runs in the bucket, which is made if it is missing."""
        (self.work / "shared/bucket.py").write_text(BUCKET)
        self.run(f". ~/.bashrc && PYTHONPATH=. python {SHARED}/bucket.py {SHARED}/bucket.json")
        return json.loads((self.work / "shared/bucket.json").read_text())

    def trainers(self) -> dict[str, list[int]]:
        """Return the processes that train, by machine."""
        by_name = {
            box.name: [p for p, line in box.processes().items() if TRAINER.match(line)]
            for box in self.nodes
        }
        return {name: pids for name, pids in by_name.items() if pids}

    def wait_for_states(self, study: "StudyThere", nodes: int) -> None:
        """Wait until some machines train, and a run has saved a state."""

        def saved() -> bool:
            return any(study.out.glob("runs/*/state/*.json")) and len(self.trainers()) >= nodes

        wait_for(f"{study.name} trains on {nodes} machines and has saved a state", saved, 180)


@dataclass(frozen=True)
class StudyThere:
    """A study on the shared disk."""

    name: str
    out: Path  # its folder, seen from outside

    @property
    def submission(self) -> str:
        """The command that carries it out."""
        return self.submission_to(f"{SHARED}/{self.name}")

    def submission_to(self, out: str) -> str:
        """The command that keeps it elsewhere."""
        arguments = f"{SHARED}/{self.name}.yaml --out {out} --yes"
        return f"ray submit {FILE} sweeps/scaling.py -- {arguments}"

    def rows(self) -> pd.DataFrame:
        """Return its table, in which every run must be there once, and done."""
        rows = pd.read_parquet(self.out / "runs.parquet")
        assert sorted(rows["run_id"]) == sorted(path.name for path in self.out.glob("runs/*"))
        assert set(rows["status"]) == {"done"}
        return rows

    def results(self) -> dict[Path, str]:
        """Return the results of the runs that have ended."""
        return {path: path.read_text() for path in self.out.glob("runs/*/result.json")}


def finish(job: subprocess.Popen, what: str) -> None:
    """Wait for a command that must succeed."""
    wait_for(what, lambda: job.poll() is not None, 300)
    assert job.returncode == 0


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    if reason := what_is_missing():
        pytest.skip(reason)
    with laptop_and_nodes(tmp_path_factory.mktemp("machines")) as running:
        yield running


@contextlib.contextmanager
def laptop_and_nodes(work: Path) -> Iterator[Boxes]:
    """Run four machines; the laptop has the repository, with the file of the cluster filled in."""
    with machines(("laptop", "head", "w1", "w2"), work) as running:
        repository = work / "laptop/home/repository"
        call(["rsync", "-a", "--exclude=.git", "--filter=:- .gitignore", f"{ROOT}/", repository])
        (repository / FILE).write_text(filled_in(running))
        yield Boxes(running, work)


def filled_in(running: dict[str, Machine]) -> str:
    """Return the file of the cluster with the lines that a user edits.

    Versions may differ from those of the file: nodes have what the tests are run with. Machines
    share the cores and the memory of this box, so each offers one core.
    """
    text = re.sub(r"==[\d.]+", "", (ROOT / FILE).read_text())
    offer = "ray start --num-cpus=1 --object-store-memory=100000000 "
    config = yaml.safe_load(text.replace("ray start ", offer))
    workers = [running[name].address for name in ("w1", "w2")]
    config["provider"] |= {"head_ip": running["head"].address, "worker_ips": workers}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"}
    return yaml.safe_dump(config)


def test_ray_up_starts_every_machine(boxes):
    start_cluster(boxes)


def start_cluster(boxes: Boxes) -> None:
    """Start Ray on every machine but the laptop."""
    boxes.run("ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
    boxes.run(f"ray up --yes {FILE}")
    wait_for("workers have joined", lambda: all(map(has_raylet, boxes.nodes)), 180)


def has_raylet(machine: Machine) -> bool:
    return any("raylet/raylet" in line for line in machine.processes().values())


def test_a_study_uses_every_machine_and_again_changes_nothing(boxes):
    study = boxes.study("first", SIZES, [1e9, 3e9])
    boxes.run(study.submission)
    rows, results = study.rows(), study.results()
    assert len(rows) == 6
    assert set(rows["host"]) == {"head", "w1", "w2"}
    boxes.run(study.submission)
    assert study.results() == results
    pd.testing.assert_frame_equal(study.rows(), rows)


def test_a_study_in_a_bucket_survives_its_driver(boxes):
    command = boxes.study("kept", SIZES, [3e9, 1e10]).submission_to("s3://bucket/kept")
    serve = "python -m moto.server -H 0.0.0.0 -p 5000"
    server = boxes.running["laptop"].start(serve, boxes.work / "server")
    try:
        log = boxes.work / "server"
        wait_for("the store serves", lambda: "Running on" in log.read_text(), 60)
        assert boxes.in_bucket() == {}
        with boxes.started(command) as job:
            log = boxes.work / "log"
            wait_for("a run has ended", lambda: "1 of 6 done" in log.read_text(), 120)
            boxes.kill("head", "scaling.py")
            wait_for("the command notices", lambda: job.poll() is not None, 60)
        before = boxes.in_bucket()
        assert 0 < len(before) < 6
        boxes.run(command)
        after = boxes.in_bucket()
        assert len(after) == 6
        assert before.items() <= after.items()  # nothing was trained twice
    finally:
        server.kill()
        server.wait()


def test_two_workers_meet_and_survive_the_death_of_one(boxes):
    study = boxes.study("shared-run", SIZES[1:2], [4e10], workers=2)
    with boxes.started(study.submission) as job:
        boxes.wait_for_states(study, nodes=2)
        victim = boxes.trainers().popitem()[1]
        os.kill(victim[0], signal.SIGKILL)
        finish(job, "from the death of a worker to the end of the study")
    assert len(study.rows()) == 1


def test_a_lost_driver_and_a_lost_machine_cost_only_time(boxes):
    study = boxes.study("grid", SIZES[:2], [1e10, 3e10])
    with boxes.started(study.submission) as job:
        boxes.wait_for_states(study, nodes=2)
        boxes.kill("head", "scaling.py")
        wait_for("the command notices the loss of its driver", lambda: job.poll() is not None, 60)
        assert job.returncode != 0
        wait_for("its workers have ended", lambda: not boxes.trainers(), 60)
    results = study.results()
    with boxes.started(study.submission) as job:
        boxes.wait_for_states(study, nodes=2)
        lost = next(name for name in ("w1", "w2") if name in boxes.trainers())
        boxes.running[lost].lose()
        finish(job, f"from the loss of {lost} to the end of the study")
    assert len(study.rows()) == 4
    assert results.items() <= study.results().items()


def test_studies_leave_no_actor_and_no_placement_group(boxes):
    assert boxes.left("placement-groups", "REMOVED") == []
    own = {"AutoscalingCoordinator"}  # Ray starts it once per cluster, and keeps it
    assert {actor["name"] for actor in boxes.left("actors", "DEAD")} <= own


def test_results_can_be_fetched(boxes):
    boxes.run(f"ray rsync-down {FILE} {SHARED}/first/ ~/fetched")
    study, fetched = boxes.work / "shared/first", boxes.work / "laptop/home/fetched"
    for name in ("report.html", "runs.parquet", "best.yaml"):
        assert (fetched / name).read_bytes() == (study / name).read_bytes()


def test_ray_down_leaves_nothing(boxes):
    boxes.run(f"ray down --yes {FILE}")
    with contextlib.suppress(TimeoutError):  # a minute to miss the head, another to report it
        wait_for("the last process of the cluster has ended", lambda: not remains(boxes), 240)
    assert remains(boxes) == []


def remains(boxes: Boxes) -> list[str]:
    """Return what runs on the nodes beside their SSH servers."""
    lines = [line for machine in boxes.nodes for line in machine.processes().values()]
    return [line for line in lines if not line.startswith("sshd:")]
