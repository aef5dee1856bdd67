"""Predicted steps against sums done by hand, and against what they must obey."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tarflow import cost, human
from tarflow.__main__ import main
from tarflow.config import ExecutionConfig, NoiseConfig, RunConfig
from tarflow.config_files import to_yaml
from tarflow.model_config import ModelConfig
from tarflow.step_time import (
    HOST_SECONDS,
    LAYER_SECONDS,
    Cluster,
    smallest_cluster,
    step_time,
    weak_scaling,
)

DEVICE = cost.Accelerator({"float32": 1e13, "bfloat16": 1e14}, 80e9, 1e12, 1e11)
RUN = RunConfig(
    model=ModelConfig(image_size=64, image_channels=3, patch=4, channels=512, blocks=4, layers=4),
    batch=64,
    images=6400,
    precision="bfloat16",
)
ONE = Cluster(device=DEVICE, per_node=1)
MEASURED = pd.read_csv(Path(__file__).parent / "h100_steps.csv")


def test_exchange_is_bytes_over_both_links_and_a_latency_for_every_hop():
    cluster = Cluster(
        device=DEVICE, nodes=8, per_node=4, network=1e10, link_latency=1e-5, network_latency=1e-4
    )
    near, far = 1e9 * 3 / 4 / 1e11, 1e9 * 7 / 8 / (4 * 1e10)
    assert cluster.exchange(1e9, 0) == pytest.approx(near + far, rel=1e-12)
    hops = 3 * 1e-5 + 3 * 1e-4  # a ring of four workers, a tree of eight nodes
    assert cluster.exchange(0, 5) == pytest.approx(5 * hops, rel=1e-12)
    assert ONE.exchange(1e9, 5) == 0


def test_one_worker_waits_for_nobody():
    step = step_time(RUN, ONE)
    assert (step.waiting, step.communication, step.efficiency) == (0, 0, 1)
    flops = cost.training_flops(RUN.model) * 64
    share = 0.75 * 512 / (512 + 0.7 * 1e14 * 2 / 1e12)
    assert step.products == pytest.approx(flops / share / 1e14, rel=1e-12)
    assert step.traffic == pytest.approx(60 * 64 * 256 * 16 * 512 / 1e12, rel=1e-12)
    assert step.launching == pytest.approx(16 * LAYER_SECONDS, rel=1e-12)
    assert step.optimizer == pytest.approx(13 * 4 * cost.params_total(RUN.model) / 1e12, rel=1e-12)
    parts = (step.products, step.traffic, step.launching, step.optimizer)
    assert step.seconds == pytest.approx(sum(parts), rel=1e-12)
    measured = step_time(RUN, ONE, mfu=0.3)
    assert measured.seconds == pytest.approx(flops / 0.3 / 1e14, rel=1e-12)


def test_automatic_precision_is_priced_as_it_is_trained():
    gaussian = replace(RUN, precision="auto")
    assert step_time(gaussian, ONE) == step_time(RUN, ONE)
    uniform = replace(gaussian, noise=NoiseConfig(type="uniform"))
    assert step_time(uniform, ONE) == step_time(replace(RUN, precision="float32"), ONE)


def test_the_predicted_steps_of_an_h100_agree_with_measurements():
    """The table holds the milliseconds of each measured step."""
    alone = Cluster(device=cost.ACCELERATORS["H100"], per_node=1)
    errors = []
    for row in MEASURED.itertuples():
        model = ModelConfig(
            image_size=row.patch * math.isqrt(row.tokens),
            image_channels=1 if row.patch == 7 else 3,
            patch=row.patch,
            channels=row.channels,
            blocks=row.blocks,
            layers=row.layers,
        )
        execution = ExecutionConfig(
            fused=row.fused,
            compile=row.compile,
            checkpoint_activations=row.checkpoint_activations,
            micro_batch=row.micro_batch,
        )
        run = RunConfig(
            model=model,
            batch=row.batch,
            images=row.batch,
            precision=row.precision,
            execution=execution,
        )
        errors.append(math.log(step_time(run, alone).seconds / (row.milliseconds / 1e3)))
    assert max(map(abs, errors)) < math.log(1.3)
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.1


def test_gradients_are_averaged_after_the_last_pass():
    cluster = Cluster(device=DEVICE, per_node=8)
    step = step_time(RUN, cluster)
    assert step.waiting == step.communication
    assert step.waiting == 2 * cluster.exchange(4 * cost.params_total(RUN.model), 1)
    slow = step_time(RUN, replace(cluster, device=replace(DEVICE, link=1e8)))
    assert slow.alone == step.alone
    assert slow.limit == "communication"


def test_a_small_model_is_as_slow_as_its_layers_are_many():
    small = replace(RUN, model=replace(RUN.model, channels=64), batch=4)
    assert step_time(small, ONE).limit == "launching"
    passes = replace(small, execution=ExecutionConfig(micro_batch=1))
    assert step_time(passes, ONE).launching == 4 * step_time(small, ONE).launching


def test_the_host_launches_a_sharded_step_operation_by_operation():
    cluster = Cluster(device=DEVICE, per_node=4)
    sharded = replace(RUN, execution=ExecutionConfig(sharding="shard"))
    step = step_time(sharded, cluster)
    busy = step.products + step.traffic + step.launching
    assert busy == pytest.approx(16 * HOST_SECONDS, rel=1e-12)


def test_sharded_state_travels_half_as_often_again():
    """In float32 three exchanges of all weights a pass instead of two (ZeRO, section 7)."""
    cluster = Cluster(device=replace(DEVICE, link=1e8), per_node=4, link_latency=0.0)
    run = replace(RUN, precision="float32")
    whole = step_time(run, cluster)
    sharded = replace(run, execution=ExecutionConfig(sharding="shard"))
    assert step_time(sharded, cluster).sharded
    assert step_time(sharded, cluster).communication == pytest.approx(1.5 * whole.communication)
    passes = replace(sharded, execution=ExecutionConfig(sharding="shard", micro_batch=8))
    assert step_time(passes, cluster).communication == pytest.approx(3 * whole.communication)


def test_weak_scaling_keeps_the_images_of_a_worker_and_loses_efficiency():
    cluster = Cluster(device=replace(DEVICE, link=1e12), per_node=8, network=1e8)
    steps = weak_scaling(RUN, cluster, (1, 2, 4, 64))
    assert [step.images for step in steps] == [64, 128, 256, 64 * 64]
    efficiencies = [step.efficiency for step in steps]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[0] > 0.95 > 0.5 > efficiencies[-1]
    fast = weak_scaling(RUN, replace(cluster, network=1e17, network_latency=0.0), (1, 64))
    assert fast[0].seconds == pytest.approx(fast[1].seconds, rel=1e-6)


def test_time_device_time_and_price_of_a_run_follow_from_its_step(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(replace(RUN, images=64 * 10**6)))
    main(["cost", str(path), "--accelerator", "H100", "--workers", "16", "--nodes", "2"])
    shown = capsys.readouterr().out
    two_nodes = Cluster(device=cost.ACCELERATORS["H100"], nodes=2, per_node=8)
    step = step_time(replace(RUN, images=64 * 10**6), two_nodes).seconds
    hours = 10**6 * step * 16 / 3600
    row = next(line for line in shown.splitlines() if "H100-hours" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "H100",
        "yes",
        human.seconds(step),
        human.seconds(10**6 * step),
        f"{human.digits(hours)} H100-hours",
        f"${human.digits(3 * hours)}",
    ]
    assert f"a step on 16 H100, 8 per node: {human.seconds(step)} (" in shown
    main(["cost", str(path), "--workers", "16"])
    assert row in capsys.readouterr().out  # two nodes are the fewest


@pytest.mark.parametrize(
    ("workers", "nodes", "per_node"), [(1, 1, 1), (8, 1, 8), (9, 3, 3), (11, 11, 1), (24, 3, 8)]
)
def test_the_smallest_cluster_has_exactly_the_workers(workers, nodes, per_node):
    cluster = smallest_cluster(DEVICE, workers)
    assert (cluster.nodes, cluster.per_node) == (nodes, per_node)


def test_small_runs_are_priced_in_small_units(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    small = replace(RUN, model=ModelConfig(channels=16, head_dim=8), images=640)
    path.write_text(to_yaml(small))
    main(["cost", str(path)])
    shown = capsys.readouterr().out
    assert "0.00 GB" not in shown
    assert re.search(r"[\d.]+ MB per worker: [\d.]+ kB of state", shown)
    assert re.search(
        r"H100 +│ yes +│ [\d.]+ ms +│ [\d.]+ m?s +│ [\d.]+ H100-seconds +│ < \$0.01", shown
    )


def test_command_prints_steps_and_refuses_what_it_does_not_know(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(RUN))
    assert main(["cost", str(path), "--accelerator", "H100", "--workers", "8"]) == 0
    shown = capsys.readouterr().out
    assert "TFLOP/s per device, attention counted as causal" in shown
    assert "a step on 8 H100, 8 per node" in shown
    assert "4,096" in shown  # images on 64 nodes
    assert main(["cost", str(path), "--accelerator", "H10"]) == 2
    assert "write one of H200" in capsys.readouterr().err
    assert main(["cost", str(path), "--accelerator", "H100", "--nodes", "3"]) == 2
    assert "--workers must be a multiple of --nodes" in capsys.readouterr().err
