"""A branch of a trunk is the run that it would have been alone, to the last bit."""

import multiprocessing
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import (
    LONG,
    MIDDLE,
    SHORT,
    Stop,
    assert_same,
    family,
    losses,
    rows,
    stop_at,
)

from tarflow import cost, distributed
from tarflow.config import OptimConfig, RunConfig
from tarflow.record import read_table
from tarflow.run import run
from tarflow.train.checkpoint import load_checkpoint, saved_images
from tarflow.train.loop import train
from tarflow.train.schedule import shared_images, step_rate
from tarflow.train.trunk import trunk_folder


@pytest.mark.parametrize("cooldown", [0.0, 0.2, 1 / 3, 1.0])
@pytest.mark.parametrize("warmup", [0, 100, 3000])
@pytest.mark.parametrize("batch", [16, 48])
def test_what_is_shared_is_all_of_the_rate_and_not_a_step_more(cooldown, warmup, batch):
    optim = OptimConfig(cooldown=cooldown, warmup_images=warmup)
    for steps in (1, 2, 10, 37):
        one = RunConfig(images=steps * batch, batch=batch, optim=optim)
        shared = shared_images(one)
        for longer in (steps + 1, 3 * steps):
            other = replace(one, images=longer * batch)
            assert shared <= shared_images(other)
            begins = range(0, one.images, batch)
            same = [step_rate(one, images) == step_rate(other, images) for images in begins]
            assert all(same[: shared // batch])
            assert not any(same[shared // batch :])
    assert shared_images(replace(one, optim=replace(optim, schedule="cosine"))) == 0


def test_a_family_differs_in_its_images_only():
    folders = {trunk_folder(one, Path()) for one in (SHORT, MIDDLE, LONG)}
    others = replace(SHORT, seed=1), replace(SHORT, batch=32)
    assert len(folders) == 1
    assert not folders & {trunk_folder(other, Path()) for other in others}


def test_branches_are_the_runs_they_would_have_been(tmp_path):
    """The middle one leaves nothing that was not there; the short one resumes from the long."""
    trunk = family(tmp_path, SHORT, MIDDLE)
    whole = train(LONG, tmp_path / "long", trunk=trunk)
    assert saved_images(trunk.folder) == [128, 256]
    for one in (MIDDLE, SHORT):
        alone = replace(trunk, branch_points=frozenset())
        branch = train(one, tmp_path / str(one.images), trunk=alone)
        assert branch.inherited == shared_images(one)
        assert 0 < branch.inherited_seconds < branch.seconds
        assert_same(branch, train(one, tmp_path / f"alone{one.images}"))
    assert whole.inherited == 0
    assert_same(whole, train(LONG, tmp_path / "unmarked"))


def test_a_trunk_may_be_killed_and_its_states_deleted(tmp_path):
    trunk, alone = family(tmp_path, SHORT, MIDDLE), train(MIDDLE, tmp_path / "alone")
    with pytest.raises(Stop):
        train(LONG, tmp_path / "long", stop_at(192), trunk=trunk)
    assert load_checkpoint(trunk.folder)[1]["images"] == shared_images(SHORT)
    early = train(MIDDLE, tmp_path / "early", trunk=trunk)  # from what is there
    assert early.inherited == shared_images(SHORT)
    assert_same(early, alone)
    shutil.rmtree(trunk.folder)
    train(LONG, tmp_path / "long", trunk=trunk)
    with pytest.raises(Stop):
        train(MIDDLE, tmp_path / "late", stop_at(288), trunk=trunk)
    late = train(MIDDLE, tmp_path / "late", trunk=trunk)  # now from its own state
    assert late.inherited == shared_images(MIDDLE)
    assert_same(late, alone)
    (state,) = trunk.folder.glob("*.safetensors")
    state.write_bytes(b"x")
    assert_same(train(MIDDLE, tmp_path / "zero", trunk=trunk), alone)


def test_rows_of_branches_say_what_was_spent(tmp_path):
    trunk = family(tmp_path, MIDDLE)
    run(LONG, tmp_path / "long", trunk=trunk)
    branch = run(MIDDLE, tmp_path / "branch", trunk=trunk)
    alone = run(MIDDLE, tmp_path / "alone")
    assert list(trunk.folder.iterdir()) == []  # nobody else needs it
    assert (branch["role"], branch["parent_id"]) == ("branch", trunk.run_id)
    assert (alone["role"], alone.get("parent_id")) == ("grid", None)
    per_image = cost.training_flops(MIDDLE.model)
    assert branch["flops"] == alone["flops"] == alone["flops_marginal"] == 320 * per_image
    assert branch["flops_marginal"] == 64 * per_image
    spent = branch["wall_seconds"] - branch["evaluate_seconds"]
    assert 0 < spent < branch["train_seconds"]
    assert branch["device_seconds"] == branch["wall_seconds"]
    same = ("run_id", "bpd", "bpd_se", "bpd_max", "loss", "train_loss")
    assert [branch[name] for name in same] == [alone[name] for name in same]
    for name in ("images", "curve"):
        tables = (tmp_path / which / f"{name}.parquet" for which in ("branch", "alone"))
        one, other = (rows(read_table(path).to_pylist()) for path in tables)
        assert one == other


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_workers_leave_a_state_and_go_on_from_it(tmp_path, sharding):
    """The first worker writes; the state serves two again, and one."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [
        context.Process(target=be_one_of_two, args=(rank, port, sharding, tmp_path))
        for rank in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(100)
        process.kill()
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    alone = train(SHORT, tmp_path / "one", trunk=family(tmp_path, SHORT))
    assert alone.inherited == shared_images(SHORT)
    expected = train(SHORT, tmp_path / "one from zero")
    assert losses(alone) == pytest.approx(losses(expected), rel=1e-4)


def be_one_of_two(rank, port, sharding, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    short, long = (
        replace(one, execution=replace(one.execution, sharding=sharding)) for one in (SHORT, LONG)
    )
    with distributed.process_group():
        leave_and_go_on(rank, short, long, folder)
    assert not distributed.gloo_threads()  # none outlives the group


def leave_and_go_on(rank, short, long, folder):
    trunk = family(folder, short)
    train(long, folder / "long", trunk=trunk)
    branch = train(short, folder / "branch", trunk=trunk)
    alone = train(short, folder / "alone")
    assert branch.inherited == shared_images(short)
    assert losses(branch) == losses(alone)
    for name, tensor in alone.ema.items() if rank == 0 else ():
        assert torch.equal(branch.ema[name], tensor), name
