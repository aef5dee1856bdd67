"""How many small runs share a GPU. A Ray that claims to have one runs them on cores instead."""

from dataclasses import replace

import pytest
from ray.cluster_utils import Cluster
from small_studies import rows, wee, write_study

from sweeps import scaling
from sweeps.pricing.expect import accelerator_rate, expected_seconds
from sweeps.pricing.sharing import (
    LEAST_MEMORY,
    Sharing,
    most_per_device,
    read_sharing,
    runs_per_device,
)
from sweeps.running import sharing_probe, trainable
from tarflow import cost
from tarflow.config import RunConfig
from tarflow.model_config import ModelConfig

SMALL = RunConfig()
LARGE = RunConfig(model=ModelConfig(image_size=64, image_channels=3, channels=512, layers=8))


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ((770.0, 769.0, 768.0, 765.0), 8),  # steps take turns, as on an H100
        ((100.0, 180.0, 200.0, 150.0), 4),  # a step alone does not fill the GPU
        ((100.0, 90.0, 80.0, 70.0), 1),  # they hinder each other
    ],
)
def test_the_largest_number_among_the_fastest_shares_a_gpu(rates, best):
    measured = Sharing(("GPU",), 80e9, dict(zip((1, 2, 4, 8), rates, strict=True)))
    assert runs_per_device([SMALL], measured) == best
    assert runs_per_device([SMALL], measured, cores=2.5) <= 2
    assert runs_per_device([SMALL, LARGE], replace(measured, memory=16e9)) == 1
    alone, shared = (
        expected_seconds(SMALL, 100, accelerator_rate("H100", "float32", each, [SMALL]))
        for each in (replace(measured, rates={1: rates[0]}), measured)
    )
    gain = rates[(1, 2, 4, 8).index(best)] / rates[0]
    assert shared.train / best == pytest.approx(alone.train / gain)


def test_without_a_measurement_memory_and_cores_decide():
    assert runs_per_device([SMALL]) == 4
    assert runs_per_device([SMALL], cores=3) == 3
    assert runs_per_device([LARGE]) == 1
    fit = most_per_device([LARGE], 80e9)
    assert fit * cost.memory(LARGE).total < 80e9
    assert most_per_device([LARGE], LEAST_MEMORY) < fit


@pytest.mark.ray
def test_a_long_study_measures_before_its_first_run(tmp_path, monkeypatch, call):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    claimed = {"num_cpus": 4, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=claimed)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(sharing_probe, "SECONDS", 1.0)
    shares, resources = [], trainable.resources

    def note(configs, context):
        needs = resources(configs, context)
        shares.append(needs["gpu"])
        return needs

    monkeypatch.setattr("sweeps.running.runner.resources", note)
    study = write_study(tmp_path, wee("wee"))
    try:
        for cost_allowed, name in ((0.01, "short"), (1e6, "long")):
            monkeypatch.setattr(sharing_probe, "COST", cost_allowed)
            code, said = call(scaling, study, "--out", tmp_path / name, "--sampler-trials", "0")
            assert code == 0, said
    finally:
        cluster.shutdown()
    assert read_sharing(tmp_path / "short") is None
    measured = read_sharing(tmp_path / "long")
    assert set(measured.rates) == {1, 2, 4}
    assert f"{measured.rates[2]:.3g} with 2" in said.out
    assert min(measured.rates.values()) > 1
    assert shares == [1 / 4, 1 / runs_per_device([SMALL], measured)]
    assert len(rows(tmp_path / "long")) == 4
