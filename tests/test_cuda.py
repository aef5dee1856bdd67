"""What only a GPU can show: that it gives the numbers of the CPU, and so do its CUDA graphs."""

import gc
from dataclasses import replace

import pytest
import torch
from golden_files import TOLERANCE, built, compute, outputs, read

from tarflow import execution
from tarflow.config import (
    DataConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SamplerConfig,
)
from tarflow.model.noise import normal_per_image
from tarflow.model_config import ModelConfig
from tarflow.sample.calibration import calibrate
from tarflow.sample.inverse import invert
from tarflow.sample.plan import named_plan
from tarflow.train.cuda_graph import make_train_step
from tarflow.train.loop import train
from tarflow.train.micro_batch import fit_micro_batch
from tarflow.train.state import new_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU = torch.device("cuda", 0)
MODEL = ModelConfig(patch=4, channels=64, blocks=3, layers=2, classes=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_reproduces_every_reference_tensor(golden, dtype):
    metadata, tensors = read(golden, dtype)
    flow = built(metadata, tensors).to(GPU)
    tensors = {name: tensor.to(GPU) for name, tensor in tensors.items()}
    for name, expected in outputs(tensors).items():
        error = (compute(flow, tensors, name) - expected).abs().max()
        assert error <= TOLERANCE * expected.abs().max(), name


def run(**changes):
    plain = RunConfig(
        model=MODEL,
        data=DataConfig(hash="none"),
        images=16000,
        batch=16,
        precision="float32",
        execution=ExecutionConfig(device="cuda"),
    )
    return replace(plain, **changes)


def make(config, fit=False):
    """Return a state, how it is executed, and its step, as `train` makes them."""
    chosen = execution.resolve_execution(config)
    state = new_state(config, chosen)
    chosen = fit_micro_batch(state, config, chosen) if fit else chosen
    return state, chosen, make_train_step(state, config, chosen)


def losses(config, steps):
    state, _, update = make(config)
    rng = torch.Generator().manual_seed(0)
    size = config.model.image_size
    found = []
    for _ in range(steps):
        pixels = torch.randint(256, (config.batch, 1, size, size), generator=rng)
        labels = torch.randint(10, (config.batch,), generator=rng)
        loss, norm = update(pixels.to(GPU, torch.uint8), labels.to(GPU))
        found += [loss.item(), norm.item()]
    return found, state


@pytest.mark.filterwarnings("ignore")  # the compiler itself warns
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "float64"},
        {"precision": "bfloat16"},
        {"execution": ExecutionConfig(device="cuda", micro_batch=5)},
        {"execution": ExecutionConfig(device="cuda", checkpoint_activations=True)},
        {"execution": ExecutionConfig(device="cuda", compile=True)},
        {"optim": OptimConfig(optimizer="muon")},
        {"optim": OptimConfig(base_channels=16)},
        {"model": replace(MODEL, volume_preserving=True)},
        {"noise": NoiseConfig(type="uniform")},
    ],
)
def test_replayed_steps_are_those_launched_one_by_one(changes, monkeypatch):
    config = run(**changes)
    tolerance = {"float64": 1e-9, "bfloat16": 1e-2}.get(config.precision, 1e-4)
    replayed, state = losses(config, 8)
    assert all(parameter.grad is not None for parameter in state.flow.parameters())
    monkeypatch.setattr(execution, "supports_cuda_graphs", lambda _: False)
    expected, _ = losses(config, 8)
    assert replayed == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes", [{}, {"model": replace(MODEL, volume_preserving=True)}, {"batch": 5, "images": 500}]
)
def test_fused_layers_train_as_plain_ones(precision, changes):
    tolerance = 1e-4 if precision == "float32" else 2e-2
    fused = run(precision=precision, **changes)
    plain = replace(fused, execution=ExecutionConfig(device="cuda", fused=False))
    assert losses(fused, 8)[0] == pytest.approx(losses(plain, 8)[0], rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "head_dim"), [(49, 8), (64, 64), (256, 64), (500, 128)])
def test_attention_over_few_tokens_gives_the_gradients_of_pytorch(tokens, head_dim, dtype):
    from tarflow.cuda.attention import measured_gain

    assert measured_gain(tokens, head_dim, dtype, GPU) > 0


def test_a_pass_is_halved_until_the_memory_of_the_gpu_suffices():
    gc.collect()
    torch.cuda.empty_cache()  # earlier tests captured graphs
    whole = torch.cuda.get_device_properties(GPU).total_memory
    limit = torch.cuda.memory_reserved(GPU) + 2e9
    torch.cuda.set_per_process_memory_fraction(limit / whole, GPU)
    try:
        model = ModelConfig(patch=2, channels=128, blocks=4, layers=2)
        config = run(model=model, batch=2048, images=2048)
        state, chosen, update = make(config, fit=True)
        assert 1 <= chosen.micro_batch == state.micro_batch < 2048
        pixels = torch.zeros(2048, 1, 28, 28, dtype=torch.uint8, device=GPU)
        for _ in range(3):
            loss, _ = update(pixels, None)
        assert loss.isfinite()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("plan", ["sequential", "segmented:4", "auto"])
def test_samples_of_a_gpu_are_those_of_the_cpu(random_flow, guided, plan):
    flow = random_flow(image_size=16, image_channels=3, classes=10, blocks=3)
    sampler = SamplerConfig(guidance=1.5, temperature=0.8) if guided else None
    shape = (flow.config.tokens, flow.config.token_dim)
    noise = 0.5 * normal_per_image(torch.arange(4), shape, 0, "test", torch.float64)
    labels = torch.arange(4)
    expected = invert(flow, noise, labels, sampler)
    flow = flow.to(GPU)
    if plan == "auto":
        images = expected.to(GPU)
        chosen = calibrate(flow, images, labels.to(GPU), NoiseConfig(), sampler, 1e-6)
    else:
        chosen = named_plan(plan, flow.config.blocks, 1e-9)
    found = invert(flow, noise.to(GPU), labels.to(GPU), sampler, chosen)
    assert (found.cpu() - expected).abs().max() < 1e-5


@pytest.mark.usefixtures("cache")
def test_a_run_on_the_gpu_resumes_near_where_it_was(tmp_path):
    config = run(
        data=DataConfig(),
        images=640,
        execution=ExecutionConfig(device="cuda", checkpoint_seconds=0, report_seconds=0),
    )

    class Stop(Exception):
        pass

    def stop(progress):
        if progress["images"] >= 320:
            raise Stop

    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", stop)
    resumed = train(config, tmp_path / "cut")
    assert resumed.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], rel=1e-3)
    for name, tensor in whole.ema.items():
        assert torch.allclose(resumed.ema[name], tensor, atol=1e-3), name
