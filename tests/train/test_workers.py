"""One training function: any number of workers, sharded or not, trains the same run."""

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import run_and_replay
from PIL import Image
from training_runs import config, losses

from tarflow import cost, cuda_graph, device, distributed, execution
from tarflow.config import OptimConfig, RunConfig
from tarflow.config_files import to_yaml
from tarflow.errors import UserError
from tarflow.model.block import FlowBlock
from tarflow.record import read_result, read_table
from tarflow.run import run
from tarflow.train import checkpoint as states
from tarflow.train.checkpoint import load_checkpoint
from tarflow.train.loop import train
from tarflow.train.preemption import Preempted
from tarflow.train.step import Diverged

STEPS, BATCH = 50, 16
WAYS = ("replicate", "shard")
TOLERANCE = {"plain": 1e-9, "preserving": 1e-9, "float32": 1e-3}


def choice(kind, sharding="auto", **asked):
    """Return a run of 50 steps of some kind, its gradients clipped and its labels dropped."""
    chosen = config(images=STEPS * BATCH, optim=OptimConfig(lr=5e-3, warmup_images=64, clip=0.3))
    if kind == "preserving":
        chosen = replace(chosen, model=replace(chosen.model, volume_preserving=True))
        asked = {"micro_batch": 4, **asked}
    if kind == "float32":
        chosen = replace(chosen, precision=kind, model=replace(chosen.model, blocks=1))
    if kind == "bfloat16":
        chosen = replace(chosen, precision=kind, images=5 * BATCH)
        asked = {"fused": False, **asked}  # a sharded state never is
    asked = {"sharding": sharding, "checkpoint_seconds": 1e9, **asked}
    return replace(chosen, execution=replace(chosen.execution, **asked))


@dataclass(frozen=True)
class Job:
    """What a group of workers does, and how it should go wrong."""

    name: tuple
    config: RunConfig
    folder: Path
    ends: int = 0  # images after which the workers receive SIGTERM
    poison: bool = False  # let the images of the last worker become NaN in block 1
    replayed: bool = False  # as on accelerators, where CUDA graphs are replayed
    complete: bool = False  # scored and sampled as well


def train_job(job):
    """Return the losses and the EMA, or what the run raised."""

    def report(progress):
        if progress["images"] == job.ends:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        if job.poison and distributed.rank() == distributed.world_size() - 1:
            patch.setattr(FlowBlock, "coefficients", poisoned)
        if job.replayed:
            patch.setattr(execution, "supports_cuda_graphs", lambda _: True)
            patch.setattr(cuda_graph, "capture", run_and_replay)
        if job.ends:  # the save is slow enough to tell who leaves before it
            patch.setattr(states, "save_checkpoint", slow_save)
        try:
            if job.complete:
                return run(job.config, job.folder, role="final")
            state = train(job.config, job.folder, report)
        except Diverged as error:
            return error
        except Preempted as error:  # as soon as one worker leaves, all may be ended
            whole = load_checkpoint(job.folder / "state")
            return Preempted(f"{error}; on disk: {whole and whole[1]['images']}")
    return losses(state), state.ema


def slow_save(*arguments, save=states.save_checkpoint):
    time.sleep(0.5)
    save(*arguments)


coefficients = FlowBlock.coefficients


def poisoned(block, tokens, labels):
    log_scale, shift = coefficients(block, tokens, labels)
    return log_scale, shift + (torch.nan if block.backwards else 0)


def work(rank, workers, port, jobs, out):
    """Be one worker, and leave the outcome of every job in a file."""
    place = {"RANK": rank, "WORLD_SIZE": workers, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": workers}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with distributed.process_group():
        outcomes = {job.name: train_job(job) for job in jobs}
    (out / f"{workers}-{rank}").write_bytes(pickle.dumps(outcomes))


def together(workers, jobs, out):
    """Run jobs one after another on several workers; return the outcomes of each worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_workers"])  # imported once for all of them
    started = [
        context.Process(target=work, args=(rank, workers, port, jobs, out))
        for rank in range(workers)
    ]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(120)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
    return [pickle.loads((out / f"{workers}-{rank}").read_bytes()) for rank in range(workers)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return losses and averaged weights by (workers, kind, sharding), and what was raised."""
    out = tmp_path_factory.mktemp("workers")
    found = {}
    for kind in TOLERANCE:
        found[1, kind, "alone"] = train_job(Job((), choice(kind), out / kind))
    cut = {way: out / f"cut {way}" for way in WAYS}
    other = dict(zip(WAYS, reversed(WAYS), strict=True))
    for workers in (4, 2):
        jobs = [
            Job((workers, kind, way), choice(kind, way), out / f"{workers} {kind} {way}")
            for kind in ("plain", "float32")
            for way in WAYS
        ]
        for way in WAYS:
            if workers == 4:
                preserving = choice("preserving", way)
                jobs.append(Job((4, "cut", way), preserving, cut[way], ends=BATCH * STEPS // 2))
            else:
                preserving = choice("preserving", other[way])
                jobs.append(Job((2, "resumed", way), preserving, cut[way]))
                jobs.append(Job((2, "bfloat16", way), choice("bfloat16", way), out / f"low {way}"))
                jobs.append(Job((2, "poisoned", way), choice("plain", way), out, poison=True))
                replayed = choice("plain", way, micro_batch=3)
                jobs.append(Job((2, "replayed", way), replayed, out / f"re {way}", replayed=True))
        every = together(workers, jobs, out)
        found |= every[0]
        for outcome in every[1:]:  # the others leave the same
            for name, (curve, average) in ((n, o) for n, o in outcome.items() if type(o) is tuple):
                assert curve == found[name][0]
                torch.testing.assert_close(average, found[name][1], rtol=0, atol=0)
            for name, raised in ((n, o) for n, o in outcome.items() if type(o) is not tuple):
                assert str(raised) == str(found[name])
    for way in WAYS:
        found[1, "resumed", way] = train_job(Job((), choice("preserving"), cut[way]))
    return found


def assert_same_run(outcome, expected, tolerance):
    assert len(outcome[0]) == STEPS
    assert outcome[0] == pytest.approx(expected[0], rel=0, abs=tolerance)
    for name, tensor in expected[1].items():
        torch.testing.assert_close(outcome[1][name], tensor, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "float32"])
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_neither_losses_nor_weights(outcomes, workers, kind, way):
    expected = outcomes[1, kind, "alone"]
    assert expected[0][-1] < expected[0][0] - 0.1
    assert_same_run(outcomes[workers, kind, way], expected, TOLERANCE[kind])


@pytest.mark.parametrize("way", WAYS)
def test_replayed_steps_of_workers_are_those_of_one(outcomes, way):
    """As on accelerators, where rates are float32; steps of a sharded state are not captured."""
    assert_same_run(outcomes[2, "replayed", way], outcomes[1, "plain", "alone"], 1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_checkpoint_of_four_workers_resumes_on_any_number(outcomes, workers, way):
    """A volume-preserving flow, in micro-batches: 25 steps with four workers, 25 with fewer."""
    said = "the process was told to end after 400 images; on disk: 400"
    assert str(outcomes[4, "cut", way]) == said
    assert_same_run(outcomes[workers, "resumed", way], outcomes[1, "preserving", "alone"], 1e-9)


def test_sharding_the_state_changes_no_bfloat16_arithmetic(outcomes):
    """Matrices travel in bfloat16, in which they are used; norms and embeddings do not."""
    replicated, sharded = (outcomes[2, "bfloat16", way] for way in WAYS)
    assert sharded[0] == replicated[0]


@pytest.mark.parametrize("way", WAYS)
def test_all_workers_name_the_block_in_which_one_diverged(outcomes, way):
    raised = outcomes[2, "poisoned", way]
    assert str(raised) == "block 1 gave values that are not finite after 0 images"


@pytest.mark.parametrize("kind", ["plain", "preserving"])
def test_micro_batches_change_neither_losses_nor_weights(outcomes, tmp_path, kind):
    small = train_job(Job((), choice(kind, micro_batch=5), tmp_path))
    assert_same_run(small, outcomes[1, kind, "alone"], 1e-9)


def test_workers_shard_the_state_if_it_does_not_fit(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    memory = {"bytes": 1e12}
    monkeypatch.setattr(distributed, "least", lambda *_: memory["bytes"])

    def sharded(**asked):
        chosen = execution.resolve_execution(choice("plain", **asked))
        assert chosen.workers == 2
        return chosen.sharded

    assert (sharded(), sharded(sharding="shard")) == (False, True)
    memory["bytes"] = 1e5
    assert (sharded(), sharded(sharding="replicate")) == (True, False)
    muon = replace(choice("float32"), optim=OptimConfig(optimizer="muon"))
    with pytest.raises(UserError, match="muon needs whole matrices on every worker: set"):
        execution.resolve_execution(muon)


def test_the_memory_of_a_container_counts(monkeypatch, tmp_path):
    cpu, files = torch.device("cpu"), (tmp_path / "2", tmp_path / "1")
    monkeypatch.setattr(device, "CONTAINER_LIMITS", files)
    whole = device.memory_bytes(cpu)
    assert device.memory_bytes(cpu, 4) == whole / 4 > 1e8
    files[0].write_text("max\n")
    assert device.memory_bytes(cpu) == whole
    files[1].write_text("1000000\n")
    assert device.memory_bytes(cpu, 2) == 5e5


def test_a_sharded_run_computes_how_many_images_fit():
    whole = choice("plain", sharding="shard", workers=2)
    assert cost.micro_batch(whole, 1e12) == BATCH // 2
    assert cost.micro_batch(whole, 1.0) == 1


def scored(**evaluation):
    """Return a short run of float32 that is scored and sampled."""
    chosen = replace(choice("float32", "shard"), images=4 * BATCH)
    evaluation = replace(chosen.evaluation, features="efficientnet-lite0@32/112", **evaluation)
    return replace(chosen, evaluation=evaluation, optim=replace(chosen.optim, ema=0.0))


def assert_same_folder(found, expected):
    """Compare everything that two runs left except times."""
    names = {path.name for path in expected.iterdir()}
    assert {path.name for path in found.iterdir()} == names
    curves = [read_table(folder / "curve.parquet").to_pydict() for folder in (found, expected)]
    assert curves[0]["loss"] == pytest.approx(curves[1]["loss"], abs=1e-4)
    images = [read_table(folder / "images.parquet").to_pydict() for folder in (found, expected)]
    assert images[0]["index"] == images[1]["index"]
    assert images[0]["label"] == images[1]["label"]
    assert images[0]["bpd"] == pytest.approx(images[1]["bpd"], abs=1e-3)
    assert images[0]["loss"] == pytest.approx(images[1]["loss"], abs=1e-3)
    rows = [read_result(folder)["evaluations"][0] for folder in (found, expected)]
    for name in ("n", "redrawn", "lost", "solver"):
        assert rows[0][name] == rows[1][name]
    assert rows[0]["kid"] == pytest.approx(rows[1]["kid"], abs=1e-3)
    first, second = (np.asarray(Image.open(each / "samples.png")) for each in (found, expected))
    assert np.abs(first.astype(int) - second).max() <= 1


def test_torchrun_leaves_the_folder_that_one_process_leaves(tmp_path):
    chosen = scored(samples=67)
    (tmp_path / "config.yaml").write_text(to_yaml(chosen))
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2"
    command = f"{launcher} -m tarflow train config.yaml --out two"
    said = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("bits per dimension") == 1
    assert said.stderr.count("100%") == 1  # only one of them reports
    one, two = run(chosen, tmp_path / "one", role="final"), tmp_path / "two"
    row = read_result(two)["run"]
    assert (row["run_id"], row["status"]) == (one["run_id"], "done")
    assert row["bpd"] == pytest.approx(one["bpd"], abs=1e-4)
    assert_same_folder(two, tmp_path / "one")


def test_workers_share_scoring_and_sampling_even_if_some_have_nothing_to_draw(tmp_path):
    job = Job((), scored(samples=4), tmp_path / "eight", complete=True)
    row, *others = (outcome[()] for outcome in together(8, [job], tmp_path))
    assert (row["status"], others) == ("done", [{}] * 7)
    run(job.config, tmp_path / "one", role="final")
    assert_same_folder(tmp_path / "eight", tmp_path / "one")


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 500])
def test_slices_of_workers_are_even_and_follow_one_another(monkeypatch, count, workers):
    monkeypatch.setattr(distributed, "world_size", lambda: workers)
    items, sizes = [], []
    for rank in range(workers):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        part = range(count)[distributed.local_slice(count)]
        items += part
        sizes.append(len(part))
    assert items == list(range(count))
    assert max(sizes) - min(sizes) <= 1
