import os
from importlib import import_module
from pathlib import Path

from sweeps.hardware import has_gpu

if not has_gpu():  # Triton's kernels are interpreted, not compiled
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by torch at the latest

os.environ.setdefault("PYTHONFAULTHANDLER", "1")  # a started process that crashes says where
os.environ["RAY_ADDRESS"] = "local"  # else a test would join the cluster of the test beside it

import pytest
import torch

from tarflow.model.flow import TarFlow, initialise
from tarflow.model_config import STARFLOW, ModelConfig

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, help="check this file of reference tensors instead")


def pytest_generate_tests(metafunc):
    if "golden" in metafunc.fixturenames:
        given = metafunc.config.getoption("--golden")
        files = [given] if given else sorted(GOLDEN.glob("*.safetensors"))
        metafunc.parametrize("golden", files, ids=[file.stem for file in files], scope="module")


@pytest.fixture(scope="module", autouse=True)
def _without_gpus(request):
    """Hide GPUs from all tests but those of GPUs, so that they are the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_cuda":
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that tests start
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="session")
def random_flow():
    """Make flows far from the identity: every weight, bias, norm and table is random."""

    def make(dtype=torch.float64, seed=0, **fields):
        sizes = {"image_size": 8, "image_channels": 2, "patch": 2, "channels": 16, "head_dim": 8}
        sizes |= {"blocks": 3, "layers": 1}
        if fields.pop("family", "tarflow") == "starflow":
            sizes |= STARFLOW
        flow = TarFlow(ModelConfig(**{**sizes, **fields}))
        initialise(flow, seed)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in flow.named_parameters():
                noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                # log-scales are linear in the hidden state: wider weights would overflow
                parameter += (0.03 if "proj" in name else 0.3) * noise
            if flow.config.condition_tokens:
                flow.null_condition.normal_(generator=rng)
            if flow.config.volume_preserving:
                flow.var.uniform_(0.5, 2.0, generator=rng)
        return flow.to(dtype).eval()

    return make


@pytest.fixture(scope="module")
def local_ray():
    """Share one local Ray by all tests and the processes they start."""
    import_module("sweeps")  # sets the environment that keeps Ray quiet, before Ray is imported
    import ray

    with pytest.MonkeyPatch.context() as patch:
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
        patch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
        yield
        ray.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep decoded images in a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TARFLOW_CACHE", str(folder))
    return folder
